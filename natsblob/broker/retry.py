"""Trying again: capped exponential backoff with full jitter, within a given time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from natsblob.errors import BlobError

T = TypeVar("T")

FIRST_DELAY: Final = 0.02
LONGEST_DELAY: Final = 1.0
LONGEST_HINT: Final = 2.0
"""Seconds for which whoever answers may have others wait: an answer may come from anybody."""
_ABSURD: Final = 1e9


def delay(attempt: int, error: BlobError | None = None) -> float:
    """Seconds to wait before the attempt after number `attempt` (from 0); a hint of `error` is a floor,
    up to `LONGEST_HINT`."""
    hint = error.details.get("retry_after_ms") if error else None
    floor = min(hint / 1000, LONGEST_HINT) if isinstance(hint, int | float) and 0 < hint < _ABSURD else 0.0
    return floor + random.uniform(0, min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(attempt, 16)))  # noqa: S311


async def retrying(attempt: Callable[[], Awaitable[T]], *, patience: float) -> T:
    """The result of `attempt`, repeated while it raises a retryable `BlobError`.

    Gives up with the last error once `patience` seconds have passed. `attempt` must bound itself.
    """
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + patience
    number = 0
    while True:
        try:
            return await attempt()
        except BlobError as error:
            pause = delay(number, error)
            if not error.retryable or loop.time() + pause >= give_up_at:
                raise
            await asyncio.sleep(pause)
            number += 1
