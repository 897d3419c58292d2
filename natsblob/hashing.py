"""Hashing beside I/O: SHA-256 releases the interpreter lock, so a thread computes it meanwhile."""

from __future__ import annotations

import asyncio
from typing import Final

from natsblob.digest import Digest, Hasher

_INLINE: Final = 64 * 1024
"""Bytes below which handing a block to a thread costs more than hashing it."""


class ConcurrentHasher:
    """A `Hasher` that computes one block in a thread while its caller moves the next one."""

    def __init__(self) -> None:
        self._hasher = Hasher()
        self._running: asyncio.Future[None] | None = None

    async def update(self, data: bytes) -> None:
        """Take the next block. Returns once the block before it is hashed: one is held, no more."""
        await self._settle()
        if len(data) < _INLINE:
            self._hasher.update(data)
        else:
            self._running = asyncio.get_running_loop().run_in_executor(None, self._hasher.update, data)

    async def digest(self) -> Digest:
        """The digest of every block so far."""
        await self._settle()
        return self._hasher.digest()

    async def size(self) -> int:
        """Bytes hashed so far."""
        await self._settle()
        return self._hasher.size

    async def _settle(self) -> None:
        if self._running is not None:
            await asyncio.shield(self._running)
            self._running = None
