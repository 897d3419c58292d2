"""An event loop whose time is virtual: nothing is waited for, so that hours pass in milliseconds."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from unittest import mock

import structlog

from natsblob.broker import cleanup
from natsblob.objectstore import copies


def _drop(*_: object) -> str:
    raise structlog.DropEvent


_SILENT: Final = structlog.wrap_logger(None, processors=[_drop])


class StuckError(Exception):
    """Nothing is ready and nothing is scheduled: somebody waits without a deadline."""


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs callbacks in order of their time and steps its clock to the next one. It has no I/O."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._selector = self  # the base class asks it how long to wait, which is where time passes
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self._now

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise StuckError("a call waits for something that cannot come, without a deadline")
        self._now += timeout
        return []

    def _process_events(self, event_list: list[Any]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody calls from another thread."""


@contextmanager
def deterministic(seed: int) -> Iterator[None]:
    """Makes every random choice of the code inside a function of the seed, and its logging silent."""
    state = random.getstate()
    random.seed(seed)
    try:
        with (
            mock.patch.object(secrets, "_sysrand", random.Random(seed)),
            mock.patch.object(cleanup, "log", _SILENT),
            mock.patch.object(copies, "log", _SILENT),
        ):
            yield
    finally:
        random.setstate(state)
