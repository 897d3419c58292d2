"""Chunks that clients published themselves, and what becomes of them: one object, or nothing.

Whether staged chunks are committed or dropped is decided once, by the first message on their decision
subject. So commits and aborts may run at the same time, on any workers, and be repeated: chunks that a
commit has claimed are never purged by an abort, and chunks that were dropped are never named. Decisions
outlive the chunks, until maintenance removes them (ADR 0005).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import Final, Literal

import msgspec

from natsblob import chunking, wire
from natsblob.broker.cleanup import shielded
from natsblob.broker.jetstream import Stored
from natsblob.broker.translate import LostRaceError
from natsblob.chunking import Seen
from natsblob.digest import Digest
from natsblob.errors import (
    BadRequestError,
    ConflictError,
    DigestMismatchError,
    InsufficientStorageError,
    UnavailableError,
    UploadExpiredError,
)
from natsblob.objectstore.canonical import most_messages
from natsblob.objectstore.copies import UnreadableError, most_counted
from natsblob.objectstore.info import Entry
from natsblob.objectstore.objects import Objects
from natsblob.objectstore.proof import Proofs
from natsblob.objectstore.survey import Survey, places_as_seen, staged_messages
from natsblob.objectstore.turns import Turns
from natsblob.objectstore.writer import Written
from natsblob.wire import CommitRequest, Marks, marks_of

_LOOKS: Final = 3


class Decision(msgspec.Struct, frozen=True, omit_defaults=True):
    """What becomes of staged chunks. A drop names the digest if that content is stored already."""

    action: Literal["commit", "drop"]
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Decided:
    decision: Decision
    seq: int
    is_ours: bool = False
    """Whether this call recorded it, so that no other one does more than repeat it."""

    @property
    def is_earlier_drop(self) -> bool:
        """Whether somebody else dropped the chunks before, so that those found may be only what is left."""
        return self.decision.action == "drop" and self.seq > 0 and not self.is_ours


@dataclass(frozen=True, slots=True)
class Committed:
    entry: Entry
    created: bool


class Staging:
    """The staged chunks of one bucket. A *stage* is the nuid under which chunks of an upload lie."""

    def __init__(self, objects: Objects, *, expiry: timedelta, proofs: Proofs | None = None) -> None:
        self._objects = objects
        self._proofs = proofs or Proofs(objects)
        self._jetstream = objects.bucket.jetstream
        self._layout = objects.bucket.layout
        self._expiry = expiry
        self._turns = Turns()

    async def stored(self, stage: str) -> list[int]:
        """The indexes of the chunks that are stored, ascending; `UploadExpiredError` if none are."""
        count = await self._count(stage, 1)
        if count == 0:
            raise _unknown()
        async with aclosing(self._messages(stage, count)) as messages:
            indexes = [wire.chunk_index(stored.headers) async for stored in messages]
        return sorted({index for index in indexes if index is not None})

    async def commit(self, stage: str, request: CommitRequest, seen: Seen | None) -> Committed:
        """Make the staged chunks the object that has their digest as its name.

        `seen` is what their digest was as they passed a worker, if it saw them all; otherwise they are
        read back. `DigestMismatchError` if they are not what the request says: they are dropped.
        `BadRequestError` if they cannot be an upload of this size: they are dropped, too.
        `UploadExpiredError` if there are none, or if they are too old or were dropped.
        """
        count = await self._count(stage, request.chunks)
        if count == 0 and request.chunks > 0:
            return await self._settled_before(stage, request)
        try:
            written = await self._verified(stage, request, seen, count)
        except _PurgedError:
            return await self._settled_before(stage, request)
        name = written.digest.hex
        before = await self._objects.newest(name)
        if before is not None and await self._stands(before, stage):
            return await self._give_way(stage, written, before)
        if written.nuid != stage:
            return await self._name_copy(stage, request, written, before)
        decided = await self._decide(stage, Decision("commit", name))
        if decided.decision.action == "drop":
            return await self._settled_before(stage, request)
        # Ours may have been named, and deleted or replaced since: then its chunks are purged.
        gone_since = before is not None and before.seq > decided.seq
        # What is there is replaced by the first commit only, which lets the chunks go if it comes too late.
        is_late = before is not None and not before.info.deleted and not decided.is_ours
        if decided.decision.digest != name or gone_since or is_late:
            raise _unknown()
        if await self._objects.bucket.is_limited() and await self._count(stage, count) < count:
            raise _unknown()  # purged to make room before that was decided
        return await self._name(written, before, None if decided.is_ours else decided.seq)

    async def is_settled(self, stage: str) -> bool:
        """Whether the chunks are committed or dropped, or about to be."""
        decision = self._layout.decision(stage)
        return await self._jetstream.last_at_leader(self._layout.stream, decision) is not None

    async def abort(self, stage: str) -> None:
        """Drop the staged chunks; `ConflictError` if they are committed or about to be."""
        decided = await self._decide_drop(stage, Decision("drop"))
        if decided.decision.action == "commit":
            raise ConflictError("the upload is committed already; delete the blob instead")
        if not decided.decision.digest:  # else it may have been committed before: see `give_up`
            await self._objects.drop(stage)

    async def give_up(self, stage: str, *, was_decided: bool) -> bool:
        """Record that the stage is dropped, and whether its chunks can be purged at once.

        Not if a commit is decided. If it was so for long and named nothing, a drop takes its place; but
        somebody who has read it may still name the chunks, so that they are purged another grace time later.
        """
        try:
            decided = await self._decide_drop(stage, Decision("drop"))
        except UndecodedError:
            return was_decided  # by nobody who could name chunks
        if decided.decision.action == "drop":
            return True
        if not was_decided:
            return False
        drop = msgspec.json.encode(Decision("drop", decided.decision.digest))
        with suppress(LostRaceError):
            await self._replace(self._layout.decision(stage), drop, decided.seq)
        return False

    async def _replace(self, subject: str, data: bytes, seq: int) -> None:
        try:
            await self._jetstream.publish(subject, data, expected_last=seq)
        except InsufficientStorageError:  # then nothing is decided, and after another grace time a drop is
            await self._objects.bucket.removals.purge(subject, up_to=seq)

    async def _count(self, stage: str, expected: int) -> int:
        """How many chunks are stored there, as the leader says, and others if it knows of too few.

        A server that another has taken the lead from goes on answering until it hears of that.
        """
        subject = self._layout.chunks(stage)
        count = await self._jetstream.count(self._layout.stream, subject)
        if count < expected and await self._objects.bucket.is_replicated():
            count = max(count, await most_counted(self._jetstream, self._layout.stream, subject))
        return count

    async def _settled_before(self, stage: str, request: CommitRequest) -> Committed:
        """The outcome of an upload whose chunks are gone: the same content may be there already.

        `DigestMismatchError` if it is not the content that this request is about.
        """
        stored = await self._jetstream.last_at_leader(self._layout.stream, self._layout.decision(stage))
        decision = _decode(stored) if stored else None
        # As the leader has it: a copy that lags may still have what was deleted since.
        entry = await self._objects.newest(decision.digest) if decision and decision.digest else None
        if decision and entry and await self._proofs.holds(entry):
            other = request.digest is not None and request.digest.hex != decision.digest
            if other or entry.info.size != request.size:
                raise DigestMismatchError("the upload was committed with other content than is declared now")
            return Committed(entry, created=False)
        raise _unknown()

    async def _verified(self, stage: str, request: CommitRequest, seen: Seen | None, count: int) -> Written:
        """The staged chunks: as they were seen, else read back, and written anew if not canonical."""
        if max(count, request.chunks) > most_messages(request.size, self._objects.chunk_size):
            await self._drop_unless_committed(stage)
            raise BadRequestError("far more chunks than the declared size needs; they are dropped")
        if seen is not None and not self._is_whole(seen, request, count):
            seen = None
        if seen is not None and (seqs := await self._places(stage, seen, request.marks)) is not None:
            is_own = seen.seqs is not None or seen.chunks == 0
            written = self._written(stage, request, seen.digest, seqs, is_proven=is_own)
        else:
            written = await self._read_back(stage, request, count, seen)
        if request.digest is not None and written.digest != request.digest:
            if written.nuid != stage:
                await shielded(self._objects.drop(written.nuid))
            await self._drop_unless_committed(stage)
            raise DigestMismatchError
        return written

    def _messages(self, stage: str, count: int) -> AsyncGenerator[Stored, None]:
        """The first `count` staged messages, in turn with other uploads. Close it if not read to its end."""
        window = self._objects.window
        messages = staged_messages(self._jetstream, self._layout, stage, count=count, batch=window)
        return self._turns.share(messages, count=count, each=window)

    def _is_whole(self, seen: Seen, request: CommitRequest, count: int) -> bool:
        """Whether all that is stored was seen, as the request says, in chunks of this store's size."""
        own = self._objects.chunk_size
        is_own_size = seen.chunk_size == own or (seen.chunks <= 1 and seen.size <= own)
        declared = (seen.size, seen.chunks) == (request.size, request.chunks)
        return is_own_size and declared and count == seen.chunks == chunking.count(seen.size, own)

    async def _places(self, stage: str, seen: Seen, marks: Marks | None) -> Sequence[int] | None:
        """Where chunks that were seen lie, if in their order: others are to be read back and written anew."""
        if seen.seqs is not None or seen.chunks == 0:
            seqs = seen.seqs or ()
            return seqs if all(before < after for before, after in pairwise(seqs)) else None
        if marks is None or not marks.seqs:
            return None
        return await places_as_seen(self._jetstream, self._layout, stage, seen)

    def _written(
        self, stage: str, request: CommitRequest, digest: Digest, seqs: Sequence[int], *, is_proven: bool
    ) -> Written:
        chunk_size = self._objects.chunk_size
        marks = marks_of(seqs)
        return Written(
            stage, request.size, request.chunks, chunk_size, digest, marks, _now(), is_proven=is_proven
        )

    async def _read_back(self, stage: str, request: CommitRequest, count: int, seen: Seen | None) -> Written:
        survey = Survey(stage, request.size, request.chunks, self._objects.chunk_size, seen)
        try:
            async with aclosing(self._messages(stage, count)) as messages:
                async for stored in messages:
                    await survey.add(stored)
            if survey.seen < count:
                raise _PurgedError
            now = await self._jetstream.now(self._layout.stream)
            if survey.newest is not None and now - survey.newest > self._expiry:
                raise _unknown()
            survey.check()
        except (BadRequestError, DigestMismatchError):
            if (await self._drop_unless_committed(stage)).is_earlier_drop:
                raise _PurgedError from None
            raise
        if not survey.is_canonical:
            return await self._copy([survey.places[index] for index in range(request.chunks)])
        return self._written(stage, request, await survey.hasher.digest(), survey.seqs, is_proven=True)

    async def _copy(self, places: list[int]) -> Written:
        """The staged chunks, at these stream sequences, written anew in order: so other clients read them."""
        chunks = self._turns.share(self._messages_at(places), count=len(places), each=self._objects.window)
        async with aclosing(chunks):
            return await self._objects.write(chunks)

    async def _messages_at(self, places: list[int]) -> AsyncIterator[bytes]:
        for start in range(0, len(places), self._objects.window):
            some = places[start : start + self._objects.window]
            for stored in await asyncio.gather(*map(self._message_at, some)):
                yield stored.data

    async def _message_at(self, seq: int) -> Stored:
        """A message that was there; `_PurgedError` if the leader no longer has it."""
        stored = await self._jetstream.at(self._layout.stream, seq)
        stored = stored or await self._jetstream.at_leader(self._layout.stream, seq)
        if stored is None:
            raise _PurgedError
        return stored

    async def _drop_unless_committed(self, stage: str, digest: str = "") -> Decided:
        drop = Decision("drop", digest)
        decided = await self._decide_drop(stage, drop)
        if decided.decision == drop:
            await shielded(self._objects.drop(stage))
        return decided

    async def _give_way(self, stage: str, written: Written, before: Entry) -> Committed:
        """The blob is there already: by this very upload, or by another, and then ours is dropped."""
        if written.nuid != stage:
            await shielded(self._objects.drop(written.nuid))
        if before.info.nuid != stage:
            await self._drop_unless_committed(stage, before.info.name)
        return Committed(before, created=False)

    async def _stands(self, before: Entry, stage: str) -> bool:
        """Whether it can be acknowledged in place of this upload, or is this upload.

        `UploadExpiredError` if it is, and its bytes are not good any more: they have to be sent again.
        """
        if before.is_blob and before.info.nuid == stage:
            if await self._proofs.is_doubted(before):
                raise _unknown()
            return True
        return await self._proofs.holds(before)

    async def _name(self, written: Written, before: Entry | None, decided: int | None = None) -> Committed:
        """Give chunks their name; `decided` is the sequence of the decision if another commit made it."""
        name = written.digest.hex
        written.check_age(self._expiry)
        try:
            entry = await self._objects.name(written, name, before.seq if before else 0)
        except LostRaceError:
            newest = await self._objects.newest(name)
            if newest is None or not newest.is_blob:
                raise _unknown() from None
            if newest.info.nuid == written.nuid:
                return Committed(newest, created=False)
            if not await self._proofs.holds(newest):
                raise UnavailableError("others put this blob as well; a repeat is safe") from None
            if decided is None or newest.seq > decided:
                # Safe: no other commit names them, since it finds that blob, or what replaced it.
                await shielded(self._objects.drop(written.nuid))
            return Committed(newest, created=False)
        await self._objects.clear(before, entry)
        if before is not None and not before.info.deleted:
            await shielded(self._proofs.forget(name, before.seq))
        return Committed(entry, created=True)

    async def _name_copy(
        self, stage: str, request: CommitRequest, copy: Written, before: Entry | None
    ) -> Committed:
        """Name a copy that only this call knows, and let the chunks go that it was made from.

        Not if the stage was dropped, or was committed and its blob deleted since.
        """
        stored = await self._jetstream.last_at_leader(self._layout.stream, self._layout.decision(stage))
        if stored is not None:
            is_dropped = _decode(stored).action == "drop"
            if is_dropped or (before is not None and before.seq > stored.seq):
                await shielded(self._objects.drop(copy.nuid))
                return await self._settled_before(stage, request)
        committed = await self._name(copy, before)
        await self._drop_unless_committed(stage, copy.digest.hex)
        return committed

    async def _decide(self, stage: str, decision: Decision) -> Decided:
        """Record what becomes of the stage, unless that is recorded already; what holds is returned."""
        subject = self._layout.decision(stage)
        try:
            ack = await self._jetstream.publish(
                subject,
                msgspec.json.encode(decision),
                expected_last=0,
            )
        except LostRaceError:
            stored = await self._jetstream.last_at_leader(self._layout.stream, subject)
            if stored is None:
                raise _unknown() from None
            return Decided(_decode(stored), stored.seq)
        return Decided(decision, ack.seq, is_ours=True)

    async def _decide_drop(self, stage: str, drop: Decision) -> Decided:
        """As `_decide`. If there is no room for it, the chunks are purged before, if nothing is decided yet.

        A commit that is decided after that counts the chunks once more (ADR 0017). `UnreadableError` if a
        decision is there that the leader cannot read: it may be a commit, and the server would take another.
        """
        await self._refuse_if_unreadable(stage)
        with suppress(InsufficientStorageError):
            return await self._decide(stage, drop)
        stored = await self._jetstream.last_at_leader(self._layout.stream, self._layout.decision(stage))
        if stored is not None:
            return Decided(_decode(stored), stored.seq)
        if await self._objects.bucket.removals.are_halted():
            raise InsufficientStorageError("the bucket has no room, and nothing is removed from it")
        await self._objects.drop(stage)
        with suppress(InsufficientStorageError):
            return await self._decide(stage, drop)
        return Decided(drop, 0)

    async def _refuse_if_unreadable(self, stage: str) -> None:
        bucket, subject = self._objects.bucket, self._layout.decision(stage)
        for _ in range(_LOOKS):  # it may come and go in between, but hardly each time
            count = await self._jetstream.count(self._layout.stream, subject)
            if not count and await bucket.is_replicated():
                count = await most_counted(self._jetstream, self._layout.stream, subject)
            if not count or await self._jetstream.last_at_leader(self._layout.stream, subject):
                return
        await bucket.removals.halt()
        raise UnreadableError("what was decided about this upload cannot be read, so nothing is dropped")


class UndecodedError(UploadExpiredError):
    """What is recorded as the decision cannot be read: nothing can be committed on account of it."""


class _PurgedError(Exception):
    """The chunks went away while they were read: somebody decided about them meanwhile."""


def _decode(stored: Stored) -> Decision:
    try:
        return msgspec.json.decode(stored.data, type=Decision)
    except wire.NOT_DECODED as error:
        raise UndecodedError("the upload cannot be used any more; begin again") from error


def _now() -> float:
    return asyncio.get_running_loop().time()


def _unknown() -> UploadExpiredError:
    return UploadExpiredError("the upload is unknown, was dropped or is too old; begin again")
