"""Comparing what every server that holds a bucket can really give, message by message.

What a server says of its copy (messages, deleted, current) is not enough: after a flipped bit it may
count messages that it cannot read. So every copy is read, all of them side by side in stream order, in
memory that does not grow with their bytes. What differs is looked at once more, blob by blob, because
blobs may have been deleted in between.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Final

import msgspec

from natsblob import wire
from natsblob.broker.consumers import Copies, Copy, Delivered, refuse_read_once
from natsblob.broker.jetstream import ClusterState, Stored, StreamInfo, StreamState
from natsblob.errors import UnavailableError
from natsblob.hashing import ConcurrentHasher
from natsblob.objectstore.bucket import Bucket
from natsblob.objectstore.info import Entry, claim_of
from natsblob.objectstore.objects import Objects

CATCH_UP: Final = 10.0
"""Seconds that a copy which has less than the leader gets to catch up before it counts as damaged."""
_LOOK_AGAIN: Final = 0.25
_LOOKED_AT_AGAIN: Final = 1_000
_ASKED: Final = 12
"""Times that any replica is asked for a message that the leader, which may be the damaged one, has not."""
_ALONE: Final = "-"
"""The name of a server that is in no cluster."""


class Damage(msgspec.Struct, frozen=True):
    """A blob, or an object of another client, that is not the same on all servers, or whole on none.

    Without any in `good` it is lost, unless put again.
    """

    name: str
    bad: tuple[str, ...]
    good: tuple[str, ...]


class Node(msgspec.Struct, frozen=True):
    """One server that holds, or should hold, a copy."""

    name: str
    leader: bool
    read: bool
    """Whether its copy could be read at all; one that is offline cannot be judged."""
    messages: int = 0
    lacking: int = 0
    """Messages that other copies have, or that are counted, and that this one cannot give as they are."""
    damaged: int = 0
    """Blobs that cannot be read from it, and can from others."""

    @property
    def is_good(self) -> bool:
        return self.read and not self.lacking and not self.damaged


class Comparison(msgspec.Struct, frozen=True):
    """What all copies of a bucket hold, up to the message that was the last when it began."""

    bucket: str
    replicas: int
    blobs: int
    nodes: tuple[Node, ...]
    damage: tuple[Damage, ...]

    @property
    def agree(self) -> bool:
        """Whether every copy was read, and each gives every blob."""
        return self.is_same and not self.damage

    @property
    def is_same(self) -> bool:
        """Whether every copy was read, and all give the same: also what is lost on all of them."""
        return all(node.is_good for node in self.nodes)

    @property
    def diverge(self) -> bool:
        return any(node.read and not node.is_good for node in self.nodes)

    @property
    def lost(self) -> list[str]:
        """The blobs that no copy has."""
        return [one.name for one in self.damage if not one.good]


@dataclass(frozen=True, slots=True)
class _Message:
    """What is kept of a message while the copies are compared."""

    delivered: Delivered
    print: bytes
    is_intact: bool


@dataclass(slots=True)
class _Tally:
    messages: int = 0
    lacking: int = 0


@dataclass(slots=True)
class _Findings:
    """What one pass over all copies found, by the objects that messages belong to."""

    tallies: dict[str, _Tally]
    entries: dict[str, Entry] = field(default_factory=dict)
    """By the subject of their metadata."""
    suspects: set[str] = field(default_factory=set)
    """Subjects of objects that are not the same everywhere, and of blobs that are not good."""
    lacking: dict[int, tuple[str, ...]] = field(default_factory=dict)
    """The first `_LOOKED_AT_AGAIN` of the messages that some servers lack, and those servers."""
    lacking_chunks: set[str] = field(default_factory=set)
    """The nuids of such chunks: of a blob, or of an upload that nobody has committed."""


class Comparer:
    """Compares the copies of one bucket."""

    def __init__(self, objects: Objects, copies: Copies) -> None:
        self._bucket: Bucket = objects.bucket
        self._objects = objects
        self._copies = copies
        self._layout = objects.bucket.layout

    async def compare(self) -> Comparison:
        """Read every copy and compare; `UnavailableError` if none can be read."""
        info = await self._bucket.info()
        refuse_read_once(info.config)
        nodes = nodes_of(info)
        online = [name for name, is_online in nodes.items() if is_online]
        async with self._copies.opened(online) as copies:
            if not copies:
                raise UnavailableError("no server would read its copy of the bucket")
            readers = {name: _Reader(copy, info.state.last_seq) for name, copy in copies.items()}
            found = await self._pass(readers)
        damage = await self._confirm(found, list(copies))
        await self._forgive(found)
        _count(found, info.state, (await self._bucket.info()).state)
        return Comparison(
            bucket=self._bucket.name,
            replicas=int(info.config.get("num_replicas", 1)),
            blobs=sum(entry.is_content for entry in found.entries.values()),
            nodes=tuple(_judged(name, info, found, damage) for name in nodes),
            damage=tuple(damage),
        )

    async def _pass(self, readers: Mapping[str, _Reader]) -> _Findings:
        found = _Findings({name: _Tally() for name in readers})
        hashers: dict[str, _Hashing] = {}
        async for held in _side_by_side(readers):
            for name in held:
                found.tallies[name].messages += 1
            best = _best(held)
            lacking = [name for name in readers if name not in held or held[name].print != best.print]
            for name in lacking:
                found.tallies[name].lacking += 1
            if lacking and len(found.lacking) < _LOOKED_AT_AGAIN:
                found.lacking[best.delivered.seq] = tuple(lacking)
            await self._take(best.delivered, bool(lacking), found, hashers)
        found.suspects |= {
            subject for subject, entry in found.entries.items() if entry.info.nuid in found.lacking_chunks
        }
        return found

    async def _take(
        self, message: Delivered, is_suspect: bool, found: _Findings, hashers: dict[str, _Hashing]
    ) -> None:
        """Account for a message: chunks are hashed until the metadata says what they have to be."""
        if not message.subject.startswith(self._layout.meta("")):
            nuid = self._layout.nuid_of(message.subject)
            if nuid is not None:
                await hashers.setdefault(nuid, _Hashing()).update(message.data)
                if is_suspect:
                    found.lacking_chunks.add(nuid)
            return
        entry = _entry(message)
        if not entry.is_readable:
            return  # somebody else's message, or one that no copy has intact: no blob to be found by it
        found.entries[message.subject] = entry
        hashed = hashers.pop(entry.info.nuid, _Hashing())
        if entry.is_content and (is_suspect or (entry.is_blob and not await hashed.is_whole(entry))):
            found.suspects.add(message.subject)

    async def _confirm(self, found: _Findings, nodes: Sequence[str]) -> list[Damage]:
        """Look again at each suspect, on every copy: what was deleted meanwhile is no damage."""
        damage: list[Damage] = []
        for subject in sorted(found.suspects):
            entry = found.entries[subject]
            if not entry.is_content:
                continue
            good = await self._good_copies(subject, entry, nodes)
            if len(good) == len(nodes) or await self._is_gone(subject, entry):
                continue
            bad = tuple(node for node in nodes if node not in good)
            damage.append(Damage(entry.info.name, bad, tuple(node for node in nodes if node in good)))
        return damage

    async def _good_copies(self, subject: str, entry: Entry, nodes: Sequence[str]) -> set[str]:
        """Those of `nodes` that give the object's metadata and its bytes with their right SHA-256.

        Of an object of another client, which need not be what its metadata says: those that give the same
        as most others.
        """
        held = {node: await self._held_on(node, subject, entry) for node in nodes}
        whole = {node for node, one in held.items() if one.is_whole}
        if whole or entry.is_blob:
            return whole
        votes = Counter(one.print for one in held.values())
        most = max(votes, key=lambda one: votes[one])
        return {node for node, one in held.items() if one.print == most}

    async def _held_on(self, node: str, subject: str, entry: Entry) -> _Held:
        hashing = _Hashing()
        has_meta = False
        async with self._copies.opened(
            [node], subjects=[subject, self._layout.chunks(entry.info.nuid)]
        ) as copies:
            if node not in copies:
                raise UnavailableError(f"{node} has stopped reading its copy; a repeat is safe")
            while messages := await copies[node].next():
                for message in messages:
                    if message.subject == subject:
                        has_meta = True
                    else:
                        await hashing.update(message.data)
        return _Held(has_meta and await hashing.is_whole(entry), (has_meta, *await hashing.print()))

    async def _forgive(self, found: _Findings) -> None:
        """Take back what was held against copies for messages that were deleted meanwhile."""
        for seq, nodes in found.lacking.items():
            if not await self._exists(seq):
                for name in nodes:
                    found.tallies[name].lacking -= 1

    async def _exists(self, seq: int) -> bool:
        jetstream, stream = self._bucket.jetstream, self._layout.stream
        if await jetstream.at_leader(stream, seq) is not None:
            return True
        return any([await jetstream.at(stream, seq) is not None for _ in range(_ASKED)])

    async def _is_gone(self, subject: str, entry: Entry) -> bool:
        """Whether the object was deleted or replaced since; a leader that lacks it is no proof."""
        stored = await self._bucket.jetstream.last_at_leader(self._layout.stream, subject)
        newest = Entry.decode(stored) if stored else None
        return newest is not None and (newest.info.deleted or newest.info.nuid != entry.info.nuid)


def nodes_of(info: StreamInfo) -> dict[str, bool]:
    """The servers that should hold a copy, the leader first, and whether each is there."""
    cluster = info.cluster or ClusterState()
    return {cluster.leader or _ALONE: True} | {peer.name: not peer.offline for peer in cluster.replicas}


class _Reader:
    """One copy up to `last`, message by message. A copy that is behind gets time to catch up."""

    def __init__(self, copy: Copy, last: int) -> None:
        self._copy = copy
        self._last = last

    async def messages(self) -> AsyncIterator[_Message]:
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + CATCH_UP
        seq = pending = 0
        while seq < self._last:
            batch = await self._copy.next()
            for delivered in batch:
                seq, pending = delivered.seq, delivered.pending
                if seq > self._last:
                    return
                yield _message(delivered)
            if batch:
                give_up_at = loop.time() + CATCH_UP
            elif pending or loop.time() > give_up_at:  # it counts messages that it cannot read
                return
            else:
                await asyncio.sleep(_LOOK_AGAIN)


async def _side_by_side(readers: Mapping[str, _Reader]) -> AsyncIterator[Mapping[str, _Message]]:
    """For each sequence that any copy has, in order: the message as each copy has it."""
    streams = {name: reader.messages() for name, reader in readers.items()}
    heads: dict[str, _Message] = {}

    async def advance(name: str) -> None:
        head = await anext(streams[name], None)
        if head is None:
            heads.pop(name, None)
        else:
            heads[name] = head

    try:
        for name in streams:
            await advance(name)
        while heads:
            seq = min(head.delivered.seq for head in heads.values())
            held = {name: head for name, head in heads.items() if head.delivered.seq == seq}
            yield held
            for name in held:
                await advance(name)
    finally:
        for stream in streams.values():
            await stream.aclose()  # type: ignore[attr-defined]  # an async generator


def _best(held: Mapping[str, _Message]) -> _Message:
    """The message that most copies agree on, among those that pass their checksum, if any does."""
    votes: dict[bytes, int] = {}
    for message in held.values():
        votes[message.print] = votes.get(message.print, 0) + 1
    return max(held.values(), key=lambda message: (message.is_intact, votes[message.print]))


def _message(delivered: Delivered) -> _Message:
    digest = blake2b(delivered.subject.encode(), digest_size=16)
    for name, value in delivered.headers.items():
        digest.update(f"\n{name}:{value}".encode())
    digest.update(b"\n\n")
    digest.update(delivered.data)
    claimed = delivered.headers.get(wire.SUM)
    is_intact = claimed is None or claimed == wire.chunk_sum(delivered.data)
    return _Message(delivered, digest.digest(), is_intact)


class _Hashing:
    """The digest of an object's chunks as they pass."""

    def __init__(self) -> None:
        self._hasher = ConcurrentHasher()
        self._chunks = 0

    async def update(self, data: bytes) -> None:
        await self._hasher.update(data)
        self._chunks += 1

    async def is_whole(self, entry: Entry) -> bool:
        is_counted = self._chunks == entry.info.chunks
        return is_counted and await self._hasher.digest() == claim_of(entry.info)

    async def print(self) -> tuple[int, str]:
        """What tells these chunks from others."""
        return self._chunks, (await self._hasher.digest()).hex


@dataclass(frozen=True, slots=True)
class _Held:
    """What one copy gives of an object."""

    is_whole: bool
    print: tuple[bool, int, str]


def _count(found: _Findings, before: StreamState, after: StreamState) -> None:
    """Hold against each copy what is counted and was not given by it.

    What was stored and deleted meanwhile is taken into account: of the messages that there were before, at
    least so many are still there as there are now, less those that came.
    """
    certain = min(before.messages, after.messages - (after.last_seq - before.last_seq))
    for tally in found.tallies.values():
        tally.lacking = max(tally.lacking, certain - tally.messages)


def _entry(message: Delivered) -> Entry:
    stored = Stored(message.subject, message.seq, datetime.now(UTC), message.headers, message.data)
    return Entry.decode(stored)


def _judged(name: str, info: StreamInfo, found: _Findings, damage: Sequence[Damage]) -> Node:
    is_leader = name == (info.cluster.leader if info.cluster else "") or name == _ALONE
    tally = found.tallies.get(name)
    if tally is None:
        return Node(name, is_leader, read=False)
    damaged = sum(name in one.bad and bool(one.good) for one in damage)
    return Node(name, is_leader, read=True, messages=tally.messages, lacking=tally.lacking, damaged=damaged)
