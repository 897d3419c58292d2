"""Serving by digest what other clients stored under names of their own (ADR 0018).

Each such object is read, and gets an ADR-20 link from its digest to it. The object stays where it is and as
it is. If its chunks cannot be read singly as natsblob reads them, its bytes are copied into a blob instead.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from natsblob.broker.cleanup import shielded
from natsblob.broker.jetstream import Stored
from natsblob.broker.message import MALFORMED
from natsblob.broker.translate import LostRaceError
from natsblob.chunking import MESSAGE_RESERVE
from natsblob.digest import Digest
from natsblob.errors import BlobNotFoundError, InsufficientStorageError
from natsblob.hashing import ConcurrentHasher
from natsblob.objectstore.adopted import MAX_SUMS, sum_bytes
from natsblob.objectstore.info import Entry, claim_of, digest_of, is_address
from natsblob.objectstore.objects import Objects
from natsblob.objectstore.requirements import refuse_unfit
from natsblob.wire import CHUNK, ERROR_CODE, STATUS, SUM, chunk_sum

Outcome: TypeAlias = Literal["adopted", "copied", "present", "corrupt", "unreadable", "refused", "gone"]
OnBytes: TypeAlias = Callable[[int], None]
"""Told how many more bytes have been read."""

_BATCH_BYTES: Final = 8 * 1024 * 1024
_MANY: Final = 1_024
_TINY: Final = 4 * 1024
"""Chunks that are so many and of so few bytes each that they are worth being written anew."""
_ODD: Final = {STATUS, ERROR_CODE, MALFORMED}
"""Headers that would have a reader take a chunk for something else."""


@dataclass(frozen=True, slots=True)
class Adoption:
    """What became of one object that natsblob did not store."""

    name: str
    outcome: Outcome
    """`adopted`: it has a link now. `copied`: a blob has its bytes now. `present`: its content is served by
    digest already. `corrupt`: its bytes are not what its metadata says. `unreadable`: its metadata cannot be
    read. `refused`: there is no room, or no free name. `gone`: deleted or replaced meanwhile."""
    size: int
    digest: Digest | None
    """That of its bytes, if they were read; otherwise the one that its metadata claims, if it claims one."""
    reason: str = ""
    """Why it was not adopted, or why it was copied."""


@dataclass(slots=True)
class _Seen:
    """What an object's chunks turned out to be."""

    digest: Digest
    size: int
    chunks: int
    chunk_size: int
    sums: bytes
    why_not_linked: str
    """Why its chunks cannot be read as they lie, or "" if they can."""


async def adopt(objects: Objects, on_bytes: OnBytes | None = None) -> AsyncGenerator[Adoption, None]:
    """Give every object of another client a digest; yields what became of each.

    Blobs, links and delete markers are passed over. It may be interrupted and repeated, and run while the
    bucket is in use. `SetupError` if the bucket cannot be served.
    """
    refuse_unfit(objects.bucket.layout, (await objects.bucket.info()).config)
    adopter = _Adopter(objects, on_bytes)
    async for subject, entry in objects.all():
        if not entry.is_readable:
            name = entry.info.name or subject
            yield Adoption(name, "unreadable", 0, None, "its metadata cannot be read")
        elif entry.is_content and not _is_ours(entry):
            yield await adopter.adopt(subject, entry)


def _is_ours(entry: Entry) -> bool:
    """Whether it is a blob as natsblob writes them, or a copy of one. An empty one has no marks."""
    return entry.is_blob and (entry.info.chunks == 0 or entry.info.marks is not None)


class _Adopter:
    def __init__(self, objects: Objects, on_bytes: OnBytes | None) -> None:
        self._objects = objects
        self._layout = objects.bucket.layout
        self._on_bytes = on_bytes
        payload = objects.bucket.jetstream.connection.max_payload
        self._largest = payload - MESSAGE_RESERVE
        self._batch = max(1, _BATCH_BYTES // payload)

    async def adopt(self, subject: str, entry: Entry) -> Adoption:
        info, claimed = entry.info, claim_of(entry.info)
        if claimed and info.name != claimed.hex and await self._is_served(claimed, entry):
            return Adoption(info.name, "present", info.size, claimed)
        seen = await self._look(entry)
        if (claimed or seen.digest) != seen.digest or (claimed is None and info.size != seen.size):
            return await self._corrupt_or_gone(subject, entry, claimed)
        try:
            outcome, reason = await self._serve(subject, entry, seen)
        except InsufficientStorageError as error:
            outcome, reason = "refused", error.message
        except BlobNotFoundError:
            outcome, reason = "gone", ""
        return Adoption(info.name, outcome, seen.size, seen.digest, reason)

    async def _is_served(self, digest: Digest, entry: Entry) -> bool:
        """Whether the digest names content of its own, or leads to this or another object that was read."""
        named = await self._objects.find(digest.hex)
        if named is None or named.seq == entry.seq:
            return False
        try:
            served = await self._objects.resolve(named)
        except BlobNotFoundError:
            return False
        return digest_of(served.info) == digest and (served.has_sums or named.is_content)

    async def _corrupt_or_gone(self, subject: str, entry: Entry, claimed: Digest | None) -> Adoption:
        stored = await self._objects.bucket.jetstream.last_at_leader(self._layout.stream, subject)
        if stored is None or stored.seq != entry.seq:
            return Adoption(entry.info.name, "gone", entry.info.size, claimed)
        reason = "its bytes are not what its metadata says, or some are missing"
        return Adoption(entry.info.name, "corrupt", entry.info.size, claimed, reason)

    async def _serve(self, subject: str, entry: Entry, seen: _Seen) -> tuple[Outcome, str]:
        if await self._is_served(seen.digest, entry):
            return "present", ""
        newest = await self._objects.newest(seen.digest.hex)
        replaces = newest is not None and newest.seq == entry.seq
        if newest and not replaces and not newest.info.deleted and newest.info.link is None:
            return "refused", "another object, which is no blob, has its digest for a name"
        why = seen.why_not_linked or self._why_copied(subject, entry, seen)
        expected = newest.seq if newest else 0
        try:
            if not why:
                await self._objects.link(entry, seen.digest, seen.chunk_size, seen.sums, expected)
                return "adopted", ""
            return await self._copy(entry, seen, expected, why, replaces=replaces)
        except LostRaceError:
            return "present", ""

    def _why_copied(self, subject: str, entry: Entry, seen: _Seen) -> str:
        """Why a link would not do although the chunks are even: it leads to a name and relies on metadata."""
        info = entry.info
        if is_address(info.name):
            return "it has the name of a digest, which a put may take from it"
        if self._layout.meta(info.name) != subject:
            return "its name and its subject do not belong together"
        if (info.chunks, info.size) != (seen.chunks, seen.size):
            return "its metadata counts other chunks or bytes than there are"
        return ""

    async def _copy(
        self, entry: Entry, seen: _Seen, expected: int, why: str, *, replaces: bool
    ) -> tuple[Outcome, str]:
        written = await self._objects.write(self._bytes_of(entry))
        try:
            if written.digest != seen.digest:
                raise BlobNotFoundError("the object was deleted or replaced while it was read")
            await self._objects.name(written, seen.digest.hex, expected)
        except BaseException:
            await shielded(self._objects.drop(written.nuid))
            raise
        if replaces:
            await shielded(self._objects.drop(entry.info.nuid))
        return "copied", why

    async def _look(self, entry: Entry) -> _Seen:
        """Read an object as its chunks lie in the stream, whatever its metadata says of them."""
        hasher = ConcurrentHasher()
        sums = bytearray()
        size = chunks = chunk_size = last = 0
        why = ""
        async for stored in self._chunks_of(entry):
            data = stored.data
            await hasher.update(data)
            chunk_size = chunk_size or len(data)
            if not data or len(data) > chunk_size or (chunks and last < chunk_size):
                why = "its chunks have different lengths"
            elif _is_odd(stored, chunks):
                why = "its chunks have headers that are not those of an object"
            elif len(data) > self._largest or chunks >= MAX_SUMS:
                why = "its chunks are too large, or too many"
            if not why:
                sums += sum_bytes(data)
            last = len(data)
            chunks, size = chunks + 1, size + last
        if chunks > _MANY and chunk_size < _TINY:
            why = why or "its chunks are tiny, so that reading them would take long"
        return _Seen(await hasher.digest(), size, chunks, max(1, chunk_size), bytes(sums), why)

    async def _bytes_of(self, entry: Entry) -> AsyncIterator[bytes]:
        async for stored in self._chunks_of(entry):
            yield stored.data

    async def _chunks_of(self, entry: Entry) -> AsyncIterator[Stored]:
        jetstream, stream = self._objects.bucket.jetstream, self._layout.stream
        subject = self._layout.chunks(entry.info.nuid)
        count = await jetstream.count(stream, subject)
        async for stored in jetstream.messages(stream, subject, count=count, batch=self._batch):
            if self._on_bytes:
                self._on_bytes(len(stored.data))
            yield stored


def _is_odd(stored: Stored, index: int) -> bool:
    """Whether a chunk has headers by which a reader would misplace it, or not take it for a chunk."""
    headers = stored.headers
    own_sum = chunk_sum(stored.data) if SUM in headers else None
    is_own = headers.get(CHUNK, str(index)) == str(index) and headers.get(SUM) == own_sum
    return not is_own or bool(_ODD & headers.keys())
