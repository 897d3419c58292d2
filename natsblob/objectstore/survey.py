"""Staged chunks as they are stored: whether they may be named as they lie (ADR 0014)."""

from __future__ import annotations

from array import array
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from natsblob import chunking, wire
from natsblob.broker.consumers import Delivered, passage
from natsblob.broker.jetstream import JetStream, Stored
from natsblob.broker.message import MALFORMED
from natsblob.chunking import Seen
from natsblob.errors import BadRequestError, BlobError, DigestMismatchError
from natsblob.hashing import ConcurrentHasher
from natsblob.objectstore.canonical import before_direct_read, before_headers_only, is_canonical
from natsblob.objectstore.info import Layout

_HEADERS_AT_ONCE: Final = 1_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


async def places_as_seen(
    jetstream: JetStream, layout: Layout, stage: str, seen: Seen
) -> Sequence[int] | None:
    """The stream sequence of each chunk, if they are stored just as they passed the worker.

    `None` if that is not so, or cannot be shown: nothing is known then. One copy is read, without payloads.
    To be called once the leader has counted as many messages as were seen: no other is read then, and servers
    do not survive that a consumer reads the headers of just any (ADR 0014).
    """
    seqs = array("Q")
    try:
        async with passage(
            jetstream,
            layout.stream,
            start=1,
            batch=_HEADERS_AT_ONCE,
            subject=layout.chunks(stage),
            headers_only=True,
        ) as copy:
            while len(seqs) < seen.chunks:
                messages = await copy.next(seen.chunks - len(seqs))
                if not messages:
                    return None
                for message in messages:
                    if not _is_as_seen(message, stage, len(seqs), seen):
                        return None
                    seqs.append(message.seq)
    except BlobError:
        return None
    return seqs


def _is_as_seen(message: Delivered, stage: str, index: int, seen: Seen) -> bool:
    block, size = before_headers_only(message.block)
    is_whole = size == chunking.length(index, seen.size, seen.chunk_size)
    return is_whole and is_canonical(block, stage, index, seen.sums[index])


async def staged_messages(
    jetstream: JetStream, layout: Layout, stage: str, *, count: int, batch: int
) -> AsyncIterator[Stored]:
    """The first `count` messages of a stage, in the order of the stream, `batch` at a time.

    If possible with their header blocks as they are stored; by direct reads, which do not show those to the
    last byte, from where that fails.
    """
    subject = layout.chunks(stage)
    left = count
    start = 1
    try:
        async with passage(jetstream, layout.stream, start=1, batch=batch, subject=subject) as copy:
            while left > 0 and (messages := await copy.next(left)):
                for message in messages:
                    start = message.seq + 1
                    left -= 1
                    yield _as_stored(message)
    except BlobError:
        if left == 0:
            raise
    rest = jetstream.messages(
        layout.stream, subject, count=left, batch=batch, start=start, before=count - left
    )
    async for stored in rest:
        yield stored


def _as_stored(message: Delivered) -> Stored:
    time = _EPOCH + timedelta(microseconds=message.time // 1000)
    return Stored(
        message.subject, message.seq, time, message.headers, message.data, message.block, is_verbatim=True
    )


class Survey:
    """Staged chunks as they are read back in stream order: are they all there, and as they have to be?

    `seen` is what passed a worker, if it saw it all: what is stored with these sums has the headers it saw.
    """

    def __init__(self, stage: str, size: int, chunks: int, own_chunk_size: int, seen: Seen | None) -> None:
        self._stage = stage
        self._size = size
        self._chunks = chunks
        self._own_chunk_size = own_chunk_size
        self._sums_seen = seen.sums if seen is not None else ()
        self._sums: dict[int, int] = {}
        self._lengths: dict[int, int] = {}
        self._canonical = 0
        self.seen = 0
        self.hasher = ConcurrentHasher()
        self.seqs: list[int] = []
        """Stream sequences of the chunks for as long as they came in order."""
        self.places: dict[int, int] = {}
        """Stream sequence of each chunk that was found."""
        self.newest: datetime | None = None

    async def add(self, stored: Stored) -> None:
        """Take the next message; `BadRequestError` if it cannot be a chunk of this upload."""
        index = wire.chunk_index(stored.headers)
        if index is None or index >= self._chunks:
            raise BadRequestError("a chunk without an index, or beyond the declared count, was published")
        if not stored.data or MALFORMED in stored.headers:
            raise BadRequestError(f"chunk {index} is empty, or a header of it is malformed")
        found = wire.crc32(stored.data)
        if stored.headers.get(wire.SUM, wire.sum_header(found)) != wire.sum_header(found):
            raise BadRequestError(f"chunk {index} is not what its {wire.SUM} says")
        if self._sums.setdefault(index, found) != found:
            raise BadRequestError(f"two different contents were published for chunk {index}")
        self._lengths[index] = len(stored.data)
        self.places.setdefault(index, stored.seq)
        if index == self.seen == len(self.seqs):
            self.seqs.append(stored.seq)
            self._canonical += self._has_own_form(index, stored, found)
            await self.hasher.update(stored.data)
        self.seen += 1
        self.newest = max(stored.time, self.newest or stored.time)

    def _has_own_form(self, index: int, stored: Stored, crc: int) -> bool:
        if len(stored.data) != chunking.length(index, self._size, self._own_chunk_size):
            return False
        if stored.is_verbatim:
            return is_canonical(stored.block, self._stage, index, crc)
        was_seen = index < len(self._sums_seen) and self._sums_seen[index] == crc
        return was_seen and is_canonical(before_direct_read(stored.block), self._stage, index, crc)

    @property
    def is_canonical(self) -> bool:
        """Whether the messages are the chunks, each once, in order, and as natsblob itself writes them."""
        return self.seen == len(self.seqs) == self._canonical == self._chunks

    def check(self) -> None:
        """`DigestMismatchError` if chunks are missing or do not add up to the declared size,
        `BadRequestError` if they are not all of one length."""
        if len(self._lengths) != self._chunks or sum(self._lengths.values()) != self._size:
            raise DigestMismatchError("the stored chunks are not those that were declared; nothing is stored")
        for index, length in self._lengths.items():
            if length != chunking.length(index, self._size, self._lengths[0]):
                raise BadRequestError(f"chunk {index} has another size than the chunks before it")
