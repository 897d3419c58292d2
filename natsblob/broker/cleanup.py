"""Cleaning up when the task that does it may be cancelled already."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from natsblob.logs import get_logger

log = get_logger("natsblob.broker")

T = TypeVar("T")

CLEANUP_TIMEOUT: Final = 5.0
"""Seconds that a cleanup may take; what it leaves behind then is collected by maintenance."""


async def acquired(opening: Callable[[], T], release: Callable[[T], object]) -> T:
    """What `opening` returns, which a thread runs; released if the caller is cancelled before it has it."""
    task = asyncio.ensure_future(asyncio.to_thread(opening))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:

        def ended(_: object) -> None:
            if not task.cancelled() and task.exception() is None:
                release(task.result())

        task.add_done_callback(ended)
        raise


async def shielded(cleanup: Coroutine[Any, Any, object], timeout: float = CLEANUP_TIMEOUT) -> None:
    """Run `cleanup` to its end within `timeout` seconds, also while the caller is being cancelled.

    A failure is logged and not raised: it would hide the reason for which the cleanup runs. A
    cancellation that arrives meanwhile is raised afterwards.
    """
    task = asyncio.ensure_future(_bounded(cleanup, timeout))
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.cancelled():
                break
            cancelled = error
    if cancelled is not None:
        raise cancelled


async def _bounded(cleanup: Coroutine[Any, Any, object], timeout: float) -> None:
    try:
        async with asyncio.timeout(timeout):
            await cleanup
    except Exception as error:  # noqa: BLE001 - reported; the reason for the cleanup goes first
        log.warning("cleanup.failed", error=str(error) or type(error).__name__)
