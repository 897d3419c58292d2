"""Arithmetic of blobs cut into chunks of one size, the last one shorter. No I/O.

Sizes and offsets are bytes, chunk indexes count from 0, and a blob of no bytes has no chunks.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from natsblob.digest import Digest
from natsblob.errors import BadRangeError, ConflictError

DEFAULT_CHUNK_SIZE = 512 * 1024
"""Bytes. A fsync per message makes smaller chunks slower, a window of 8 MiB larger ones (ADR 0003)."""

MESSAGE_RESERVE = 4 * 1024
"""Bytes of `max_payload` left for headers: nats-server closes the connection of who exceeds it."""

LEAST_PAYLOAD = 2 * MESSAGE_RESERVE
"""Bytes of `max_payload` with which there is anything left for chunks worth the name."""


def chunk_size_for(max_payload: int, wanted: int = DEFAULT_CHUNK_SIZE) -> int:
    """The largest chunk, at most `wanted`, that leaves `MESSAGE_RESERVE` below `max_payload`."""
    return max(1, min(wanted, max_payload - MESSAGE_RESERVE))


def count(size: int, chunk_size: int) -> int:
    """How many chunks a blob of `size` bytes has."""
    return -(-size // chunk_size)


def length(index: int, size: int, chunk_size: int) -> int:
    """Bytes in chunk `index` of a blob of `size` bytes."""
    return max(0, min(chunk_size, size - index * chunk_size))


def check_cut(size: int, chunk_size: int, expected: int | None) -> None:
    """`ConflictError` if a blob is cut into other chunks than expected: an index means other bytes then."""
    if expected is not None and expected != chunk_size and size > min(expected, chunk_size):
        raise ConflictError(
            "the blob has been replaced by chunks of another size: read it from the beginning"
        )


@dataclass(frozen=True, slots=True)
class Span:
    """The chunks that cover a byte range, and what to cut off at both ends."""

    first: int
    count: int
    skip: int
    """Bytes of the first chunk that lie before the range."""
    length: int
    """Bytes in the range."""


def span(size: int, chunk_size: int, offset: int, wanted: int | None) -> Span:
    """The chunks that hold `wanted` bytes from `offset` (`None`: to the end).

    A range that runs past the end is cut there; one that begins past it is a `BadRangeError`.
    """
    if offset > size:
        raise BadRangeError(f"offset {offset} lies beyond the {size} bytes of the blob", size=size)
    take = size - offset if wanted is None else min(wanted, size - offset)
    if take == 0:
        return Span(first=0, count=0, skip=0, length=0)
    first = offset // chunk_size
    last = (offset + take - 1) // chunk_size
    return Span(first=first, count=last - first + 1, skip=offset - first * chunk_size, length=take)


@dataclass(frozen=True, slots=True)
class Seen:
    """Chunks of an upload that a worker saw whole, each once and in order, and what they add up to."""

    digest: Digest
    size: int
    chunks: int
    chunk_size: int
    sums: Sequence[int]
    """The CRC-32 of each chunk, by index."""
    seqs: Sequence[int] | None = None
    """The stream sequence of each chunk, if the worker stored them itself: they lie there as it saw them."""


Block: TypeAlias = bytes | memoryview
"""Bytes that nobody changes: a view only if what it shows cannot change."""
B = TypeVar("B", bound=Block)


async def chained(head: list[B], rest: AsyncIterator[B]) -> AsyncIterator[B]:
    """The blocks of `head`, which is emptied on the way, and then the rest."""
    while head:
        yield head.pop(0)
    async for block in rest:
        yield block


async def rechunk(source: AsyncIterable[Block], chunk_size: int) -> AsyncIterator[Block]:
    """The bytes of `source` cut anew into chunks of `chunk_size`, the last one shorter."""
    held = bytearray()
    async for block in source:
        if not held and len(block) == chunk_size:
            yield block
            continue
        held += block
        while len(held) >= chunk_size:
            yield bytes(held[:chunk_size])
            del held[:chunk_size]
    if held:
        yield bytes(held)
