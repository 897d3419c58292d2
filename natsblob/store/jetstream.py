"""Blobs in a JetStream Object Store bucket: an object whose name is its digest."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Sequence
from datetime import timedelta
from functools import partial
from typing import Final

from natsblob.broker.cleanup import shielded
from natsblob.broker.translate import LostRaceError
from natsblob.chunking import Seen, chained, check_cut
from natsblob.digest import Digest
from natsblob.errors import (
    BadRangeError,
    BlobCorruptError,
    BlobError,
    BlobNotFoundError,
    DigestMismatchError,
    InsufficientStorageError,
    UnavailableError,
)
from natsblob.hashing import ConcurrentHasher, digest_of_bytes
from natsblob.objectstore.cache import EntryCache
from natsblob.objectstore.info import Entry, digest_of
from natsblob.objectstore.names import END, Names
from natsblob.objectstore.objects import Objects
from natsblob.objectstore.proof import Proofs
from natsblob.objectstore.reserve import Reserve
from natsblob.objectstore.staging import Staging
from natsblob.objectstore.writer import Written
from natsblob.wire import CommitRequest, Info, Page

UPLOAD_EXPIRY: Final = timedelta(hours=1)
"""How long after its newest chunk an upload can still be committed."""
_RACES: Final = 8
_READINGS: Final = 3
"""Times that a blob may be replaced while it is read."""


class JetStreamStore:
    """A `Store` on a bucket, which also takes chunks from publishers and sends them to readers."""

    def __init__(
        self, objects: Objects, cache: EntryCache | None = None, *, upload_expiry: timedelta = UPLOAD_EXPIRY
    ) -> None:
        self._objects = objects
        self._cache = cache or EntryCache(objects.bucket.layout)
        objects.bucket.on_renewal.append(self._cache.clear)
        self.reserve = Reserve(objects.bucket)
        self._expiry = upload_expiry
        self._proofs = Proofs(objects)
        self._staging = Staging(objects, expiry=upload_expiry, proofs=self._proofs)
        self._names = Names(objects)

    @property
    def chunk_size(self) -> int:
        return self._objects.chunk_size

    async def stat(self, digest: Digest) -> Info:
        return info_of(digest, await self._find(digest))

    async def missing(self, digests: Sequence[Digest]) -> list[Digest]:
        unknown = [digest.hex for digest in digests if self._cache.get(digest.hex) is None]
        if not unknown:
            return []
        looked_up_at = self._cache.now()
        found = await self._objects.find_many(unknown, witness=self._cache.anyone())
        absent = set(unknown) - found.keys()
        for name, entry in found.items():
            if entry.is_blob:
                self._cache.add(entry, looked_up_at)
            elif not await self._leads(entry):
                absent.add(name)
        return [digest for digest in digests if digest.hex in absent]

    async def chunks(
        self,
        digest: Digest,
        first: int = 0,
        count: int | None = None,
        *,
        verify: bool = True,
        chunk_size: int | None = None,
    ) -> AsyncIterator[bytes]:
        entry = await self._find(digest)
        done = 0
        for _ in range(_READINGS):
            if chunk_size not in (None, entry.info.chunk_size):
                raise UnavailableError("the blob was replaced while it was looked up; a repeat is safe")
            left = None if count is None else count - done
            try:
                doubt = partial(self._proofs.doubt, entry)
                async for chunk in self._objects.read(
                    entry, first + done, left, verify=verify, unreadable=doubt
                ):
                    yield chunk
                    done += 1
            except (BlobNotFoundError, BlobCorruptError) as error:
                entry = await self._instead_of(digest, entry, error, is_begun=done > 0)
            else:
                return
        raise UnavailableError("others replace the blob all the time; a repeat is safe")

    async def _instead_of(self, digest: Digest, entry: Entry, error: BlobError, *, is_begun: bool) -> Entry:
        """What has replaced an entry whose chunks are not what they should be; else `error` is raised."""
        self._cache.forget(digest.hex)  # deleted unheard, or replaced, or what a replica that lags still had
        newest = await self._own(digest) or await self._find(digest)
        is_same = newest.info.nuid == entry.info.nuid
        if is_same or (is_begun and newest.info.chunk_size != entry.info.chunk_size):
            if is_same and isinstance(error, BlobCorruptError):
                await self._proofs.doubt(newest)
            raise error
        return newest

    async def doubt(self, digest: Digest) -> None:
        if (entry := await self._own(digest)) is not None:
            await self._proofs.doubt(entry)

    async def held(self, digest: Digest) -> Info | None:
        entry = await self._held(digest)
        return info_of(digest, entry) if entry else None

    async def put(self, source: AsyncIterable[bytes], *, expected: Digest | None = None) -> Info:
        """Store bytes. The leader is asked first if that is likely to spare writing known content."""
        blocks = aiter(source)
        head, is_all = await _head(blocks, self.chunk_size)
        if is_all:
            return await self._put_small(b"".join(head), expected)
        if expected is not None and (entry := await self._held(expected)) is not None:
            await _check(chained(head, blocks), expected)
            return info_of(expected, entry)
        written = await self._objects.write(self._within_reserve(chained(head, blocks)))
        if expected is not None and written.digest != expected:
            await shielded(self._objects.drop(written.nuid))
            raise DigestMismatchError
        return await self._name(written)

    async def _put_small(self, data: bytes, expected: Digest | None) -> Info:
        digest = await digest_of_bytes(data)
        if expected is not None and digest != expected:
            raise DigestMismatchError
        likely = not data or self._cache.get(digest.hex) is not None
        if likely and (entry := await self._held(digest)) is not None:
            return info_of(digest, entry)
        try:
            await self.reserve.take(len(data))
        except InsufficientStorageError:
            if entry := await self._held(digest):
                return info_of(digest, entry)
            raise
        return await self._name(await self._objects.write_one(data, digest))

    async def _within_reserve(self, blocks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for block in blocks:
            await self.reserve.take(len(block))
            yield block

    async def delete(self, digest: Digest) -> Info:
        """Remove the blob. What was adopted from another name keeps that name and its bytes."""
        self._cache.forget(digest.hex)
        entry = await self._find(digest)
        removed = await self._objects.delete(digest.hex)
        self._cache.forget(digest.hex)
        await shielded(self._proofs.forget(digest.hex, removed.seq))
        return info_of(digest, entry)

    async def delegate(
        self, digest: Digest, first: int, count: int, reply: str, *, chunk_size: int | None = None
    ) -> bool:
        entry = await self._find(digest)
        check_cut(entry.info.size, entry.info.chunk_size, chunk_size)
        if entry.info.chunks == 0:
            return False
        if first >= entry.info.chunks:
            raise BadRangeError(f"the blob has {entry.info.chunks} chunks", chunks=entry.info.chunks)
        return await self._objects.delegate(entry, first, count, reply)

    def chunk_subject(self, stage: str) -> str:
        return self._objects.bucket.chunk_subject(stage)

    async def direct_subject(self, stage: str, *, anew: bool = False) -> str | None:
        return await self._objects.bucket.direct_subject(stage, anew=anew)

    async def staged(self, stage: str) -> list[int]:
        return await self._staging.stored(stage)

    async def commit(self, stage: str, request: CommitRequest, seen: Seen | None) -> Info:
        looked_up_at = self._cache.now()
        committed = await self._staging.commit(stage, request, seen)
        self._cache.add(committed.entry, looked_up_at)
        digest = Digest.parse(committed.entry.info.name)
        return info_of(digest, committed.entry, created=committed.created)

    async def is_settled(self, stage: str) -> bool:
        return await self._staging.is_settled(stage)

    async def abort(self, stage: str) -> None:
        await self._staging.abort(stage)

    async def _find(self, digest: Digest) -> Entry:
        if (cached := self._cache.get(digest.hex)) is not None:
            return cached
        looked_up_at = self._cache.now()
        entry = await self._objects.find(digest.hex)
        if entry is None:
            raise BlobNotFoundError(f"no blob {digest}")
        if entry.is_blob:
            self._cache.add(entry, looked_up_at)
            return entry
        is_link = entry.info.link is not None
        entry = await self._objects.resolve(entry)
        if not is_link or digest_of(entry.info) != digest:
            what = (
                "the object that it was adopted from has changed"
                if is_link
                else "the object of that name has other content"
            )
            raise BlobNotFoundError(f"no blob {digest}: {what}")
        return entry

    async def _own(self, digest: Digest) -> Entry | None:
        """The blob as the leader has it, with bytes of its own: what is adopted may go any time."""
        entry = await self._objects.newest(digest.hex)
        return entry if entry and entry.is_blob else None

    async def _held(self, digest: Digest) -> Entry | None:
        """The blob as `_own`, if a put of its content may be answered by it (ADR 0013)."""
        entry = await self._own(digest)
        return entry if entry and await self._proofs.holds(entry) else None

    async def _leads(self, link: Entry) -> bool:
        if link.info.link is None:
            return False
        try:
            target = await self._objects.resolve(link)
        except BlobNotFoundError:
            return False
        digest = digest_of(target.info)
        return digest is not None and digest.hex == link.info.name

    async def _listed(self, entry: Entry) -> Info | None:
        """What a list shows of an object with the name of a digest; nothing if it is no blob."""
        if not entry.is_blob and not await self._leads(entry):
            return None
        try:
            return info_of(Digest.parse(entry.info.name), await self._objects.resolve(entry))
        except BlobNotFoundError:
            return None

    async def _name(self, written: Written) -> Info:
        """Give written chunks their address, unless that has bytes already: then they are dropped."""
        name = written.digest.hex
        before: Entry | None = None
        for _ in range(_RACES):
            looked_up_at = self._cache.now()
            written.check_age(self._expiry)
            try:
                entry = await self._objects.name(written, name, before.seq if before else 0)
            except LostRaceError:
                before = await self._objects.newest_or_drop(name, written.nuid)
            else:
                await self._replaced(before, entry)
                self._cache.add(entry, looked_up_at)
                return info_of(written.digest, entry, created=True)
            if before is not None and await self._proofs.holds(before):
                await shielded(self._objects.drop(written.nuid))
                return info_of(written.digest, before)
            if before is not None and written.chunks and before.seq > written.marks.seqs[0]:
                # Ours may have been named, unheard, and be gone since: then its chunks are purged.
                await shielded(self._objects.drop(written.nuid))
                raise UnavailableError("the blob was deleted while it was put; a repeat is safe")
        await shielded(self._objects.drop(written.nuid))
        raise UnavailableError("others put and delete the blob all the time; a repeat is safe")

    async def _replaced(self, before: Entry | None, now: Entry) -> None:
        """Let go of what an entry has replaced."""
        await self._objects.clear(before, now)
        if before is not None and not before.info.deleted:
            await shielded(self._proofs.forget(now.info.name, before.seq))

    async def list(self, *, after: Digest | None = None, limit: int = 1000, prefix: str = "") -> Page:
        position = max(after.hex if after else "", prefix[:63])
        blobs: list[Info] = []
        while len(blobs) < limit and not _is_behind(position, prefix):
            names, position = await self._names.behind(position, limit - len(blobs))
            names = [name for name in names if name.startswith(prefix)]
            found = await self._objects.find_many(names)
            blobs += [info for name in names if name in found and (info := await self._listed(found[name]))]
        is_end = _is_behind(position, prefix)
        return Page(blobs, None if is_end or not blobs else blobs[-1].digest)


def _is_behind(position: str, prefix: str) -> bool:
    """Whether no name above this one begins with `prefix`."""
    return position == END or position[: len(prefix)] > prefix


def info_of(digest: Digest, entry: Entry, *, created: bool = False) -> Info:
    """What the wire says of a blob."""
    info = entry.info
    return Info(digest, info.size, info.chunks, info.chunk_size, created, entry.modified)


async def _head(blocks: AsyncIterator[bytes], most: int) -> tuple[list[bytes], bool]:
    """The first blocks, until they are more than `most` bytes, and whether they are all there is."""
    head: list[bytes] = []
    size = 0
    async for block in blocks:
        head.append(block)
        size += len(block)
        if size > most:
            return head, False
    return head, True


async def _check(source: AsyncIterable[bytes], expected: Digest) -> None:
    hasher = ConcurrentHasher()
    async for block in source:
        await hasher.update(block)
    if await hasher.digest() != expected:
        raise DigestMismatchError
