"""Reading every blob to see that its bytes are still those of its digest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Literal

import msgspec

from natsblob.client import Client
from natsblob.digest import Digest
from natsblob.errors import (
    BlobCorruptError,
    BlobNotFoundError,
    ConflictError,
    DeadlineError,
    UnavailableError,
)
from natsblob.hashing import ConcurrentHasher
from natsblob.objectstore.copies import UnreadableError
from natsblob.objectstore.info import Entry, digest_of
from natsblob.objectstore.names import END, Names
from natsblob.objectstore.objects import Objects
from natsblob.objectstore.proof import Proofs
from natsblob.wire import MAX_BATCH

Outcome = Literal["ok", "corrupt", "foreign"]


class Verified(msgspec.Struct, frozen=True):
    """A blob that was read, from whichever copies answered; or what has the name of one and is none."""

    digest: str
    outcome: Outcome
    """`foreign`: another client's object has this digest for a name, and does not claim to be its content."""
    size: int


async def verify(
    objects: Objects, *, after: Digest | None = None, rate: int = 0
) -> AsyncGenerator[Verified, None]:
    """Every blob in ascending order of digest, beginning behind `after`; one deleted meanwhile is left out.

    What is corrupt is recorded as such, so that the next put of that content heals it (ADR 0013).
    Holds one window of one blob in memory, and some of the names. `rate` is in bytes per second, 0 for no
    limit. Objects whose name is no digest are not blobs. `UnavailableError` if the server that leads
    has lost names, so that not every blob would be read.
    """
    pace = _Pace(rate)
    proofs = Proofs(objects)
    async for name in _names(objects, after.hex if after else ""):
        try:
            entry = await objects.find(name)
            found = entry and await _verified(objects, name, entry, pace)
            if entry and found and found.outcome == "corrupt":
                await proofs.doubt(entry)
        except BlobNotFoundError:
            continue  # deleted
        except UnreadableError:
            found = Verified(name, "corrupt", 0)
        if found:
            yield found


async def verify_served(
    blobs: Client, *, after: Digest | None = None, rate: int = 0
) -> AsyncGenerator[Verified, None]:
    """The same by what a service gives to its clients, wherever it keeps that."""
    pace = _Pace(rate)
    async for info in blobs.list():
        if after is None or info.digest.hex > after.hex:
            try:
                yield await _verified_as_given(blobs, info.digest, pace)
            except (BlobNotFoundError, ConflictError):
                continue  # deleted, or put again at this moment


async def _verified_as_given(blobs: Client, digest: Digest, pace: _Pace) -> Verified:
    hasher = ConcurrentHasher()
    size = 0
    try:
        async with blobs.open(digest) as reader:
            async for chunk in reader:
                await hasher.update(chunk)
                size += len(chunk)
                await pace.passed(len(chunk))
    except BlobCorruptError:
        return Verified(digest.hex, "corrupt", size)
    return Verified(digest.hex, "ok" if await hasher.digest() == digest else "corrupt", size)


async def _verified(objects: Objects, name: str, named: Entry, pace: _Pace) -> Verified | None:
    """What became of reading it; `None` if it is a link to something else by now, and so no blob any more."""
    entry = await objects.resolve(named)
    claimed = digest_of(entry.info)
    if claimed is None or claimed.hex != name:
        return None if named.info.link is not None else Verified(name, "foreign", entry.info.size)
    hasher = ConcurrentHasher()
    size = 0
    is_unreadable = False

    async def unreadable() -> None:
        nonlocal is_unreadable
        is_unreadable = True

    try:
        async for chunk in objects.read_whole(entry, unreadable=unreadable):
            is_unreadable = False
            await hasher.update(chunk)
            size += len(chunk)
            await pace.passed(len(chunk))
    except (BlobCorruptError, UnreadableError):
        return Verified(name, "corrupt", size)
    except (UnavailableError, DeadlineError):
        if not is_unreadable:
            raise
        return Verified(name, "corrupt", size)
    return Verified(name, "ok" if await hasher.digest() == claimed else "corrupt", size)


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
