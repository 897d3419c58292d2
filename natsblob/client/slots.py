"""How many windows of frames may be on their way to one client, whatever reads they belong to."""

from __future__ import annotations

import asyncio
from typing import Final

MOST: Final = 4
"""Windows on their way at a time, of 8 MiB each at most: frames come without flow control, and a server
disconnects the client for which more than 64 MiB wait (`max_pending`)."""
LOST_AFTER: Final = 3.0
"""Seconds without a frame after which a window counts as lost, and its place as free."""


class Slots:
    """Places for windows, given in the order in which they are asked for."""

    def __init__(self) -> None:
        self._heard_at: dict[str, float] = {}
        self._freed = asyncio.Event()
        self._turn = asyncio.Lock()

    async def enter(self, reply: str) -> None:
        """Wait until there is room for the window whose frames come to `reply`.

        That takes `LOST_AFTER` seconds at the most for each window that is in the way.
        """
        loop = asyncio.get_running_loop()
        async with self._turn:
            while len(self._heard_at) >= MOST:
                oldest = min(self._heard_at, key=self._heard_at.__getitem__)
                left = self._heard_at[oldest] + LOST_AFTER - loop.time()
                if left <= 0:
                    self.leave(oldest)
                else:
                    await self._next_freed(left)
            self._heard_at[reply] = loop.time()

    def hear(self, reply: str) -> None:
        """A frame has come to `reply`."""
        if reply in self._heard_at:
            self._heard_at[reply] = asyncio.get_running_loop().time()

    def leave(self, reply: str) -> None:
        """The window is complete, or nobody waits for it any more."""
        if self._heard_at.pop(reply, None) is not None:
            self._freed.set()

    async def _next_freed(self, timeout: float) -> None:
        self._freed.clear()
        try:
            async with asyncio.timeout(timeout):
                await self._freed.wait()
        except TimeoutError:
            return
