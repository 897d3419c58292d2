"""Hashing beside I/O: SHA-256 releases the interpreter lock, so a thread computes it meanwhile."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from natsblob.digest import Digest, Hasher

_INLINE: Final = 64 * 1024
"""Bytes below which handing a block to a thread costs more than hashing it."""
_HELD: Final = 1024 * 1024
"""Bytes that may wait for the thread: handed over together, they wake it and the event loop less often."""
_THREADS: Final = ThreadPoolExecutor(4, thread_name_prefix="natsblob-hash")


class ConcurrentHasher:
    """A `Hasher` that computes in a thread while its caller moves the next blocks."""

    def __init__(self) -> None:
        self._hasher = Hasher()
        self._running: Future[None] | None = None
        self._waiting: list[bytes | memoryview] = []
        self._held = 0

    async def update(self, data: bytes | memoryview) -> None:
        """Take the next block. Waits only if `_HELD` bytes have not been hashed yet."""
        if self._running is None and not self._waiting and len(data) < _INLINE:
            self._hasher.update(data)
            return
        self._waiting.append(data)
        self._held += len(data)
        if self._held >= _HELD:
            await self._finish_running()
        if self._running is None or self._running.done():
            self._start()

    async def digest(self) -> Digest:
        """The digest of every block so far."""
        await self._finish()
        return self._hasher.digest()

    async def size(self) -> int:
        """Bytes hashed so far."""
        await self._finish()
        return self._hasher.size

    def _start(self) -> None:
        blocks, self._waiting, self._held = self._waiting, [], 0
        self._running = _THREADS.submit(self._hash, blocks)

    def _hash(self, blocks: list[bytes | memoryview]) -> None:
        for block in blocks:
            self._hasher.update(block)

    async def _finish_running(self) -> None:
        if self._running is not None:
            await asyncio.shield(asyncio.wrap_future(self._running))
            self._running = None

    async def _finish(self) -> None:
        await self._finish_running()
        if self._waiting:
            self._start()
            await self._finish_running()


async def digest_of_bytes(data: bytes) -> Digest:
    """The address of `data`, computed in a thread if it is so large that others would have to wait."""
    if len(data) <= _INLINE:
        return Digest.of(data)
    return await asyncio.wrap_future(_THREADS.submit(Digest.of, data))
