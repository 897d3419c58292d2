"""The objects of one bucket by name: find, put, read, list, link and delete (ADR-20)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Coroutine, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, Final, TypeVar

from natsblob.broker.cleanup import shielded
from natsblob.broker.jetstream import MAX_SUBJECTS, Stored
from natsblob.broker.message import SUBJECT
from natsblob.broker.retry import retrying
from natsblob.broker.scan import Subjects, every
from natsblob.broker.translate import LostRaceError
from natsblob.chunking import DEFAULT_CHUNK_SIZE, chunk_size_for
from natsblob.digest import Digest
from natsblob.errors import (
    BlobCorruptError,
    BlobNotFoundError,
    InsufficientStorageError,
    UnavailableError,
    UnprovenError,
)
from natsblob.hashing import ConcurrentHasher
from natsblob.objectstore.adopted import SUM_BYTES, Sums, followed, link_to
from natsblob.objectstore.bucket import Bucket
from natsblob.objectstore.copies import UnreadableError, most_counted, newer_elsewhere
from natsblob.objectstore.expiry import has_expired
from natsblob.objectstore.info import (
    MARKS_KEY,
    WRITTEN_KEY,
    Entry,
    ObjectInfo,
    Options,
    digest_of,
    encode_info,
    encode_marks,
    is_address,
    is_plain_subject,
    new_nuid,
)
from natsblob.objectstore.reader import MOST_MESSAGES, ChunkSource, Unreadable, exact_start_of, read_chunks
from natsblob.objectstore.writer import Written, write_chunk, write_chunks

T = TypeVar("T")

WINDOW_BYTES: Final = 8 * 1024 * 1024
"""Bytes unanswered in a write and asked for in one window of a read; batches have no flow control."""
_LONGEST_NAME: Final = 64 * 1024
"""Characters of a name: with more, no server takes the subject that an object would lie on."""
_RACES: Final = 8
_LOOKS: Final = 3
"""Times that metadata is looked for that is counted: it may come and go in between, but hardly each time."""
_AT_ONCE: Final = 32
_LEFT_OUT: Final = 6
_LEFT_OUT_OF_SEVERAL: Final = 9
"""Times that the leader must leave a chunk out to call it corrupt. With several copies, twelve answers have
come from copies at random by then (ADR 0011): three before the leader is asked, and one each time."""
_PATIENCE: Final = 2.0
"""Seconds for which the leader may count fewer names than other copies, while replaced ones are removed."""


class Objects:
    """The objects of a bucket.

    What is found is good at once. What is missing is confirmed by the leader, and by more copies, because
    the leader's may be damaged (ADR 0011).
    """

    def __init__(
        self, bucket: Bucket, *, chunk_size: int = DEFAULT_CHUNK_SIZE, window_bytes: int = WINDOW_BYTES
    ) -> None:
        self.bucket = bucket
        self._jetstream = bucket.jetstream
        self._layout = bucket.layout
        self._largest_chunk = chunk_size
        self._window_bytes = window_bytes

    @property
    def chunk_size(self) -> int:
        """Bytes in the chunks of what is written: fewer if the server takes less by now."""
        return chunk_size_for(self._jetstream.connection.max_payload, self._largest_chunk)

    @property
    def window(self) -> int:
        """Chunks in one window."""
        return max(1, min(self._window_bytes // self.chunk_size, MOST_MESSAGES))

    async def find(self, name: str) -> Entry | None:
        """The object of this name, or `None` if no copy that was asked has one. Links are not followed."""
        stored = await self._jetstream.last(self._layout.stream, self._layout.meta(name))
        if stored is not None and not (entry := Entry.decode(stored)).info.deleted:
            return entry
        newest = await self.newest_anywhere(name)
        return newest if newest and not newest.info.deleted else None

    async def newest(self, name: str) -> Entry | None:
        """The newest metadata of this name as the leader has it, which may be a delete marker."""
        stored = await self._jetstream.last_at_leader(self._layout.stream, self._layout.meta(name))
        return Entry.decode(stored) if stored else None

    async def newest_anywhere(self, name: str) -> Entry | None:
        """As `newest`; if the leader has none, or a delete marker, as the copy that has the newest.

        `UnreadableError` if the leader counts what nobody gives: a server answers "not found" also while
        its disk fails.
        """
        return await self._or_newer(name, await self.newest(name))

    async def _or_newer(self, name: str, leads: Entry | None) -> Entry | None:
        if leads and not leads.info.deleted:
            return leads
        newer = await newer_elsewhere(self.bucket, [name], {name: leads} if leads else {})
        if newest := newer.get(name, leads):
            return newest
        for _ in range(_LOOKS):
            if not await self._jetstream.count(self._layout.stream, self._layout.meta(name)):
                return None
            if stored_meanwhile := await self.newest(name):
                return stored_meanwhile
        await self.bucket.removals.halt()
        raise UnreadableError(
            "metadata is there and cannot be read: look at the disk of the server that leads"
        )

    async def find_many(self, names: Sequence[str], *, witness: str | None = None) -> dict[str, Entry]:
        """Those of `names` that exist, as `find` would tell.

        `witness` may name an object that is there. An answer that has it tells how far the replica had
        read; if that is as far as the leader was before, what is missing in it needs no confirmation.
        """
        least = (await self.bucket.info()).state.last_seq if len(names) > _AT_ONCE else None
        found: dict[str, Entry] = {}
        for some in _groups(list(dict.fromkeys(names)), MAX_SUBJECTS):
            subjects = [self._layout.meta(name) for name in (*some, witness) if name is not None]
            latest = await self._jetstream.latest(self._layout.stream, subjects)
            here = {entry.info.name: entry for entry in map(Entry.decode, latest.messages)}
            if least is None or latest.up_to < least:
                absent = [name for name in some if name not in here or here[name].info.deleted]
                for few in _groups(absent, _AT_ONCE):
                    confirmed = await asyncio.gather(*map(self.newest, few))
                    here.update((entry.info.name, entry) for entry in confirmed if entry)
            absent = [name for name in some if name not in here or here[name].info.deleted]
            here.update(await newer_elsewhere(self.bucket, absent, here))
            found.update((name, here[name]) for name in some if name in here and not here[name].info.deleted)
        return found

    def subjects(self) -> Subjects:
        """The subjects of all metadata."""
        return Subjects(self._jetstream, self._layout.stream, self._layout.all_meta)

    async def most_metadata(self, start: int = 1) -> int:
        """How much metadata there is from a stream sequence on, as the copy says that has most of it.

        To be asked before it is read: what is stored meanwhile makes more of it, and not less.
        """
        if not await self.bucket.is_replicated():
            return 0
        return await most_counted(self._jetstream, self._layout.stream, self._layout.all_meta, start)

    async def metadata(self, *, start: int = 1) -> AsyncIterator[Stored]:
        """The metadata at stream sequence `start` and after, as of now or later, in the order of the stream.

        Delete markers too. What is replaced meanwhile may come twice. `UnavailableError` at the end if
        a replica had not caught up. What a damaged copy has lost is not there.
        """
        newest = await self._jetstream.last_at_leader(self._layout.stream, self._layout.all_meta)
        seq = start - 1
        async for stored in every(self._jetstream, self._layout.stream, self._layout.all_meta, start=start):
            seq = stored.seq
            yield stored
        if newest is not None and seq < newest.seq:
            raise UnavailableError("a replica has not caught up yet")

    async def named_chunks(self, among: AbstractSet[str]) -> set[str]:
        """Which of these nuids and names belong to objects that are there, as of now or later.

        `UnavailableError` if that cannot be told. A delete marker names nothing: if its purge got
        lost, the chunks are to be collected.
        """
        return await retrying(lambda: self._named_chunks(among), patience=_PATIENCE)

    async def _named_chunks(self, among: AbstractSet[str]) -> set[str]:
        most = await most_counted(self._jetstream, self._layout.stream, self._layout.all_meta)
        named: set[str] = set()
        counted = 0
        async for stored in self.metadata():
            counted += 1
            info = Entry.decode(stored).info
            if not info.deleted:
                named |= among & ({info.nuid, info.name} if is_address(info.name) else {info.nuid})
        believe(counted, most)
        return named

    async def resolve(self, entry: Entry) -> Entry:
        """The object that a link points to, or `entry` itself. Links go one level deep."""
        link = entry.info.link
        if link is None:
            return entry
        is_here = link.bucket == self.bucket.name and 0 < len(link.name or "") <= _LONGEST_NAME
        target = await self.find(link.name) if link.name and is_here else None
        if target is None or not target.is_content:
            raise BlobNotFoundError("the object that this link points to is gone")
        return followed(entry, target)

    def read(
        self,
        entry: Entry,
        first: int = 0,
        count: int | None = None,
        *,
        verify: bool = True,
        unreadable: Unreadable | None = None,
    ) -> AsyncIterator[bytes]:
        """Chunks of an object in order; with `verify` each against its sum, or `UnprovenError`.

        `unreadable` is told, while it is still tried again, if a chunk is there and cannot be read.
        """
        if verify and not entry.has_sums:
            raise UnprovenError("nothing is stored that would prove a part of this object")
        stop = entry.info.chunks if count is None else min(entry.info.chunks, first + count)
        if verify and entry.sums is not None:
            return self._read_adopted(entry, entry.sums, min(first, stop), stop)
        return self._read(entry.info, min(first, stop), stop, verify=verify, unreadable=unreadable)

    def _read(
        self,
        info: ObjectInfo,
        first: int,
        stop: int,
        *,
        verify: bool,
        sums: Sums | None = None,
        unreadable: Unreadable | None = None,
    ) -> AsyncIterator[bytes]:
        async def still_there() -> None:
            await self._still_there(info)

        async def left_out(times: int) -> None:
            await self.bucket.removals.halt()
            if unreadable is not None:
                await unreadable()
            if times >= (_LEFT_OUT_OF_SEVERAL if await self.bucket.is_replicated() else _LEFT_OUT):
                raise BlobCorruptError("a chunk is stored and cannot be read on any copy that was asked")

        window = max(1, min(self._window_bytes // info.chunk_size, MOST_MESSAGES))
        source = ChunkSource(
            self._jetstream,
            self._layout,
            info,
            still_there,
            window=window,
            verify=verify,
            sums=sums,
            left_out=left_out,
        )
        if stop - first == 1 and (seq := exact_start_of(info, first)) is not None:
            return self._read_one(source, first, seq)
        return read_chunks(source, self._jetstream, range(first, stop), window=window)

    async def _read_adopted(
        self, entry: Entry, kept: ObjectInfo, first: int, stop: int
    ) -> AsyncIterator[bytes]:
        """As `_read`, compared with the sums that were taken when the object was adopted."""
        begin, skip = divmod(first * SUM_BYTES, kept.chunk_size)
        end = -(-stop * SUM_BYTES // kept.chunk_size)
        try:
            raw = b"".join([part async for part in self._read(kept, begin, end, verify=True)])
        except (BlobNotFoundError, BlobCorruptError) as error:
            raise UnprovenError("the sums of this object's chunks are gone") from error
        sums = Sums(first, raw[skip:])
        async for chunk in self._read(entry.info, first, stop, verify=True, sums=sums):
            yield chunk

    async def read_whole(self, entry: Entry, *, unreadable: Unreadable | None = None) -> AsyncIterator[bytes]:
        """All chunks of an object, for those who compare the digest: also of one without sums."""
        done = 0
        try:
            async for chunk in self.read(entry, unreadable=unreadable):
                yield chunk
                done += 1
        except UnprovenError:
            async for chunk in self.read(entry, done, verify=False, unreadable=unreadable):
                yield chunk

    async def _read_one(self, source: ChunkSource, index: int, seq: int) -> AsyncIterator[bytes]:
        """One chunk by one request, if it is where the metadata says; otherwise as any other."""
        frame = await self._jetstream.frame_at(self._layout.stream, seq)
        if (
            frame is not None
            and frame.headers.get(SUBJECT) == source.subject
            and source.place(frame) == index
        ):
            yield frame.data
            return
        async for chunk in read_chunks(source, self._jetstream, range(index, index + 1), window=1):
            yield chunk

    async def get(self, name: str) -> AsyncIterator[bytes]:
        """The bytes of an object; `BlobCorruptError` at the end if they are not what its digest says."""
        entry = await self.find(name)
        if entry is None:
            raise BlobNotFoundError(f"no object {name!r}")
        entry = await self.resolve(entry)
        if not entry.is_readable:
            raise BlobCorruptError(f"the metadata of object {name!r} cannot be read")
        hasher = ConcurrentHasher()
        async for chunk in self.read_whole(entry):
            await hasher.update(chunk)
            yield chunk
        if await hasher.digest() != digest_of(entry.info):
            raise BlobCorruptError(f"the bytes of object {name!r} are not what its digest says")

    async def delegate(self, entry: Entry, first: int, count: int, reply: str) -> bool:
        """Have a replica send chunks to `reply`, and whether that can be: it needs the first one's place."""
        start = exact_start_of(entry.info, first)
        if start is None:
            return False
        subject = self._layout.chunks(entry.info.nuid)
        await self._jetstream.request_batch(self._layout.stream, subject, start, count, reply)
        return True

    async def write(self, source: AsyncIterable[bytes]) -> Written:
        """Store bytes as chunks that nothing names yet; if that fails, they are dropped again."""
        written, seqs = await self._write(source, self.window)
        if all(before < after for before, after in pairwise(seqs)):
            return written
        # Every reader goes by the order of the stream, and other clients know no other order.
        try:
            in_order, _ = await self._write(self._stored_at(seqs), 1)
        finally:
            await shielded(self.drop(written.nuid))
        if in_order.digest != written.digest:
            await shielded(self.drop(in_order.nuid))
            raise BlobCorruptError("stored chunks read back as other bytes; nothing became visible")
        return in_order

    async def _write(self, source: AsyncIterable[bytes], window: int) -> tuple[Written, Sequence[int]]:
        nuid = new_nuid()
        return await self._or_drop(
            nuid,
            write_chunks(
                self._jetstream, self._layout, nuid, source, chunk_size=self.chunk_size, window=window
            ),
        )

    async def _stored_at(self, seqs: Sequence[int]) -> AsyncIterator[bytes]:
        for seq in seqs:
            stored = await self._jetstream.at(self._layout.stream, seq)
            stored = stored or await self._jetstream.at_leader(self._layout.stream, seq)
            if stored is None:
                raise UnavailableError("chunks were purged while they were written; a repeat is safe")
            yield stored.data

    async def write_one(self, data: bytes, digest: Digest) -> Written:
        """Store bytes that fit one chunk, as `write` does."""
        nuid = new_nuid()
        return await self._or_drop(
            nuid, write_chunk(self._jetstream, self._layout, nuid, data, digest, chunk_size=self.chunk_size)
        )

    async def newest_or_drop(self, name: str, nuid: str) -> Entry | None:
        """As `newest`; if it cannot be told, chunks that were written for this name are dropped."""
        return await self._or_drop(nuid, self.newest(name))

    async def _or_drop(self, nuid: str, writing: Coroutine[Any, Any, T]) -> T:
        try:
            return await writing
        except BaseException:
            await shielded(self.drop(nuid))
            raise

    async def name(self, written: Written, name: str, expected_last: int) -> Entry:
        """Make written chunks the object `name`, if the newest metadata is still at `expected_last`.

        `LostRaceError` if it is not, and then these chunks have no name and will not get this one.
        """
        info = ObjectInfo(
            name=name,
            bucket=self.bucket.name,
            nuid=written.nuid,
            size=written.size,
            chunks=written.chunks,
            digest=written.digest.adr20(),
            metadata={
                MARKS_KEY: encode_marks(written.marks),
                **({WRITTEN_KEY: written.nuid} if written.is_proven else {}),
            },
            options=Options(max_chunk_size=written.chunk_size),
        )
        entry = await self._publish(info, expected_last)
        if written.chunks and entry.seq <= written.marks.seqs[-1]:
            await shielded(self.bucket.removals.purge(self._layout.meta(name), up_to=entry.seq))
            raise UnavailableError("the stream was made anew while the blob was stored; a repeat is safe")
        return entry

    async def link(
        self, target: Entry, digest: Digest, chunk_size: int, sums: bytes, expected_last: int
    ) -> Entry:
        """Make a digest a link to an object whose bytes were read: `sums` are those of its chunks."""

        async def source() -> AsyncIterator[bytes]:
            yield sums

        written = await self.write(source())
        return await self._or_drop(
            written.nuid,
            self._publish(link_to(self.bucket.name, target, digest, chunk_size, written), expected_last),
        )

    async def delete(self, name: str) -> Entry:
        """Remove an object and its chunks, and return what was removed."""
        for _ in range(_RACES):
            leads = await self.newest(name)
            entry = await self._or_newer(name, leads)
            if entry is None or entry.info.deleted:
                raise BlobNotFoundError(f"no object {name!r}")
            marker = ObjectInfo(name=name, bucket=self.bucket.name, nuid=entry.info.nuid, deleted=True)
            try:
                await self._mark_deleted(marker, leads)
            except LostRaceError:
                continue
            if entry.is_readable and entry.info.nuid:
                await shielded(self.drop(entry.info.nuid))
            return entry
        raise UnavailableError(f"others replace object {name!r} all the time; a repeat is safe")

    async def _mark_deleted(self, marker: ObjectInfo, leads: Entry | None) -> None:
        """Put a delete marker in the place of what the leader has.

        If there is no room, what it replaces is purged before, or the chunks as well (ADR 0017).
        """
        try:
            await self._publish(marker, leads.seq if leads else 0)
        except InsufficientStorageError:
            if leads is None or await self.bucket.removals.are_halted():
                raise
        else:
            return
        subject = self._layout.meta(marker.name)
        await self.bucket.removals.purge(subject, up_to=leads.seq)
        with suppress(InsufficientStorageError):
            await self._publish(marker, 0)
            return
        if marker.nuid:
            await self.drop(marker.nuid)
        with suppress(InsufficientStorageError):
            await self._publish(marker, 0)
            return
        # A commit that begins now finds no chunks; one that has just named them is undone.
        newest = await self.newest(marker.name)
        if newest and newest.info.nuid == marker.nuid:
            await self.bucket.removals.purge(subject, up_to=newest.seq)

    async def all(self) -> AsyncIterator[tuple[str, Entry]]:
        """All metadata and its subjects, which not every client encodes alike; also what cannot be read."""
        some: list[str] = []
        async for subject, _ in self.subjects():
            if not is_plain_subject(subject):
                yield subject, Entry(ObjectInfo("", "", ""), 0, datetime.now(UTC), is_readable=False)
                continue
            some.append(subject)
            if len(some) == _AT_ONCE:
                for found in await self._newest_on(some):
                    yield found
                some = []
        for found in await self._newest_on(some):
            yield found

    async def _newest_on(self, subjects: Sequence[str]) -> Sequence[tuple[str, Entry]]:
        if not subjects:
            return []
        latest = await self._jetstream.latest(self._layout.stream, subjects)
        here = {stored.subject: stored for stored in latest.messages}
        for subject in (one for one in subjects if one not in here):
            if stored := await self._jetstream.last_at_leader(self._layout.stream, subject):
                here[subject] = stored
        return [(subject, Entry.decode(here[subject])) for subject in subjects if subject in here]

    async def drop(self, nuid: str) -> None:
        """Purge the chunks of an object that nothing names and nothing can name any more."""
        await self.bucket.removals.purge(self._layout.chunks(nuid))

    async def clear(self, before: Entry | None, now: Entry) -> None:
        """Purge the chunks of what an object has replaced.

        Not those of another client's object: its metadata may be a copy, and the chunks be those of a blob.
        Collection removes them, if nothing names them.
        """
        if before is None or not (before.is_blob or (before.is_readable and before.info.link)):
            return
        if before.info.nuid and before.info.nuid != now.info.nuid:
            await shielded(self.drop(before.info.nuid))

    async def _publish(self, info: ObjectInfo, expected_last: int) -> Entry:
        """Publish metadata, once. A `LostRaceError` means that somebody else's is there, not ours."""
        subject = self._layout.meta(info.name)
        try:
            ack = await self._jetstream.publish(
                subject,
                encode_info(info),
                expected_last=expected_last,
            )
        except LostRaceError:
            newest = await self.newest(info.name)
            if newest and newest.info.nuid == info.nuid and newest.info.deleted == info.deleted:
                return newest
            raise
        if expected_last:
            await shielded(self.keep_newest(info.name))
        return Entry(info, ack.seq, datetime.now(UTC))

    async def keep_newest(self, name: str) -> int:
        """Remove metadata that newer one replaces, and return how much that was.

        Not by a rollup: a bucket may forbid them, for safety.
        """
        return await self.keep_newest_on(self._layout.meta(name))

    async def keep_newest_on(self, subject: str) -> int:
        """As `keep_newest`, by the subject of the metadata: not every client encodes names alike."""
        if not is_plain_subject(subject):  # else it may be a pattern
            return 0
        return await self.bucket.removals.purge(subject, keep=1)

    async def _still_there(self, info: ObjectInfo) -> None:
        """Find out why chunks of an object do not come."""
        subject = self._layout.chunks(info.nuid)
        stored = await self._jetstream.count(self._layout.stream, subject)
        if stored < info.chunks and await self.bucket.is_replicated():
            stored = max(stored, await most_counted(self._jetstream, self._layout.stream, subject))
        if stored >= info.chunks:
            return
        newest = await self.newest_anywhere(info.name)
        if newest is None or newest.info.nuid != info.nuid or newest.info.deleted:
            raise BlobNotFoundError("the object was deleted or replaced while it was read")
        if await has_expired(self.bucket, info):
            raise BlobNotFoundError("the chunks of the object have expired, and its metadata is about to")
        raise BlobCorruptError(f"{info.chunks - stored} of {info.chunks} chunks are not stored any more")


def believe(counted: int, most: int) -> None:
    """`UnavailableError` if less metadata was listed than a copy counts."""
    if counted < most:
        raise UnavailableError(
            "the server that leads the bucket has lost names of objects: run `natsblob verify --replicas`"
        )


def _groups(names: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (names[start : start + size] for start in range(0, len(names), size))
