"""The model of one stream: what its leader holds, what its replicas know of that, and what must hold."""

from __future__ import annotations

import hashlib
from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final

import msgspec

from natsblob import wire
from natsblob.objectstore.info import Layout, ObjectInfo
from natsblob.wire import Headers

EPOCH: Final = datetime(2030, 1, 1, tzinfo=UTC)
"""What the clocks of servers begin with."""
DEDUPLICATION: Final = 120.0
"""Seconds for which message ids are remembered."""
MAX_BYTES_REACHED: Final = (400, 10077, "maximum bytes exceeded")
WRONG_LAST: Final = (400, 10071, "wrong last sequence")


class ViolationError(AssertionError):
    """An invariant does not hold."""


@dataclass(frozen=True, slots=True)
class Record:
    """A stored message. `time` is what the server's clock showed, which may step."""

    subject: str
    seq: int
    time: float
    headers: Headers
    data: bytes


@dataclass(slots=True)
class Copy:
    """The messages as one server has them. After bit rot it may count some that it cannot give."""

    records: dict[int, Record] = field(default_factory=dict)
    by_subject: dict[str, list[int]] = field(default_factory=dict)
    last_seq: int = 0
    unreadable: set[int] = field(default_factory=set)

    def add(self, record: Record) -> None:
        self.records[record.seq] = record
        insort(self.by_subject.setdefault(record.subject, []), record.seq)
        self.last_seq = record.seq

    def remove(self, seqs: list[int]) -> None:
        for seq in seqs:
            record = self.records.pop(seq, None)
            if record is None:  # lost before
                continue
            on_subject = self.by_subject[record.subject]
            on_subject.remove(seq)
            if not on_subject:
                del self.by_subject[record.subject]

    def at(self, seq: int) -> Record | None:
        return None if seq in self.unreadable else self.records.get(seq)

    def last(self, subject: str) -> Record | None:
        seqs = self.on(subject)
        return self.at(seqs[-1]) if seqs else None

    def first_from(self, subject: str, seq: int) -> list[Record]:
        """The messages on a subject, or on those that a pattern ends with `>` for, that can be given."""
        seqs = self.on(subject)
        return [found for seq in seqs[bisect_left(seqs, seq) :] if (found := self.at(seq)) is not None]

    def counted(self, subject: str) -> int:
        """How many messages it says to have on such a subject."""
        return len(self.on(subject))

    def on(self, subject: str) -> list[int]:
        """The sequences on a subject, or on those that a pattern ends with `>` for."""
        if not subject.endswith(">"):
            return self.by_subject.get(subject, [])
        return sorted(
            seq for one, seqs in self.by_subject.items() if one.startswith(subject[:-1]) for seq in seqs
        )


@dataclass(slots=True)
class Replica:
    """A copy that applies what the leader decided `lag` seconds later."""

    lag: float = 0.0
    applied: int = 0
    copy: Copy = field(default_factory=Copy)


@dataclass(frozen=True, slots=True)
class _Change:
    at: float
    added: Record | None
    removed: list[int]


class Stream:
    """One stream: what was agreed on, and the replicas, which may lag. The first of them leads.

    One of them may be damaged, so that it has less than was agreed on. After every change it is checked
    that visible metadata has all its chunks, and the right ones.
    """

    def __init__(self, layout: Layout, replicas: int) -> None:
        self.layout = layout
        self.agreed = Copy()
        self.replicas = [Replica() for _ in range(replicas)]
        self.max_bytes = -1
        """The limit that its configuration shows: a period with less room is told by nothing."""
        self.limit: int | None = None
        """Bytes that may be stored, if not any number."""
        self.max_age = 0.0
        """Seconds by the server's clock for which messages are kept, or 0."""
        self.generation = 0
        self._changes: list[_Change] = []
        self._ids: dict[str, tuple[int, float]] = {}
        self._visible: dict[str, ObjectInfo] = {}

    @property
    def visible(self) -> dict[str, ObjectInfo]:
        """Metadata that is no delete marker, by subject."""
        return self._visible

    @property
    def size(self) -> int:
        records = self.agreed.records.values()
        return sum(_size(record.subject, record.headers, record.data) for record in records)

    def append(
        self, subject: str, headers: Headers, data: bytes, *, at: float, stamp: float
    ) -> tuple[int, bool] | tuple[int, int, str]:
        """The sequence and whether it is a duplicate's, or the error that JetStream would answer with."""
        message_id = headers.get(wire.MESSAGE_ID)
        known = self._ids.get(message_id or "")
        if known is not None and at - known[1] <= DEDUPLICATION:
            return known[0], True
        expected = headers.get("Nats-Expected-Last-Subject-Sequence")
        if expected is not None:
            newest = self.leader(at).last(subject)
            if int(expected) != (newest.seq if newest else 0):
                return WRONG_LAST
        size = _size(subject, headers, data)
        if self.limit is not None and self.size + size > self.limit:
            return MAX_BYTES_REACHED
        record = Record(subject, self.agreed.last_seq + 1, stamp, headers, data)
        self.agreed.add(record)
        if message_id is not None:
            self._ids[message_id] = (record.seq, at)
        self._changes.append(_Change(at, record, []))
        if subject.startswith(f"$O.{self.layout.bucket}.M."):
            self._named(record)
        return record.seq, False

    def purge(self, subject: str, keep: int, *, before: int = 0, at: float) -> int:
        seqs = self.agreed.on(subject)
        removed = seqs[: len(seqs) - keep] if keep else list(seqs)
        if before:
            removed = [seq for seq in seqs if seq < before]
        self.agreed.remove(removed)
        self._changes.append(_Change(at, None, removed))
        if removed:
            self._purged(subject)
        return len(removed)

    def remove(self, seq: int, *, at: float) -> None:
        subject = self.agreed.records[seq].subject
        self.agreed.remove([seq])
        self._changes.append(_Change(at, None, [seq]))
        self._purged(subject)

    def expire(self, *, at: float, stamp: float) -> None:
        """Remove what is too old by the server's clock."""
        if not self.max_age:
            return
        old = [seq for seq, record in self.agreed.records.items() if record.time + self.max_age <= stamp]
        self.agreed.remove(old)
        if old:
            self._changes.append(_Change(at, None, old))
        self._visible = {name: info for name, info in self._visible.items() if name in self.agreed.by_subject}

    def leader(self, now: float) -> Copy:
        """The copy of the server that leads."""
        return self.at_replica(0, now)

    def rot(self, number: int, lost: set[int], *, is_counted: bool, now: float) -> None:
        """Have a replica lose messages: unnoticed, or so that it does not count them any more."""
        copy = self.at_replica(number, now)
        if is_counted:
            copy.unreadable |= lost
        else:
            copy.remove(sorted(lost))

    def seqs_of_visible(self, now: float) -> list[int]:
        """Where the visible metadata lies, and its chunks, as far as every replica has them."""
        seqs = [self.agreed.by_subject[subject][-1] for subject in self._visible]
        for info in self._visible.values():
            seqs += self.agreed.by_subject.get(self.layout.chunks(info.nuid), [])
        everywhere = min(self.at_replica(number, now).last_seq for number in range(len(self.replicas)))
        return [seq for seq in seqs if seq <= everywhere]

    def remake(self) -> None:
        """What happens if it is deleted and created again: nothing is left, and sequences begin anew."""
        self.generation += 1
        self.agreed = Copy()
        self._changes.clear()
        self._ids.clear()
        self._visible = {}
        self.repair()

    def damage(self, seq: int) -> None:
        """Have a bit of a message rot on all copies."""
        record = self.agreed.records[seq]
        rotten = replace(record, data=bytes([record.data[0] ^ 1]) + record.data[1:])
        for copy in (self.agreed, *(replica.copy for replica in self.replicas)):
            if seq in copy.records:
                copy.records[seq] = rotten
        self._changes = [
            replace(change, added=rotten) if change.added is record else change for change in self._changes
        ]

    def repair(self) -> None:
        """Give every replica a fresh copy."""
        for replica in self.replicas:
            replica.applied, replica.copy = 0, Copy()

    def forget_purged_ids(self) -> None:
        """A new leader knows the message ids of what it still holds, and no others."""
        held = {record.headers.get(wire.MESSAGE_ID) for record in self.agreed.records.values()}
        self._ids = {name: known for name, known in self._ids.items() if name in held}

    def at_replica(self, number: int, now: float) -> Copy:
        """What a replica holds now."""
        replica = self.replicas[number]
        for change in self._changes[replica.applied :]:
            if change.at > now - replica.lag:
                break
            replica.applied += 1
            if change.added is not None:
                replica.copy.add(change.added)
            replica.copy.remove(change.removed)
        return replica.copy

    def chunks_of(self, nuid: str) -> Iterator[Record]:
        return iter(self.agreed.first_from(self.layout.chunks(nuid), 1))

    def _named(self, record: Record) -> None:
        info = msgspec.json.decode(record.data, type=ObjectInfo)
        if info.deleted:
            self._visible.pop(record.subject, None)
            return
        self._visible[record.subject] = info
        self._check_whole(info)

    def _purged(self, subject: str) -> None:
        if subject not in self.agreed.by_subject:
            self._visible.pop(subject, None)
        for info in self._visible.values():
            if self.layout.chunks(info.nuid) == subject:
                raise ViolationError(f"the chunks of visible blob {info.name[:12]} were purged")

    def _check_whole(self, info: ObjectInfo) -> None:
        """As any Object Store client would read it: the chunks in the order of the stream."""
        data = b"".join(record.data for record in self.chunks_of(info.nuid))
        if hashlib.sha256(data).hexdigest() != info.name:
            raise ViolationError(
                f"metadata of blob {info.name[:12]} became visible, but its {info.chunks} chunks read as "
                f"{len(data)} of {info.size} bytes, or in another order"
            )
        for index, record in enumerate(self.chunks_of(info.nuid)):
            wanted = wire.chunk_headers(info.nuid, index, record.data)
            # What a worker stores in one message has an id of its own.
            if {**record.headers, wire.MESSAGE_ID: wanted[wire.MESSAGE_ID]} != wanted:
                raise ViolationError(f"chunk {index} of {info.name[:12]} was named with {record.headers}")


def _size(subject: str, headers: Headers, data: bytes) -> int:
    """About what a message takes."""
    return len(subject) + len(data) + sum(len(name) + len(value) for name, value in headers.items())
