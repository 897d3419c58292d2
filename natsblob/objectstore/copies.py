"""Asking many copies of a bucket when the one that leads is not to be believed alone (ADR 0011).

A copy may have lost messages and not know it. What the leader does not have is therefore asked of copies
that are chosen at random, so often that a whole one is hardly missed: each Direct Get goes to any of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from natsblob.broker.jetstream import ATTEMPT_TIMEOUT, PATIENCE, PENDING, JetStream, Stored
from natsblob.broker.message import Message
from natsblob.broker.retry import retrying
from natsblob.errors import DeadlineError, UnavailableError
from natsblob.logs import get_logger
from natsblob.objectstore.bucket import Bucket
from natsblob.objectstore.info import Entry

log = get_logger("natsblob.objectstore")

ASKED: Final = 12
"""Answers of copies at random. Of three copies a damaged one gives them all once in 531,441 times."""
_ENDS: Final = ("204", "404")


class UnreadableError(UnavailableError):
    """A server counts a message that no copy gives: its disk fails, for now or for good."""


async def newer_elsewhere(
    bucket: Bucket, names: Sequence[str], here: Mapping[str, Entry]
) -> dict[str, Entry]:
    """The metadata of those of up to `MAX_SUBJECTS` names that another copy has, newer than `here`.

    Nothing but expiry takes the newest metadata of a name away, so a leader without it has lost it, and may
    show a delete marker that it had replaced.
    """
    if not names or not await bucket.is_replicated():
        return {}
    entries = await _newest(bucket, [bucket.layout.meta(name) for name in names])
    newer = {name: one for name, one in entries.items() if name not in here or here[name].seq < one.seq}
    if newer:
        await _tell_damage(bucket, next(iter(newer.values())))
    return newer


async def _newest(bucket: Bucket, subjects: list[str]) -> dict[str, Entry]:
    """By name, the newest metadata on these subjects that any copy asked has."""
    newest: dict[str, Stored] = {}
    frames, _ = await _answers(bucket.jetstream, bucket.layout.stream, {"multi_last": subjects})
    for frame in frames:
        stored = Stored.from_direct(frame)
        if stored.subject not in newest or newest[stored.subject].seq < stored.seq:
            newest[stored.subject] = stored
    found = list(newest.values())
    if found and (max_age := await bucket.max_age()):  # copies expire one by one
        now = await bucket.jetstream.now(bucket.layout.stream)
        found = [stored for stored in found if now - stored.time < max_age]
    return {entry.info.name: entry for entry in map(Entry.decode, found)}


async def _tell_damage(bucket: Bucket, entry: Entry) -> None:
    """Warn, unless the leader has it by now: then it was put in this moment."""
    leads = await bucket.jetstream.last_at_leader(bucket.layout.stream, bucket.layout.meta(entry.info.name))
    if leads is None or leads.seq < entry.seq:
        log.warning("copy.damaged", advice="run `natsblob verify --replicas`")


async def most_counted(jetstream: JetStream, stream: str, subject: str, start: int = 1) -> int:
    """The most messages on `subject`, which may be a pattern, that any copy asked counts from `start` on."""
    request = {"seq": start, "next_by_subj": subject, "batch": 1}
    _, ends = await _answers(jetstream, stream, request)
    counts = [1 + int(end.headers.get(PENDING, "0")) for end in ends if end.status == "204"]
    return max(counts, default=0)


async def _answers(
    jetstream: JetStream, stream: str, request: dict[str, object]
) -> tuple[list[Message], list[Message]]:
    """The data frames of `ASKED` answers to one direct read, and their end frames."""
    body = msgspec.json.encode(request)
    frames: list[Message] = []
    ends: dict[str, Message] = {}
    refused: set[str] = set()
    all_answered = asyncio.Event()

    def take(message: Message) -> None:
        if message.is_stored:
            frames.append(message)
            return
        if message.status in _ENDS:
            ends[message.subject] = message
        else:
            refused.add(message.subject)
        if len(ends.keys() | refused) == ASKED:
            all_answered.set()

    async def attempt() -> None:
        refused.clear()
        all_answered.clear()
        for subject in [one for one in replies if one not in ends]:
            await jetstream.connection.publish(jetstream.direct_subject(stream), body, reply=subject)
        try:
            async with asyncio.timeout(ATTEMPT_TIMEOUT):
                await all_answered.wait()
        except TimeoutError:
            raise DeadlineError("not every copy that was asked has answered in time") from None
        if refused:
            raise UnavailableError("a copy that was asked is not available for now")

    with jetstream.connection.inbox(take) as reply:
        replies = [f"{reply}.{number}" for number in range(ASKED)]
        await retrying(attempt, patience=PATIENCE)
    return frames, list(ends.values())
