"""Reading every blob to see that its bytes are still those of its digest."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import AsyncGenerator
from typing import Literal

import msgspec

from natsblob.digest import Digest
from natsblob.errors import BadRequestError, BlobCorruptError, BlobNotFoundError
from natsblob.objectstore.objects import Objects

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

    Holds one window of one blob in memory, and the list of names. `rate` is in bytes per second, 0 for no
    limit. Objects whose name is no digest are not blobs. `UnavailableError` where the server that leads
    has lost names, so that not every blob would be read.
    """
    names = [name for name in await objects.names() if _is_digest(name)]
    pace = _Pace(rate)
    for name in names[bisect_right(names, after.hex) if after else 0 :]:
        outcome: Outcome = "ok"
        size = 0
        try:
            async for chunk in objects.get(name):
                size += len(chunk)
                await pace.passed(len(chunk))
        except BlobNotFoundError:
            if await objects.newest_anywhere(name) is not None:
                continue  # deleted
            outcome = "corrupt"  # it is listed, and no copy has its metadata
        except BlobCorruptError:
            outcome = "corrupt"
        yield Verified(name, outcome, size)


def _is_digest(name: str) -> bool:
    try:
        Digest.parse(name)
    except BadRequestError:
        return False
    return True


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
