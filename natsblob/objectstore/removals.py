"""Removing messages of a bucket, unless that would take acknowledged ones with it (ADR 0019).

Once nothing is left in a file before a damaged message, nats-server drops all that lies behind it in that
file. Other copies make good for that; with one copy nothing may be removed any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from natsblob.broker.jetstream import JetStream
from natsblob.broker.translate import LostRaceError
from natsblob.errors import BlobError
from natsblob.logs import get_logger
from natsblob.objectstore.info import Layout

log = get_logger("natsblob.objectstore")

_BELIEVED: Final = 5.0
"""Seconds for which nobody is asked again whether another worker has found damage."""
_ADVICE: Final = "nothing is removed any more: `natsblob doctor`, and 'Bit rot' in docs/operations.md"


class Removals:
    """What is removed from one bucket."""

    def __init__(
        self, jetstream: JetStream, layout: Layout, is_replicated: Callable[[], Awaitable[bool]]
    ) -> None:
        self._jetstream = jetstream
        self._layout = layout
        self._is_replicated = is_replicated
        self._is_recorded = False
        self._is_known_here = False
        """Whether this process found damage that it could not record."""
        self._believed_until = 0.0

    async def purge(self, subject: str, *, keep: int = 0, up_to: int = 0) -> int:
        """As `JetStream.purge`; 0 while nothing may be removed."""
        if await self.are_halted():
            return 0
        return await self._jetstream.purge(self._layout.stream, subject, keep=keep, up_to=up_to)

    async def remove(self, seq: int) -> bool:
        """As `JetStream.remove`; not while nothing may be removed."""
        return not await self.are_halted() and await self._jetstream.remove(self._layout.stream, seq)

    async def are_halted(self) -> bool:
        """Whether the only copy is known to be damaged, so that nothing may be removed."""
        if await self._is_replicated():
            return False
        if not self._is_believed:
            record = await self._jetstream.last_at_leader(self._layout.stream, self._layout.damage)
            self._is_recorded = record is not None
            self._believe()
            if self._is_known_here:
                await self._record()
        return self._is_recorded or self._is_known_here

    async def halt(self) -> None:
        """A message is counted and cannot be read: record that, if there is no other copy.

        What was recorded some time ago may have been purged since, so that it is recorded again.
        """
        if await self._is_replicated() or (self._is_believed and (self._is_recorded or self._is_known_here)):
            return
        if not self._is_known_here:
            self._is_known_here = True
            log.error("bucket.damaged", stream=self._layout.stream, advice=_ADVICE)
        self._believe()
        await self._record()

    @property
    def _is_believed(self) -> bool:
        return asyncio.get_running_loop().time() < self._believed_until

    def _believe(self) -> None:
        self._believed_until = asyncio.get_running_loop().time() + _BELIEVED

    async def _record(self) -> None:
        try:
            with suppress(LostRaceError):  # another worker has found it, too
                await self._jetstream.publish(self._layout.damage, b"", expected_last=0)
            self._is_recorded, self._is_known_here = True, False
        except BlobError as error:
            log.warning("bucket.damage_not_recorded", error=error.name)

    def forget(self) -> None:
        """The stream is another one than before."""
        self._is_recorded = self._is_known_here = False
        self._believed_until = 0.0
