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
from typing import Final

from natsblob.broker.scan import Subjects
from natsblob.errors import BlobError
from natsblob.logs import get_logger
from natsblob.maintenance.sieve import Sieve
from natsblob.objectstore.objects import Objects
from natsblob.objectstore.staging import Staging
from natsblob.objectstore.writer import naming_within

log = get_logger("natsblob.maintenance")

_REST: Final = 20
"""How many times as long as a pass took there is none: with a million blobs that is half a minute."""


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
        self._clean_up_to = -1
        """The stream's last sequence when there was nothing to collect, nor would be."""

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
        loop = asyncio.get_running_loop()
        pause = self._interval
        while True:
            # Workers that were started together shall not collect together.
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311
            begun = loop.time()
            try:
                collected = await self.collect()
            except BlobError as error:
                log.warning("collect.failed", error=error.name, reason=error.message)
            else:
                log.info("collect.done", uploads=collected.uploads, decisions=collected.decisions)
            pause = max(self._interval, _REST * (loop.time() - begun))

    async def collect(self) -> Collected:
        """One pass. What it cannot be sure of it leaves for the next."""
        began = asyncio.get_running_loop().time()
        state = (await self._objects.bucket.info()).state
        if state.last_seq == self._clean_up_to:
            return Collected(0, 0)
        is_tidy = await self._look(state.num_subjects)
        due = {nuid: one for nuid, one in sorted(self._orphans.items()) if self._is_due(one, began)}
        # In this order: what is named after the subjects were listed is either in `named`, or young.
        named = await self._objects.named_chunks(due.keys()) if due else set()
        due = {nuid: one for nuid, one in due.items() if nuid not in named}
        if is_tidy and not self._orphans:
            self._clean_up_to = state.last_seq
        uploads = [nuid for nuid, one in due.items() if one.chunks and await self._collect_chunks(nuid, one)]
        decisions = [nuid for nuid, one in due.items() if not one.chunks]
        for nuid in decisions:
            await self._jetstream.purge(self._layout.stream, self._layout.decision(nuid))
        return Collected(len(uploads), len(decisions))

    async def _look(self, names: int) -> bool:
        """See what seems to be an orphan now, and since when it has been as it is.

        What a replica has not yet, or has lost, makes orphans here that are none: only what is due is looked
        at more closely, since that takes servers much longer. Answers whether there is nothing to tidy.
        """
        named, is_tidy = await self._likely_named(names)
        if not is_tidy:
            named, is_tidy = await self._likely_named(names)
        chunks, decisions = Counter[str](), Counter[str]()
        async for subject, messages in Subjects(
            self._jetstream, self._layout.stream, self._layout.all_chunks
        ):
            stage, decided = self._layout.nuid_of(subject), self._layout.decided_of(subject)
            if stage is not None and stage not in named:
                chunks[stage] += messages
            elif decided is not None and decided not in named:
                decisions[decided] += messages
        now = asyncio.get_running_loop().time()
        before, self._orphans = self._orphans, {}
        for nuid in chunks.keys() | decisions.keys():
            found = _Orphan(chunks[nuid], decisions[nuid], now)
            seen = before.get(nuid, found)
            is_same = (seen.chunks, seen.decisions) == (found.chunks, found.decisions)
            self._orphans[nuid] = seen if is_same else found
        return is_tidy

    async def _likely_named(self, names: int) -> tuple[Sieve, bool]:
        """What metadata names, and whether none of it was superseded: that goes, as it should have."""
        named, known = Sieve(names), Sieve(names)
        superseded: set[str] = set()
        async for entry in self._objects.metadata():
            if entry.info.name in known:
                superseded.add(entry.info.name)
            known.add(entry.info.name)
            if not entry.info.deleted:
                named.add(entry.info.nuid)
        purged = [await self._objects.keep_newest(name) for name in sorted(superseded)]
        return named, not any(purged)

    def _is_due(self, orphan: _Orphan, began: float) -> bool:
        return began - orphan.since >= self._grace

    async def _collect_chunks(self, nuid: str, orphan: _Orphan) -> bool:
        if not await self._staging.give_up(nuid, was_decided=orphan.decisions > 0):
            return False
        await self._objects.drop(nuid)
        return True
