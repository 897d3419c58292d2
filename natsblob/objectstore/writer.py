"""Writing the chunks of one object: windowed, acknowledged, hashed on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from natsblob import wire
from natsblob.broker.jetstream import JetStream
from natsblob.broker.publish import PublishWindow
from natsblob.chunking import rechunk
from natsblob.digest import Digest
from natsblob.errors import TooLargeError, UnavailableError
from natsblob.hashing import ConcurrentHasher
from natsblob.objectstore.info import Layout
from natsblob.wire import Marks, marks_of

PATIENCE = 30.0
"""Seconds without an ack after which a write gives up; an election takes 4 to 9."""


NAMING: Final = timedelta(minutes=5)
"""Longer than any request takes from its last chunk to the name."""


def naming_within(expiry: timedelta) -> timedelta:
    """How long chunks may wait for their name if uploads expire after `expiry`: half as long as they
    are left alone by collection."""
    return max(expiry, NAMING)


@dataclass(frozen=True, slots=True)
class Written:
    """The chunks of an object that nothing names yet."""

    nuid: str
    size: int
    chunks: int
    chunk_size: int
    digest: Digest
    marks: Marks
    since: float
    """By the clock of the event loop: when the last of them was sent, or it was decided to keep them."""
    is_proven: bool = True
    """Whether a worker wrote them itself, or has read them as they are stored."""

    def check_age(self, expiry: timedelta) -> None:
        """`UnavailableError` if they are too old to be named: they may have been collected."""
        if _now() - self.since > naming_within(expiry).total_seconds():
            raise UnavailableError("the chunks have waited too long for their name; a repeat is safe")


async def write_chunks(
    jetstream: JetStream,
    layout: Layout,
    nuid: str,
    source: AsyncIterable[bytes],
    *,
    chunk_size: int,
    window: int,
) -> tuple[Written, Sequence[int]]:
    """Store the bytes of `source` as the chunks of `nuid`; all of them are acknowledged on return.

    Also returns the stream sequence of each. They are not ascending if a chunk had to be sent again
    while later ones were on their way.

    If it raises, chunks may have been stored: they are the caller's to purge.
    """
    hasher = ConcurrentHasher()
    since = _now()
    publishing = PublishWindow(
        jetstream.connection, layout.chunks(nuid), message_id=nuid, window=window, patience=PATIENCE
    )
    with _smaller_next_time(), publishing as publisher:
        async for chunk in rechunk(source, chunk_size):
            await hasher.update(chunk)
            since = _now()
            await publisher.send(chunk)
        await publisher.finish()
    written = Written(
        nuid=nuid,
        size=await hasher.size(),
        chunks=publisher.sent,
        chunk_size=chunk_size,
        digest=await hasher.digest(),
        marks=marks_of(list(publisher.seqs)),
        since=since,
    )
    return written, publisher.seqs


async def write_chunk(
    jetstream: JetStream, layout: Layout, nuid: str, data: bytes, digest: Digest, *, chunk_size: int
) -> Written:
    """Store bytes, whose digest is known, as the only chunk of `nuid`: `write_chunks` without its window."""
    since = _now()
    if not data:
        return Written(nuid, 0, 0, chunk_size, digest, marks_of([]), since)
    headers = {wire.CHUNK: "0", wire.SUM: wire.chunk_sum(data)}
    with _smaller_next_time():
        ack = await jetstream.publish(layout.chunks(nuid), data, headers=headers)
    return Written(nuid, len(data), 1, chunk_size, digest, marks_of([ack.seq]), since)


@contextmanager
def _smaller_next_time() -> Iterator[None]:
    """Chunks are cut to what the server takes; if one is too large, it takes less since a moment ago."""
    try:
        yield
    except TooLargeError as error:
        if "limit" not in error.details:  # the stream's own limit, which stays
            raise
        raise UnavailableError("the server takes smaller messages by now; a repeat is safe") from error


def _now() -> float:
    return asyncio.get_running_loop().time()
