"""Collecting what uploads left behind: chunks that no metadata names, and decisions about such chunks.

No clock of a server is believed. A worker purges only what it has itself seen unnamed and unchanged for as
long as the grace time, by its own clock, which does not step; and whoever names chunks does so within half of
that, or gives up. Before staged chunks are purged it is recorded, where commits look, that they are dropped
(ADR 0005).
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

import structlog

from natsblob.errors import BlobError
from natsblob.objectstore.objects import Objects
from natsblob.objectstore.staging import Staging
from natsblob.objectstore.writer import naming_within

log = structlog.get_logger("natsblob.maintenance")


@dataclass(frozen=True, slots=True)
class Collected:
    """What one pass removed."""

    uploads: int
    decisions: int


@dataclass(frozen=True, slots=True)
class _Orphan:
    """Messages under a nuid that no metadata names, as they were first seen to be so many."""

    chunks: int
    decisions: int
    since: float


class Collector:
    """Collects orphans of one bucket, every `interval` seconds or so, in any number of workers at once."""

    def __init__(self, objects: Objects, *, expiry: timedelta, interval: float) -> None:
        self._objects = objects
        self._jetstream = objects.bucket.jetstream
        self._layout = objects.bucket.layout
        self._staging = Staging(objects, expiry=expiry)
        self._grace = 2 * naming_within(expiry).total_seconds()
        self._orphans: dict[str, _Orphan] = {}
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
        began = asyncio.get_running_loop().time()
        await self._look()
        due = {nuid: one for nuid, one in sorted(self._orphans.items()) if self._is_due(one, began)}
        uploads = [nuid for nuid, one in due.items() if one.chunks and await self._collect_chunks(nuid, one)]
        decisions = [nuid for nuid, one in due.items() if not one.chunks]
        for nuid in decisions:
            await self._jetstream.purge(self._layout.stream, self._layout.decision(nuid))
        return Collected(len(uploads), len(decisions))

    async def _look(self) -> None:
        """See what is an orphan now, and since when it has been as it is."""
        # In this order: what is named after the subjects were listed is either in `named`, or young.
        subjects = await self._jetstream.subjects(self._layout.stream, self._layout.all_chunks)
        named = await self._objects.named_chunks()
        now = asyncio.get_running_loop().time()
        chunks, decisions = Counter[str](), Counter[str]()
        for subject, messages in subjects.items():
            if (nuid := self._layout.nuid_of(subject)) is not None:
                chunks[nuid] += messages
            elif (nuid := self._layout.decided_of(subject)) is not None:
                decisions[nuid] += messages
        before, self._orphans = self._orphans, {}
        for nuid in (chunks.keys() | decisions.keys()) - named:
            found = _Orphan(chunks[nuid], decisions[nuid], now)
            seen = before.get(nuid, found)
            is_same = (seen.chunks, seen.decisions) == (found.chunks, found.decisions)
            self._orphans[nuid] = seen if is_same else found

    def _is_due(self, orphan: _Orphan, began: float) -> bool:
        return began - orphan.since >= self._grace

    async def _collect_chunks(self, nuid: str, orphan: _Orphan) -> bool:
        if not await self._staging.give_up(nuid, was_decided=orphan.decisions > 0):
            return False
        await self._objects.drop(nuid)
        return True
