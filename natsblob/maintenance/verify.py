"""Reading every blob to see that its bytes are still those of its digest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Literal

import msgspec

from natsblob.digest import Digest
from natsblob.errors import BlobCorruptError, BlobNotFoundError
from natsblob.objectstore.copies import UnreadableError
from natsblob.objectstore.names import END, Names
from natsblob.objectstore.objects import Objects
from natsblob.wire import MAX_BATCH

Outcome = Literal["ok", "corrupt"]


class Verified(msgspec.Struct, frozen=True):
    """A blob that was read, from whichever copies answered."""

    digest: str
    outcome: Outcome
    size: int


async def verify(
    objects: Objects, *, after: Digest | None = None, rate: int = 0
) -> AsyncGenerator[Verified, None]:
    """Every blob in ascending order of digest, beginning behind `after`; one deleted meanwhile is left out.

    Holds one window of one blob in memory, and some of the names. `rate` is in bytes per second, 0 for no
    limit. Objects whose name is no digest are not blobs. `UnavailableError` where the server that leads
    has lost names, so that not every blob would be read.
    """
    pace = _Pace(rate)
    async for name in _names(objects, after.hex if after else ""):
        outcome: Outcome = "ok"
        size = 0
        try:
            async for chunk in objects.get(name):
                size += len(chunk)
                await pace.passed(len(chunk))
        except BlobNotFoundError:
            continue  # deleted
        except (BlobCorruptError, UnreadableError):
            outcome = "corrupt"
        yield Verified(name, outcome, size)


async def _names(objects: Objects, position: str) -> AsyncIterator[str]:
    known = Names(objects)
    while position != END:
        names, position = await known.behind(position, MAX_BATCH)
        for name in names:
            yield name


class _Pace:
    """Holds a reader back to `rate` bytes per second, without making up for pauses."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._due = 0.0

    async def passed(self, size: int) -> None:
        if self._rate:
            now = asyncio.get_running_loop().time()
            self._due = max(self._due, now) + size / self._rate
            await asyncio.sleep(self._due - now)
