"""Collecting what nobody needs: chunks that no metadata names, records about them, and what nobody can name.

No clock of a server is believed. A worker purges only what it has itself seen unnamed and unchanged for as
long as the grace time, by its own clock, which does not step; and whoever names chunks does so within half of
that, or gives up. Before staged chunks are purged it is recorded, where commits look, that they are dropped
(ADR 0005; ADR 0017 says what holds if there is no room for that).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from operator import itemgetter
from typing import Final, TypeVar

from natsblob.broker.census import Census
from natsblob.broker.jetstream import Stored, StreamState
from natsblob.errors import BlobError, NotAllowedError
from natsblob.logs import get_logger
from natsblob.maintenance.leftovers import Leftovers, Look, Orphan
from natsblob.maintenance.sieve import Sieve
from natsblob.objectstore.generation import Evidence, Witnesses
from natsblob.objectstore.info import Entry, Layout, is_address, is_stage
from natsblob.objectstore.objects import Objects
from natsblob.objectstore.staging import Staging
from natsblob.objectstore.writer import naming_within

log = get_logger("natsblob.maintenance")

T = TypeVar("T")

_REST: Final = 20
"""How many times as long as a pass took there is none: with a million blobs that is half a minute."""
_AT_ONCE: Final = 16
"""Leftovers that are collected at a time. If the storage is not available for all of them, the pass ends."""
_TOLD: Final = 10
"""Failures of one kind of leftovers that a pass logs."""
_COMPLETE_EVERY: Final = 24 * 3600.0
"""Seconds after which a pass reads the stream from its start, if nothing gave it a reason before."""
_SUPERSEDED: Final = 10_000
"""Subjects of superseded metadata that one pass tidies."""


@dataclass(frozen=True, slots=True)
class Collected:
    """What one pass removed: chunks and records, by the object that they were for, and stray messages."""

    uploads: int
    decisions: int
    strays: int = 0


class Collector:
    """Collects orphans of one bucket, every `interval` seconds or so, in any number of workers at once."""

    def __init__(self, objects: Objects, *, expiry: timedelta, interval: float) -> None:
        self._objects = objects
        self._jetstream = objects.bucket.jetstream
        self._layout = objects.bucket.layout
        self._staging = Staging(objects, expiry=expiry)
        self._grace = 2 * naming_within(expiry).total_seconds()
        self._left = Leftovers(self._layout)
        self._census = Census(self._jetstream, self._layout.stream)
        self._interval = interval
        self._clean_up_to = -1
        """The stream's last sequence when there was nothing to collect, nor would be."""
        self._settled = 0
        """Up to this sequence all had a name. A deletion that takes one away shows. If a put has replaced
        metadata and could not purge the chunks of before, the next complete pass finds them."""
        self._seen_up_to = 0
        self._complete_at = 0.0
        self._witnesses = Witnesses(self._jetstream, self._layout)
        self._generation = objects.bucket.generation

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
            await self._pass()
            pause = max(self._interval, _REST * (loop.time() - begun))

    async def _pass(self) -> None:
        try:
            collected = await self.collect()
        except NotAllowedError as error:
            advice = "allow the storage user what deploy/accounts/accounts.conf allows it"
            log.warning("collect.not_allowed", reason=error.message, advice=advice)
        except BlobError as error:
            log.warning("collect.failed", error=error.name, reason=error.message)
        except Exception:
            log.exception("collect.defect")
        else:
            counts = {"uploads": collected.uploads, "decisions": collected.decisions}
            log.info("collect.done", **counts, strays=collected.strays)

    async def collect(self) -> Collected:
        """One pass. What it cannot be sure of, or fails at, it leaves for the next."""
        began = _now()
        if await self._objects.bucket.removals.are_halted():
            return Collected(0, 0)
        state = (await self._objects.bucket.info()).state
        await self._check(state)
        if state.last_seq == self._clean_up_to:
            return Collected(0, 0)
        is_tidy = await self._look(state)
        orphans = {owner: one for owner, one in self._left.orphans.items() if self._is_due(one.since, began)}
        strays = [seq for seq, since in self._left.strays.items() if self._is_due(since, began)]
        # In this order: what is named after the messages were listed is either in `named`, or young.
        named = await self._objects.named_chunks(orphans.keys()) if orphans else set()
        if is_tidy and not self._left.orphans and not self._left.strays:
            self._clean_up_to = state.last_seq
        uploads = [(owner, one) for owner, one in orphans.items() if owner not in named and one.chunks]
        records = [owner for owner, one in orphans.items() if owner not in named and not one.chunks]
        removed = await self._each(strays, self._remove_stray)  # first: that needs no room
        dropped = await self._each(sorted(uploads, key=itemgetter(0)), self._drop)
        return Collected(dropped, await self._each(sorted(records), self._forget), removed)

    async def _check(self, state: StreamState) -> None:
        """Forget what was seen in another stream than there is now: there all grace times begin anew."""
        bucket = self._objects.bucket
        if state.last_seq == self._seen_up_to and bucket.generation == self._generation:
            return
        if bucket.generation == self._generation and await self._witnesses.ask() is Evidence.OTHER:
            bucket.renew()
        if bucket.generation != self._generation:
            self._left.forget()
            self._witnesses.forget()
            self._clean_up_to, self._settled, self._complete_at = -1, 0, 0.0
            self._generation = bucket.generation
        await self._witnesses.note()

    async def _look(self, state: StreamState) -> bool:
        """See what seems to be left over now, and since when it has been as it is.

        What a replica has not yet, or has lost, makes orphans here that are none: only what is due is looked
        at more closely, since that takes servers much longer. Returns whether there is nothing to tidy.
        """
        names = _Names(self._objects, state.num_subjects)
        is_tidy = await names.read()
        if not is_tidy:
            is_tidy = await names.read()
        now = _now()
        is_complete = names.newest_marker > self._seen_up_to or not is_tidy or now >= self._complete_at
        look = self._left.looking(names.named, now)
        for seq in names.unreadable:
            look.add_stray(seq)
        start = 1 if is_complete else self._settled + 1
        await self._see(look, start)
        look.end()
        self._settled = state.last_seq if look.first is None else min(look.first - 1, state.last_seq)
        self._seen_up_to = state.last_seq
        if is_complete:
            self._complete_at = now + _COMPLETE_EVERY
        return is_tidy

    async def _see(self, look: Look, start: int) -> None:
        async with aclosing(self._census.messages(start=start)) as messages:
            async for listed in messages:
                look.see(listed)

    def _is_due(self, since: float, began: float) -> bool:
        return began - since >= self._grace

    async def _each(self, items: Sequence[T], collect_one: Callable[[T], Awaitable[bool]]) -> int:
        """How many were collected. What fails is logged, and the next pass tries it again."""
        collected = failed = 0
        for start in range(0, len(items), _AT_ONCE):
            some = items[start : start + _AT_ONCE]
            outcomes = await asyncio.gather(*(_attempt(collect_one(item)) for item in some))
            errors = [outcome for outcome in outcomes if isinstance(outcome, BlobError)]
            for error in errors[: max(0, _TOLD - failed)]:
                log.warning("collect.left", error=error.name, reason=error.message)
            failed += len(errors)
            if any(isinstance(error, NotAllowedError) for error in errors):
                break
            if len(errors) == _AT_ONCE and all(error.retryable for error in errors):
                raise errors[-1]
            collected += outcomes.count(True)
        return collected

    async def _drop(self, found: tuple[str, Orphan]) -> bool:
        """Purge chunks that nothing names: staged ones only if nobody can name them any more."""
        owner, orphan = found
        if is_stage(owner) and not await self._staging.give_up(owner, was_decided=orphan.below > 0):
            return False
        await self._objects.drop(owner)
        return True

    async def _forget(self, owner: str) -> bool:
        """Purge decisions and other records about what is not there any more."""
        await self._objects.bucket.removals.purge(self._layout.below(owner))
        return True

    async def _remove_stray(self, seq: int) -> bool:
        """Remove one message, if it is still what it was: another stream may have another one there."""
        stored = await self._jetstream.at_leader(self._layout.stream, seq)
        if stored is None:
            return False
        is_useless = self._layout.is_stray(stored.subject) or _says_nothing(self._layout, stored)
        return is_useless and await self._objects.bucket.removals.remove(seq)


async def _attempt(work: Awaitable[bool]) -> bool | BlobError:
    try:
        return await work
    except BlobError as error:
        return error


class _Names:
    """What metadata names, as it was read last from copies that may lag."""

    def __init__(self, objects: Objects, count: int) -> None:
        self._objects = objects
        self._count = count
        self.named = Sieve(count)
        """The nuids of objects, and the digests that are names, under which there are records too."""
        self.newest_marker = 0
        self.unreadable: list[int] = []
        """Sequences of metadata that says nothing."""

    async def read(self) -> bool:
        """Read all metadata, and purge what newer one replaces: whether there was none of that."""
        layout, known, superseded = self._objects.bucket.layout, Sieve(self._count), set[str]()
        self.named, self.unreadable = Sieve(self._count), []
        async for stored in self._objects.metadata():
            if stored.subject in known and len(superseded) < _SUPERSEDED:
                superseded.add(stored.subject)
            known.add(stored.subject)
            entry = Entry.decode(stored)
            if _says_nothing(layout, stored):
                self.unreadable.append(stored.seq)
            elif entry.info.deleted:
                self.newest_marker = max(self.newest_marker, stored.seq)
            else:
                self.named.add(entry.info.nuid)
                if is_address(entry.info.name):
                    self.named.add(entry.info.name)
        purged = [await self._objects.keep_newest_on(subject) for subject in sorted(superseded)]
        return not any(purged)


def _says_nothing(layout: Layout, stored: Stored) -> bool:
    """Whether this is metadata that no client can read, and that does not even mention chunks."""
    if not stored.subject.startswith(layout.all_meta[:-1]):
        return False
    entry = Entry.decode(stored)
    return not entry.is_readable and not entry.info.nuid


def _now() -> float:
    return asyncio.get_running_loop().time()
