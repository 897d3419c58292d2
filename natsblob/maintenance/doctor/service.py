"""What can be seen of the service: who answers, and whether a blob goes in and comes back."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Final

import msgspec

from natsblob import wire
from natsblob.broker.connection import Connection
from natsblob.broker.message import Message
from natsblob.client import Client
from natsblob.digest import Digest
from natsblob.errors import BlobError, NoRespondersError
from natsblob.maintenance.doctor.ask import NOTHING, PATIENCE, Answer, Reach, ask, gather, hears
from natsblob.maintenance.doctor.check import Check, Status
from natsblob.wire import Caps, GetRequest, Subjects

_PROBE_BYTES: Final = 1024


class _Pong(msgspec.Struct):
    name: str = ""
    id: str = ""
    version: str = ""
    metadata: dict[str, str] | None = None

    @property
    def is_ours(self) -> bool:
        return self.name.partition("-")[0] == wire.SERVICE

    def serves(self, subjects: Subjects) -> bool:
        """Whether it is a worker under this prefix; older ones do not tell theirs, but by their bucket."""
        prefix = (self.metadata or {}).get("prefix")
        return self.is_ours and prefix in (None, subjects.prefix)


@dataclass(frozen=True, slots=True)
class Responders:
    """Who answers under a prefix."""

    subjects: Subjects
    versions: Counter[str]
    """How many workers of each version show on `$SRV` under this prefix."""
    elsewhere: int
    """How many show that have another prefix."""
    answer: Answer
    """To the question what the service can do."""
    caps: Caps | None

    @classmethod
    async def find(cls, connection: Connection, prefix: str) -> Responders:
        subjects = Subjects(prefix)
        pongs = [_pong(answer) for answer in await gather(connection, "$SRV.PING")]
        own = [pong for pong in pongs if pong.serves(subjects)]
        elsewhere = sum(pong.is_ours for pong in pongs) - len(own)
        answer = await ask(connection, subjects.caps)
        caps = None
        if answer.message:
            with suppress(BlobError):
                caps = wire.decode(answer.message.data, Caps)
        return cls(subjects, Counter(pong.version for pong in own), elsewhere, answer, caps)


def check_responders(responders: Responders, bucket: str) -> Check:
    """Whether somebody answers, and whether that is the service that is meant."""
    subjects, versions, caps = responders.subjects, responders.versions, responders.caps
    if responders.answer.message is None:
        return _nobody(responders)
    if caps is None:
        return Check(
            name="responders",
            status=Status.FAIL,
            found=f"whoever answers on {subjects.caps} is not natsblob",
            means="Another service has the same subjects: requests reach one or the other by chance.",
            todo="Give one of them another prefix: natsblob serve --prefix NAME.",
        )
    workers = ", ".join(
        f"{_workers(count)} of version {version}" for version, count in sorted(versions.items())
    )
    where = f"bucket {caps.bucket}" if caps.backend == "jetstream" else f"on {caps.backend}"
    found = f"{workers or 'workers that do not show on $SRV'}, {where}"
    if caps.backend == "jetstream" and caps.bucket != bucket:
        return Check(
            name="responders",
            status=Status.WARN,
            found=found,
            means=f"The workers serve another bucket than {bucket}, which the checks here looked at.",
            todo=f"Look at theirs: natsblob doctor --bucket {caps.bucket}; or use another --prefix.",
        )
    if len(versions) > 1:
        return Check(
            name="responders",
            status=Status.WARN,
            found=found,
            means="Workers of different versions share the requests, as in the middle of an upgrade.",
            todo="Finish the upgrade.",
        )
    means = f"Requests on {subjects.prefix}.> are answered."
    return Check(name="responders", status=Status.OK, found=found, means=means)


def _workers(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"


def _pong(answer: Message) -> _Pong:
    with suppress(msgspec.MsgspecError):
        return msgspec.json.decode(answer.data, type=_Pong)
    return _Pong()


def _nobody(responders: Responders) -> Check:
    subjects, reach = responders.subjects, responders.answer.reach
    if workers := sum(responders.versions.values()) + responders.elsewhere:
        return Check(
            name="responders",
            status=Status.FAIL,
            found=f"{_workers(workers)} on this account, none answers on {subjects.caps}",
            means="They listen under another prefix, or these credentials may not ask under this one.",
            todo="Compare --prefix with that of `natsblob serve`, and the permissions of this user.",
        )
    if reach is Reach.SILENT:
        return Check(
            name="responders",
            status=Status.FAIL,
            found=f"no answer on {subjects.caps}",
            means="Somebody hears the question and does not answer: workers hang, or may not answer.",
            todo='See their logs, and that they may publish to "_INBOX.>" and "_R_.>".',
        )
    return Check(
        name="responders",
        status=Status.FAIL,
        found=f"nobody listens on {subjects.caps}",
        means="No worker runs on this account under this prefix. What is stored is safe.",
        todo="Start one: natsblob serve; or name the prefix that yours has with --prefix.",
    )


async def check_front(connection: Connection, prefix: str) -> Check:
    """Whether credentials that may not ask are those with which a worker answers."""
    requests = (f"{prefix}.>", "$SRV.>")
    answers = ("_INBOX.>", "_R_.>")
    lacking = [
        *[
            f"subscribe to {pattern}"
            for pattern in requests
            if not await hears(connection, pattern.replace(">", NOTHING))
        ],
        *[f"publish to {pattern}" for pattern in answers if not await _reaches(connection, pattern)],
    ]
    if not lacking:
        return Check(
            name="responders",
            status=Status.WARN,
            found="these credentials may answer requests, and may not ask any",
            means="A worker can take requests with them. Whether one does cannot be seen from here.",
            todo="Try the service with the credentials of a client.",
        )
    return Check(
        name="responders",
        status=Status.FAIL,
        found=f"these credentials may not publish to {prefix}.>",
        means="A client can do nothing with them. Nor can the service of a worker, "
        f"which has to {', '.join(lacking)}.",
        todo=f"Allow this user to publish to {prefix}.>, or use other credentials.",
    )


async def _reaches(connection: Connection, pattern: str) -> bool:
    """Whether these credentials may publish to subjects like `pattern`; tried on one that nobody uses."""
    return (await ask(connection, pattern.replace(">", NOTHING))).reach is not Reach.REFUSED


async def check_round_trip(client: Client, connection: Connection, prefix: str) -> AsyncIterator[Check]:
    """Put, has, get, streamed get and delete of a small random blob."""
    data = secrets.token_bytes(_PROBE_BYTES)
    digest = Digest.of(data)
    started = perf_counter()
    step = "put"
    try:
        await client.put(data)
        step = "has"
        if not await client.has(digest):
            raise BlobError("a blob that was just put is said to be missing")
        step = "get"
        if await client.get(digest) != data:
            raise BlobError("other bytes came back than were put")
    except BlobError as error:
        yield _failed(step, error)
    else:
        took = (perf_counter() - started) * 1000
        yield Check(
            name="round trip",
            status=Status.OK,
            found=f"put, has and get of {_PROBE_BYTES} random bytes in {took:.0f} ms",
            means="What goes in comes back, verified.",
        )
        yield await check_replies(connection, prefix, digest)
    if (left := await _delete(client, digest)) is not None:
        yield left


async def check_replies(connection: Connection, prefix: str, digest: Digest) -> Check:
    """Whether all messages of an answer arrive: a streamed blob is a chunk and an end frame, or more."""
    frames: list[Message] = []
    ended = asyncio.Event()

    def take(frame: Message) -> None:
        frames.append(frame)
        if not frame.is_stored and (frame.status is not None or wire.ERROR_CODE in frame.headers):
            ended.set()

    request = wire.encode(GetRequest(digest, mode="stream", first=0, count=1))
    with connection.inbox(take) as reply:
        await connection.publish(Subjects(prefix).get, request, reply=reply)
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await ended.wait()
    if ended.is_set() and len(frames) > 1:
        return Check(
            name="replies",
            status=Status.OK,
            found=f"{len(frames)} messages in answer to one request",
            means="Blobs of any size can be streamed here.",
        )
    return Check(
        name="replies",
        status=Status.FAIL,
        found=f"only {len(frames)} of the messages of an answer arrived",
        means="Blobs larger than one message cannot be read: something lets one reply through and no more.",
        todo="Set response_type: Stream in the export of the service, and in place of allow_responses: true "
        'give workers publish: { allow: ["_INBOX.>", "_R_.>"] }.',
    )


async def _delete(client: Client, digest: Digest) -> Check | None:
    """Remove the probe, and say so if that fails."""
    try:
        await client.delete(digest)
    except BlobError as error:
        if error.code == 404:
            return None
        return Check(
            name="clean-up",
            status=Status.WARN,
            found=f"the random blob could not be deleted: {error.message}",
            means=f"{_PROBE_BYTES} bytes stay behind; they harm nothing.",
            todo=f"natsblob rm {digest}",
        )
    return None


def _failed(step: str, error: BlobError) -> Check:
    means = {
        "put": "Blobs cannot be stored. What is stored already is safe.",
        "has": "Whether blobs are there cannot be asked. What is stored is safe.",
        "get": "Blobs cannot be read. What is stored is safe.",
    }
    nobody = isinstance(error, NoRespondersError)
    return Check(
        name="round trip",
        status=Status.FAIL,
        found=f"{step}: {error.message}",
        means=means[step],
        todo="Start a worker: natsblob serve."
        if nobody
        else "The checks above and the worker's log say why.",
    )
