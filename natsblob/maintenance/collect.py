"""Collecting what uploads left behind: chunks that no metadata names, and decisions about such chunks.

Safe against concurrent uploads in two ways. Chunks are touched only when the newest of them is older than
twice the time after which a commit refuses them, both by the server's clock. And before staged chunks are
purged it is recorded, where commits look, that they are dropped.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import structlog

from natsblob.errors import BlobError
from natsblob.objectstore.objects import Objects
from natsblob.objectstore.staging import Staging

log = structlog.get_logger("natsblob.maintenance")

COMMITTING: Final = timedelta(minutes=10)
"""Longer than any worker takes from the decision to commit to the name, or it has died in between."""


@dataclass(frozen=True, slots=True)
class Collected:
    """What one pass removed."""

    uploads: int
    decisions: int


class Collector:
    """Collects orphans of one bucket, every `interval` seconds or so, in any number of workers at once."""

    def __init__(self, objects: Objects, *, expiry: timedelta, interval: float) -> None:
        self._objects = objects
        self._jetstream = objects.bucket.jetstream
        self._layout = objects.bucket.layout
        self._staging = Staging(objects, expiry=expiry)
        self._grace = 2 * expiry
        self._interval = interval

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Collect in the background while the context lasts."""
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def _run(self) -> None:
        while True:
            # Workers that were started together shall not collect together.
            await asyncio.sleep(self._interval * random.uniform(0.5, 1.5))  # noqa: S311
            try:
                collected = await self.collect()
            except BlobError as error:
                log.warning("collect.failed", error=error.name, reason=error.message)
            else:
                log.info("collect.done", uploads=collected.uploads, decisions=collected.decisions)

    async def collect(self) -> Collected:
        """One pass. What it cannot be sure of it leaves for the next."""
        # In this order: what is named after the subjects were listed is either in `named`, or young.
        subjects = await self._jetstream.subjects(self._layout.stream, self._layout.all_chunks)
        named = await self._objects.named_chunks()
        now = await self._jetstream.now(self._layout.stream)
        stages = {nuid for subject in subjects if (nuid := self._layout.nuid_of(subject)) is not None}
        decided = {nuid for subject in subjects if (nuid := self._layout.decided_of(subject)) is not None}
        uploads = [nuid for nuid in sorted(stages - named) if await self._collect_chunks(nuid, now)]
        decisions = [nuid for nuid in sorted(decided - stages) if await self._collect_decision(nuid, now)]
        return Collected(len(uploads), len(decisions))

    async def _collect_chunks(self, nuid: str, now: datetime) -> bool:
        if not await self._is_old(self._layout.chunks(nuid), now):
            return False
        if not await self._staging.give_up(nuid, now - max(self._grace, COMMITTING)):
            return False
        await self._objects.drop(nuid)
        return True

    async def _collect_decision(self, nuid: str, now: datetime) -> bool:
        subject = self._layout.decision(nuid)
        if not await self._is_old(subject, now):
            return False
        await self._jetstream.purge(self._layout.stream, subject)
        return True

    async def _is_old(self, subject: str, now: datetime) -> bool:
        newest = await self._jetstream.last_at_leader(self._layout.stream, subject)
        return newest is not None and now - newest.time > self._grace
