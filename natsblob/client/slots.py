"""How many transfers may be under way between one client and its service, whatever they belong to."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from typing import Final

LOST_AFTER: Final = 3.0
"""Seconds without a sign of life after which a transfer counts as lost or idle, and its place as free."""


class Slots:
    """`most` places, given in the order in which they are asked for."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._heard_at: dict[Hashable, float] = {}
        self._freed = asyncio.Event()
        self._turn = asyncio.Lock()

    async def enter(self, transfer: Hashable) -> None:
        """Wait until there is a place for the transfer.

        That takes until one of those in the way ends, or gives no sign of life for `LOST_AFTER` seconds.
        """
        loop = asyncio.get_running_loop()
        async with self._turn:
            while len(self._heard_at) >= self._most:
                oldest = min(self._heard_at, key=self._heard_at.__getitem__)
                left = self._heard_at[oldest] + LOST_AFTER - loop.time()
                if left <= 0:
                    self.leave(oldest)
                else:
                    await self._next_freed(left)
            self._heard_at[transfer] = loop.time()

    def hear(self, transfer: Hashable) -> None:
        """Something of it came or went."""
        if transfer in self._heard_at:
            self._heard_at[transfer] = asyncio.get_running_loop().time()

    def leave(self, transfer: Hashable) -> None:
        """It has ended, or nobody waits for it any more."""
        if self._heard_at.pop(transfer, None) is not None:
            self._freed.set()

    async def _next_freed(self, timeout: float) -> None:
        self._freed.clear()
        try:
            async with asyncio.timeout(timeout):
                await self._freed.wait()
        except TimeoutError:
            return
