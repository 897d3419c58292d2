"""Whether the stored bytes of a blob may be promised to whoever puts the same content (ADR 0013).

"There already" makes a caller throw its copy away. So it is said only of bytes that a worker wrote itself,
which the metadata says, or read as they are stored and found to be the content, which a record says. Any
doubt takes that away, until the metadata is replaced: records are bound to its sequence.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import aclosing
from enum import Enum
from typing import Final, TypeVar

import msgspec

from natsblob.broker.jetstream import Stored
from natsblob.broker.translate import LostRaceError
from natsblob.errors import BlobCorruptError, BlobError, BlobNotFoundError
from natsblob.hashing import ConcurrentHasher
from natsblob.logs import get_logger
from natsblob.objectstore.expiry import is_lasting
from natsblob.objectstore.info import Entry
from natsblob.objectstore.objects import Objects
from natsblob.objectstore.turns import Asker, Turns, asker, on_behalf_of
from natsblob.wire import NOT_DECODED

T = TypeVar("T")

log = get_logger("natsblob.objectstore")

READING: Final = 8.0
"""Seconds within which a blob is read to prove it, rather than have its content sent again."""
_AT_ONCE: Final = 2
_REMEMBERED: Final = 8_192
_TELLING: Final = 5.0
"""Seconds that a doubt may take to be recorded."""


class Standing(Enum):
    PROVEN = "proven"
    UNKNOWN = "unknown"
    DOUBTED = "doubted"


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was found of the bytes that the metadata at a sequence names, as the chunks of `nuid`."""

    metadata: int
    good: bool
    nuid: str = ""

    def is_about(self, entry: Entry) -> bool:
        """Good is said of one metadata. Bad are the chunks, also if other metadata names them by now."""
        is_same = self.metadata == entry.seq and self.nuid in ("", entry.info.nuid)
        return is_same or (not self.good and self.nuid == entry.info.nuid)


class Proofs:
    """What is known of the blobs of one bucket."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._jetstream = objects.bucket.jetstream
        self._layout = objects.bucket.layout
        self._turns = Turns(_AT_ONCE)
        self._reading: dict[tuple[str, int], asyncio.Task[bool]] = {}
        self._waiting: dict[tuple[str, int], int] = {}
        self._doubted: OrderedDict[str, tuple[Record, bool]] = OrderedDict()
        """What was found to be bad, by name, and whether that is recorded."""
        self._read: OrderedDict[str, Record] = OrderedDict()
        """What was read and is good, by name: it counts if nothing can be recorded."""
        objects.bucket.on_renewal.append(self._read.clear)

    async def holds(self, entry: Entry, *, within: float = READING) -> bool:
        """Whether a put of its content may be answered by this entry; it is read for that if need be.

        Not if that takes longer than `within` seconds: then the content is to be stored again.
        `UnavailableError` or `DeadlineError` if most copies of the bucket cannot be asked.
        """
        if not entry.is_blob or not await is_lasting(self._objects.bucket, entry):
            return False
        if not await self._is_newest(entry):
            return False
        stored = await self._stored(entry.info.name)
        standing = self._standing(entry, stored)
        if standing is Standing.UNKNOWN:
            return await self._read_within(entry, stored.seq if stored else 0, within)
        return standing is Standing.PROVEN

    async def _is_newest(self, entry: Entry) -> bool:
        """Whether it was not deleted or replaced before this call, by whatever leader."""
        bucket = self._objects.bucket
        if not await bucket.is_replicated():
            return True
        await bucket.agree()
        newest = await self._objects.newest(entry.info.name)
        return newest is not None and newest.seq == entry.seq

    async def is_doubted(self, entry: Entry) -> bool:
        """Whether its bytes were found to be bad."""
        return self._standing(entry, await self._stored(entry.info.name)) is Standing.DOUBTED

    async def doubt(self, entry: Entry) -> None:
        """Its bytes are bad, or are missing: no put is to rely on them."""
        name = entry.info.name
        record = _found(entry, good=False)
        if not entry.is_blob or self._doubted.get(name) == (record, True):
            return
        log.error("blob.damaged", digest=name, advice="look for a disk that fails, and put the blob again")
        told = False
        try:
            async with asyncio.timeout(_TELLING):
                await self._record(name, record)
            told = True
        except (BlobError, TimeoutError) as error:
            log.warning("doubt.not_recorded", digest=name[:12], error=type(error).__name__)
        _remember(self._doubted, name, (record, told))

    async def forget(self, name: str, up_to: int) -> None:
        """Remove what is recorded of metadata that is gone: of that up to a sequence."""
        stored = await self._stored(name)
        record = _decode(stored) if stored is not None else None
        if stored is not None and (record is None or record.metadata <= up_to):
            await self._objects.bucket.removals.purge(self._layout.proof(name), up_to=stored.seq)

    async def _stored(self, name: str) -> Stored | None:
        return await self._jetstream.last_at_leader(self._layout.stream, self._layout.proof(name))

    def _standing(self, entry: Entry, stored: Stored | None) -> Standing:
        name = entry.info.name
        record = _decode(stored) if stored is not None else None
        if name in self._doubted and self._doubted[name][0].is_about(entry):
            return Standing.DOUBTED
        if record is not None and record.is_about(entry):
            return Standing.PROVEN if record.good else Standing.DOUBTED
        is_read = entry.info.is_written or self._read.get(name) == _found(entry, good=True)
        return Standing.PROVEN if is_read else Standing.UNKNOWN

    async def _read_within(self, entry: Entry, last_record: int, within: float) -> bool:
        """Read it, or wait for somebody else who does; the last who waits takes the reading along."""
        key = (entry.info.name, entry.seq)
        task = self._reading.get(key)
        if task is None:
            with on_behalf_of(Asker()):  # it may outlast the request that it is begun for
                task = self._reading[key] = asyncio.create_task(self._prove(entry, last_record))
        self._waiting[key] = self._waiting.get(key, 0) + 1
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            done, _ = await asyncio.wait({task}, timeout=within)
            asker().allow(loop.time() - began)
        finally:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key]
                del self._reading[key]
                task.cancel()
        return bool(done) and not task.cancelled() and task.result()

    async def _prove(self, entry: Entry, last_record: int) -> bool:
        name = entry.info.name
        try:
            is_good = await self._reads_well(entry)
        except BlobNotFoundError:  # deleted or replaced meanwhile
            return False
        except BlobCorruptError:
            is_good = False
        except BlobError:  # it cannot be told now
            return False
        if not is_good:
            await self.doubt(entry)
            return False
        record = _found(entry, good=True)
        _remember(self._read, name, record)
        try:
            await self._record(name, record, expected_last=last_record)
        except LostRaceError:
            stored = await self._stored(name)
            return self._standing(entry, stored) is Standing.PROVEN
        except BlobError as error:
            log.info("proof.not_recorded", digest=name[:12], error=error.name)
        return True

    async def _reads_well(self, entry: Entry) -> bool:
        hasher = ConcurrentHasher()
        async with aclosing(
            self._turns.share(self._chunks(entry), count=entry.info.chunks, each=16)
        ) as chunks:
            async for chunk in chunks:
                await hasher.update(chunk)
        return (await hasher.digest()).hex == entry.info.name

    async def _chunks(self, entry: Entry) -> AsyncIterator[bytes]:
        async for chunk in self._objects.read_whole(entry):
            yield chunk

    async def _record(self, name: str, record: Record, *, expected_last: int | None = None) -> None:
        data = msgspec.json.encode(record)
        await self._jetstream.publish(self._layout.proof(name), data, expected_last=expected_last)


def _found(entry: Entry, *, good: bool) -> Record:
    return Record(entry.seq, good, entry.info.nuid)


def _decode(stored: Stored) -> Record | None:
    try:
        return msgspec.json.decode(stored.data, type=Record)
    except NOT_DECODED:
        return None


def _remember(known: OrderedDict[str, T], name: str, value: T) -> None:
    known[name] = value
    known.move_to_end(name)
    if len(known) > _REMEMBERED:
        known.popitem(last=False)
