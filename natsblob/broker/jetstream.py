"""The JetStream API calls that natsblob needs: streams, acknowledged publishes, direct reads."""

from __future__ import annotations

import asyncio
import re
from base64 import b64decode
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from secrets import token_hex
from typing import Any, Final, TypeVar

import msgspec

from natsblob.broker.connection import Connection
from natsblob.broker.message import DESCRIPTION, SEQUENCE, SUBJECT, Message, parse_headers
from natsblob.broker.retry import retrying
from natsblob.broker.translate import jetstream_error
from natsblob.chunking import MESSAGE_RESERVE
from natsblob.errors import (
    BlobError,
    DeadlineError,
    InternalError,
    NoRespondersError,
    SetupError,
    UnavailableError,
)
from natsblob.wire import MESSAGE_ID, NOT_DECODED, Headers, decode_error

T = TypeVar("T")

ATTEMPT_TIMEOUT: Final = 5.0
"""Seconds for one API call or ack. An election takes 4 to 9 s, so a call is repeated for `PATIENCE`."""
PATIENCE: Final = 30.0
"""Seconds for which what the cluster cannot do for now is tried again."""
_PENDING_EXCLUDES_ITSELF: Final = (2, 12, 0)
MAX_SUBJECTS: Final = 1_023
"""Subjects in one `multi_last` request; the server takes one more."""

PART_BYTES: Final = 4 * 1024 * 1024
"""Bytes asked for in one answer that has several messages. A message that is larger comes alone."""

EXPECTED_LAST: Final = "Nats-Expected-Last-Subject-Sequence"
PENDING: Final = "Nats-Num-Pending"
BEFORE: Final = "Nats-Last-Sequence"
"""In each message of a batch, and in its end frame: the sequence of the one before."""
UP_TO: Final = "Nats-UpTo-Sequence"
_TIME: Final = "Nats-Time-Stamp"
_NOT_FOUND: Final = 10037
_GONE: Final = (_NOT_FOUND, 10043, 10057)
"""Of a message that is to be removed: it is not there."""

Config = dict[str, Any]
"""A stream configuration as the server has it, with the fields that natsblob does not know."""


class ApiErrorBody(msgspec.Struct):
    code: int = 500
    err_code: int = 0
    description: str = ""

    def raised(self) -> BlobError:
        return jetstream_error(self.code, self.err_code, self.description)


_CODE: Final = re.compile(r"[0-9]{3}", re.ASCII)
_LONG: Final = 2048
"""Bytes of a subject that is not made part of another one: control lines are limited."""


class Ack(msgspec.Struct):
    """A publish ack. With `duplicate` the message id was known and `seq` is the first one's."""

    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: ApiErrorBody | None = None


class StreamState(msgspec.Struct):
    messages: int = 0
    bytes: int = 0
    first_seq: int = 0
    last_seq: int = 0
    last_ts: datetime | None = None
    num_subjects: int = 0
    subjects: dict[str, int] | None = None


class Replica(msgspec.Struct):
    name: str
    current: bool = False
    offline: bool = False


class ClusterState(msgspec.Struct):
    name: str = ""
    leader: str = ""
    replicas: list[Replica] = []


class StreamInfo(msgspec.Struct):
    config: Config
    state: StreamState
    cluster: ClusterState | None = None
    created: datetime | None = None


class _StreamReply(msgspec.Struct):
    ts: datetime | None = None
    created: datetime | None = None
    config: Config = {}
    state: StreamState = msgspec.field(default_factory=StreamState)
    cluster: ClusterState | None = None
    error: ApiErrorBody | None = None


class ApiLevel(msgspec.Struct):
    level: int = 0
    total: int = 0
    errors: int = 0


class Account(msgspec.Struct):
    memory: int = 0
    storage: int = 0
    streams: int = 0
    domain: str = ""
    api: ApiLevel = msgspec.field(default_factory=ApiLevel)
    limits: dict[str, Any] = {}
    error: ApiErrorBody | None = None


class _StoredBody(msgspec.Struct):
    subject: str
    seq: int
    time: datetime
    hdrs: str = ""
    data: str = ""


class _StoredReply(msgspec.Struct):
    message: _StoredBody | None = None
    error: ApiErrorBody | None = None


class _PlainReply(msgspec.Struct):
    success: bool = False
    purged: int = 0
    error: ApiErrorBody | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """A message as the stream holds it."""

    subject: str
    seq: int
    time: datetime
    headers: Headers
    data: bytes
    block: bytes = b""
    """The header block as it came, with what the server added if this was a direct read."""
    is_verbatim: bool = False
    """Whether `block` is what was stored, to the last byte."""

    @classmethod
    def from_direct(cls, message: Message) -> Stored:
        """The stored message that a direct read answered with."""
        headers = message.headers
        return cls(
            headers[SUBJECT],
            int(headers[SEQUENCE]),
            msgspec.convert(headers[_TIME], datetime, strict=False),
            headers,
            message.data,
            message.block,
        )


@dataclass(frozen=True, slots=True)
class Latest:
    """The last messages of several subjects, and the sequence up to which the replica had read."""

    messages: list[Stored]
    up_to: int


class JetStream:
    """JetStream over one connection. Calls repeat what fails for now, for up to `patience` seconds."""

    def __init__(
        self, connection: Connection, *, domain: str | None = None, patience: float = PATIENCE
    ) -> None:
        self.connection = connection
        self._api = f"$JS.{domain}.API" if domain else "$JS.API"
        self.patience = patience

    async def account(self) -> Account:
        """What this account may use; `SetupError` if JetStream is not enabled for it."""
        try:
            return await self.call("INFO", None, Account, patience=0)
        except NoRespondersError as error:
            raise SetupError(
                "JetStream does not answer: enable it in the server's configuration (`jetstream {}`), "
                "or for this account, and check the domain"
            ) from error

    async def stream(self, name: str) -> StreamInfo:
        """The stream as its leader sees it; `StreamMissingError` if there is none."""
        reply = await self.call(f"STREAM.INFO.{name}", None, _StreamReply)
        return StreamInfo(reply.config, reply.state, reply.cluster, reply.created)

    async def now(self, name: str) -> datetime:
        """The time by the clock that stamps the messages of a stream, or nearly so."""
        reply = await self.call(f"STREAM.INFO.{name}", None, _StreamReply)
        return reply.ts or datetime.now(UTC)

    async def count(self, name: str, subject: str) -> int:
        """How many messages there are on `subject`, which is no pattern, as the leader sees it."""
        reply = await self.call(f"STREAM.INFO.{name}", {"subjects_filter": subject}, _StreamReply)
        return (reply.state.subjects or {}).get(subject, 0)

    async def create(self, config: Config) -> StreamInfo:
        """Create a stream. With a configuration that is there already this changes nothing."""
        reply = await self.call(f"STREAM.CREATE.{config['name']}", config, _StreamReply)
        return StreamInfo(reply.config, reply.state, reply.cluster, reply.created)

    async def update(self, config: Config) -> StreamInfo:
        reply = await self.call(f"STREAM.UPDATE.{config['name']}", config, _StreamReply)
        return StreamInfo(reply.config, reply.state, reply.cluster, reply.created)

    async def delete(self, name: str) -> None:
        await self.call(f"STREAM.DELETE.{name}", None, _PlainReply)

    async def purge(self, name: str, subject: str, *, keep: int = 0, up_to: int = 0) -> int:
        """Remove the messages on `subject` but the newest `keep`, and return how many those were.

        With `up_to`, all up to this sequence.
        """
        body = {"filter": subject, **({"seq": up_to + 1} if up_to else {"keep": keep})}
        return (await self.call(f"STREAM.PURGE.{name}", body, _PlainReply)).purged

    async def remove(self, name: str, seq: int) -> bool:
        """Remove the message at a sequence, and whether there was one."""
        body = msgspec.json.encode({"seq": seq, "no_erase": True})

        async def attempt() -> bool:
            reply = _decode((await self._request(f"STREAM.MSG.DELETE.{name}", body)).data, _PlainReply)
            if reply.error is not None and reply.error.err_code not in _GONE:
                raise reply.error.raised()
            return reply.error is None

        return await retrying(attempt, patience=self.patience)

    async def publish(
        self,
        subject: str,
        data: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        expected_last: int | None = None,
    ) -> Ack:
        """Store a message once, however often it has to be sent: it has an id, which nobody can guess.

        A publisher of chunks who knew it could use it first, and this message would pass for stored.
        With `expected_last` only if that is the sequence of the subject's last message (0: none);
        otherwise `LostRaceError`.
        """
        complete: Headers = {**(headers or {}), MESSAGE_ID: token_hex(16)}
        if expected_last is not None:
            complete[EXPECTED_LAST] = str(expected_last)

        async def attempt() -> Ack:
            reply = await self.connection.request(subject, data, headers=complete, timeout=ATTEMPT_TIMEOUT)
            return decode_ack(reply)

        return await retrying(attempt, patience=self.patience)

    async def last_at_leader(self, stream: str, subject: str) -> Stored | None:
        """The last message on `subject` as the stream's leader has it, or `None`: not a lagging copy."""
        return await self._at_leader(stream, {"last_by_subj": subject})

    async def at_leader(self, stream: str, seq: int) -> Stored | None:
        """The message at a sequence as the stream's leader has it, or `None`."""
        return await self._at_leader(stream, {"seq": seq})

    async def next_at_leader(self, stream: str, subject: str, start: int) -> Stored | None:
        """The first message on `subject` from sequence `start` on, as the leader has it, or `None`."""
        return await self._at_leader(stream, {"seq": start, "next_by_subj": subject})

    async def _at_leader(self, stream: str, wanted: dict[str, str | int]) -> Stored | None:
        request = msgspec.json.encode(wanted)

        async def attempt() -> Stored | None:
            decoded = _decode((await self._request(f"STREAM.MSG.GET.{stream}", request)).data, _StoredReply)
            if decoded.error:
                if decoded.error.err_code == _NOT_FOUND:
                    return None
                raise decoded.error.raised()
            if decoded.message is None:
                raise InternalError("a stored message without content")
            found = decoded.message
            block = b64decode(found.hdrs)
            return Stored(
                found.subject,
                found.seq,
                found.time,
                parse_headers(block),
                b64decode(found.data),
                block,
                is_verbatim=True,
            )

        return await retrying(attempt, patience=self.patience)

    async def last(self, stream: str, subject: str) -> Stored | None:
        """The last message on `subject` as any replica has it. `None` is to be confirmed."""
        if len(subject) > _LONG:
            return next(iter((await self.latest(stream, [subject])).messages), None)

        async def attempt() -> Stored | None:
            reply = await self._request(f"DIRECT.GET.{stream}.{subject}", b"")
            if reply.is_stored:
                return Stored.from_direct(reply)
            expect_not_found(reply)
            return None

        return await retrying(attempt, patience=self.patience)

    async def latest(self, stream: str, subjects: Sequence[str]) -> Latest:
        """The last messages on up to `MAX_SUBJECTS` subjects, as any one replica has them, or several ones.

        In several requests if one would be larger than the server takes.
        """
        found = [await self._latest(stream, some) for some in self._requestable(subjects)]
        return Latest(
            [message for latest in found for message in latest.messages],
            min((latest.up_to for latest in found), default=0),
        )

    def _requestable(self, subjects: Sequence[str]) -> Iterator[list[str]]:
        """The subjects in groups that fit one request each."""
        some: list[str] = []
        room = most = self.connection.max_payload - MESSAGE_RESERVE
        for subject in subjects:
            size = len(msgspec.json.encode(subject)) + 1
            if some and size > room:
                yield some
                some, room = [], most
            some.append(subject)
            room -= size
        if some:
            yield some

    async def _latest(self, stream: str, subjects: Sequence[str]) -> Latest:
        """Part by part: the server leaves out what would be more than a connection holds."""
        newest: dict[str, Stored] = {}
        up_to: list[int] = []
        start, pending = 1, 1
        while pending:
            body = {"multi_last": subjects, "max_bytes": PART_BYTES, **({"seq": start} if start > 1 else {})}
            attempt = partial(self._latest_part, stream, msgspec.json.encode(body))
            part, pending = await retrying(attempt, patience=self.patience)
            up_to.append(part.up_to)
            for stored in part.messages:
                newest[stored.subject] = stored
                start = stored.seq + 1
        return Latest(list(newest.values()), min(up_to))

    async def _latest_part(self, stream: str, request: bytes) -> tuple[Latest, int]:
        """Some of them, and how many are left."""
        messages, end = await self.collect(stream, request)
        if end.status != "204":
            expect_not_found(end)
        left = int(end.headers.get(PENDING, "0")) if messages else 0
        return Latest(messages, int(end.headers.get(UP_TO, "0"))), left

    async def messages(
        self, stream: str, subject: str, *, count: int, batch: int, start: int = 1, before: int = 0
    ) -> AsyncIterator[Stored]:
        """The next `count` messages on `subject` from `start` on, in stream order, read `batch` at a time.

        `count`, with the number `before` them, is what the leader has: a replica that has fewer is asked
        again, for `patience` seconds. Ends early if the leader has none of them any more.
        """
        total = before + count
        while count > 0:
            attempt = partial(self._batch, stream, subject, start, min(batch, count), total)
            messages = await retrying(attempt, patience=self.patience)
            if not messages:
                return
            for stored in messages:
                yield stored
                start = stored.seq + 1
                count -= 1

    async def _batch(self, stream: str, subject: str, start: int, count: int, total: int) -> list[Stored]:
        messages, end = await self.collect(stream, _batch_request(subject, start, count))
        if not messages:
            expect_not_found(end)
        if len(messages) < count and await self.count(stream, subject) >= total:
            raise UnavailableError("a replica has not caught up yet, or some of its answer got lost")
        return messages

    async def collect(self, stream: str, request: bytes) -> tuple[list[Stored], Message]:
        """The messages that a direct read answers with, each once and in stream order, and its end frame."""
        messages: dict[int, Stored] = {}
        ended: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

        def take(message: Message) -> None:
            if message.is_stored:
                stored = Stored.from_direct(message)
                messages[stored.seq] = stored
            elif not ended.done():
                ended.set_result(message)

        with self.connection.inbox(take) as reply:
            await self.connection.publish(self.direct_subject(stream), request, reply=reply)
            try:
                async with asyncio.timeout(ATTEMPT_TIMEOUT):
                    end = await ended
                    return [messages[seq] for seq in sorted(messages)], end
            except TimeoutError:
                raise DeadlineError("the storage did not answer a direct read in time") from None

    def direct_subject(self, stream: str) -> str:
        return f"{self._api}.DIRECT.GET.{stream}"

    async def at(self, stream: str, seq: int) -> Stored | None:
        """The message at a sequence as any replica has it, or `None` if that one has none."""
        frame = await self.frame_at(stream, seq)
        return Stored.from_direct(frame) if frame else None

    async def frame_at(self, stream: str, seq: int) -> Message | None:
        """As `at`, as it came."""
        body = b'{"seq":%d}' % seq

        async def attempt() -> Message | None:
            reply = await self._request(f"DIRECT.GET.{stream}", body)
            if reply.is_stored:
                return reply
            expect_not_found(reply)
            return None

        return await retrying(attempt, patience=self.patience)

    def pending_after(self, frame: Message) -> int | None:
        """How many messages of a batched read come after this one of them, if it says so.

        Before 2.12 servers counted the message itself. In a cluster of both kinds that is the wrong number
        for some replicas, and what is placed by it fails its sum.
        """
        pending = frame.headers.get(PENDING, "")
        if not pending.isdecimal():
            return None
        return int(pending) - (self.connection.server_version < _PENDING_EXCLUDES_ITSELF)

    async def request_batch(self, stream: str, subject: str, from_seq: int, count: int, reply: str) -> None:
        """Have up to `count` messages of `subject` from sequence `from_seq` on sent to `reply`.

        Any replica sends them, without flow control, and then an end frame (ADR-31).
        """
        request = _batch_request(subject, from_seq, count)
        await self.connection.publish(self.direct_subject(stream), request, reply=reply)

    def operation(self, name: str) -> str:
        """The subject of an API request."""
        return f"{self._api}.{name}"

    async def _request(self, operation: str, body: bytes, timeout: float = ATTEMPT_TIMEOUT) -> Message:
        return await self.connection.request(self.operation(operation), body, timeout=timeout)

    async def call(
        self,
        operation: str,
        body: object,
        kind: type[T],
        *,
        patience: float | None = None,
        timeout: float = ATTEMPT_TIMEOUT,
    ) -> T:
        """The answer to an API request, or the error that it is; `timeout` in seconds is for each attempt."""
        payload = msgspec.json.encode(body) if body is not None else b""

        async def attempt() -> T:
            reply = _decode((await self._request(operation, payload, timeout)).data, kind)
            error: ApiErrorBody | None = getattr(reply, "error", None)
            if error is not None:
                raise error.raised()
            return reply

        return await retrying(attempt, patience=self.patience if patience is None else patience)


def _batch_request(subject: str, from_seq: int, count: int) -> bytes:
    return msgspec.json.encode({"seq": from_seq, "next_by_subj": subject, "batch": count})


def decode_ack(reply: Message) -> Ack:
    """The ack in a reply to a publish, or the error that it is, JetStream's or a worker's."""
    if reply.status == "503":
        raise NoRespondersError("nobody takes what is published here")
    if reply.status is not None:
        code = int(reply.status) if _CODE.fullmatch(reply.status) else 500
        raise jetstream_error(code, 0, reply.headers.get(DESCRIPTION, "refused"))
    refusal = decode_error(reply.data, reply.headers)
    if refusal is not None:
        raise refusal
    ack = _decode(reply.data, Ack)
    if ack.error is not None:
        raise ack.error.raised()
    return ack


def expect_not_found(message: Message) -> None:
    """`UnavailableError` if the end of a direct read says anything but that nothing is there."""
    if message.status == "404":
        return
    description = message.headers.get(DESCRIPTION, "direct read refused")
    raise UnavailableError(f"the storage is not available for now: {message.status} {description}")


def _decode(data: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except NOT_DECODED as error:
        raise InternalError("JetStream answered with something else than its API says") from error
