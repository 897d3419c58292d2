"""Bytes for tests of stores, at the sizes at which stores go wrong, and sources that yield them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterable

import msgspec

BOUNDARIES: dict[str, Callable[[int], int]] = {
    "empty": lambda _chunk: 0,
    "one-byte": lambda _chunk: 1,
    "chunk-1": lambda chunk: chunk - 1,
    "chunk": lambda chunk: chunk,
    "chunk+1": lambda chunk: chunk + 1,
    "two-chunks": lambda chunk: 2 * chunk,
    "several": lambda chunk: 5 * chunk + chunk // 3,
}
"""Sizes in bytes, for a chunk size."""


def pattern(size: int, seed: str = "natsblob") -> bytes:
    """`size` bytes that look random and are the same everywhere: SHA-256 of the seed and a counter."""
    blocks = (hashlib.sha256(f"{seed}:{index}".encode()).digest() for index in range(-(-size // 32)))
    return b"".join(blocks)[:size]


def cut(data: bytes, size: int) -> Iterable[bytes]:
    """`data` in pieces of `size` bytes, the last one shorter."""
    return (data[start : start + size] for start in range(0, len(data), size))


async def source(*pieces: bytes) -> AsyncIterator[bytes]:
    """The pieces, with a turn of the event loop before each."""
    for piece in pieces:
        await asyncio.sleep(0)
        yield piece


class HangingSource:
    """Gives its pieces and then nothing more, and says when it has come to that."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = pieces
        self.reached = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece
        self.reached.set()
        await asyncio.Event().wait()


class Golden(msgspec.Struct, frozen=True, kw_only=True):
    """A blob whose address was computed elsewhere: `text` over and over, cut at `size` bytes."""

    digest: str
    size: int
    text: str

    def data(self) -> bytes:
        unit = self.text.encode()
        return (unit * -(-self.size // max(1, len(unit))))[: self.size]
