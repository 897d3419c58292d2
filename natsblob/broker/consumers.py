"""The copies of one stream, each read from the server that holds it, and their moving between servers.

A Direct Get is answered by any replica. An ephemeral consumer with one replica of its own reads the store
of the server that it was placed on, and its info names that server; the placing is the cluster's choice.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

import msgspec

from natsblob.broker.cleanup import shielded
from natsblob.broker.connection import Connection
from natsblob.broker.jetstream import ATTEMPT_TIMEOUT, ApiErrorBody, ClusterState, Config, JetStream
from natsblob.broker.message import Message
from natsblob.broker.retry import retrying
from natsblob.config.quantity import NANOSECONDS
from natsblob.errors import BlobError, DeadlineError, InternalError, SetupError, UnavailableError
from natsblob.wire import NOT_DECODED, STATUS, Headers

T = TypeVar("T", bound="_Reply")

BATCH_BYTES: Final = 16 * 1024 * 1024
"""Bytes asked of one copy at a time; pulls have no flow control beyond that."""
_LARGEST_BATCH: Final = 256
_LIFETIME: Final = 60
"""Seconds after which the server removes a consumer that nobody reads, should its owner die."""
_PLACINGS: Final = 60
"""Consumers tried until every copy is found. Of five copies one is missed in 1 of 130,000 runs."""
PLACING_DEADLINE: Final = 20.0
"""Seconds for all of them."""
_PATIENCE: Final = 10.0
_SHORT_PATIENCE: Final = 2.0
"""Seconds for a consumer that can be done without."""
_ENDS: Final = ("404", "408")
_DELIVERED: Final = "$JS.ACK."
"""Begins the reply subject of a stored message, which may have a status line of its own."""
_NO_SPARE_SERVER: Final = 10075
_EPHEMERAL: Final[dict[str, Any]] = {
    "ack_policy": "none",
    "replay_policy": "instant",
    "num_replicas": 1,
    "mem_storage": True,
    "inactive_threshold": _LIFETIME * NANOSECONDS,
}
"""A consumer that reads the store of the server that it is placed on."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """A message as one copy holds it, and how many that copy has behind it."""

    subject: str
    seq: int
    headers: Headers
    data: bytes
    place: int
    """Counts what the consumer has sent, from 1, without gaps."""
    pending: int
    time: int
    """When it was stored, in nanoseconds since 1970."""
    block: bytes
    """The header block, byte for byte; of a consumer of headers only with the size of the payload added."""


class _Reply(msgspec.Struct):
    error: ApiErrorBody | None = None


class _Created(_Reply):
    name: str = ""
    cluster: ClusterState | None = None


class Copy:
    """The messages of a stream as the server `node` has them, in order. Opened by `Copies`."""

    def __init__(self, connection: Connection, node: str, pull: str, batch: int) -> None:
        self._connection = connection
        self.node = node
        self._pull = pull
        self._batch = batch
        self._place = 0

    async def next(self, most: int | None = None) -> list[Delivered]:
        """The next messages, at most `most`.

        Empty if this copy gives no more, at its end or where it is damaged.

        `UnavailableError` if its server stopped, or messages got lost on the way.
        """
        batch = min(most or self._batch, self._batch)
        messages = await retrying(partial(self._next, batch), patience=_PATIENCE)
        for message in messages:
            self._place += 1
            if message.place != self._place:
                raise UnavailableError(f"messages from {self.node} got lost on the way; a repeat is safe")
        return messages

    async def _next(self, batch: int) -> list[Delivered]:
        taken: list[Delivered] = []
        ended: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()

        def take(message: Message) -> None:
            if ended.done():
                return
            if not message.reply.startswith(_DELIVERED):
                ended.set_result(message.headers.get(STATUS))
                return
            taken.append(_delivered(message))
            if len(taken) == batch:
                ended.set_result(None)

        inbox = self._connection.new_inbox()
        request = msgspec.json.encode({"batch": batch, "no_wait": True})
        async with self._connection.subscribe(inbox, take):
            await self._connection.publish(self._pull, request, reply=inbox)
            try:
                async with asyncio.timeout(ATTEMPT_TIMEOUT):
                    status = await ended
            except TimeoutError:
                raise DeadlineError(f"{self.node} does not read its copy in time") from None
        if not taken and status not in _ENDS:  # not ready yet, or gone
            raise UnavailableError(f"{self.node} does not read its copy ({status})")
        return taken


@asynccontextmanager
async def passage(
    jetstream: JetStream,
    stream: str,
    *,
    start: int,
    batch: int,
    subject: str | None = None,
    headers_only: bool = False,
) -> AsyncIterator[Copy]:
    """What a stream has from sequence `start` on, as some copy of it has that, `batch` messages at a time.

    Without gaps and in order, and with header blocks as they were stored, which direct reads do not show.
    """
    config = {**_EPHEMERAL, "deliver_policy": "by_start_sequence", "opt_start_seq": start}
    if subject is not None:
        config["filter_subject"] = subject
    if headers_only:
        config["headers_only"] = True
    body = {"stream_name": stream, "config": config}
    created = await jetstream.call(f"CONSUMER.CREATE.{stream}", body, _Created, patience=_SHORT_PATIENCE)
    node = created.cluster.leader if created.cluster else ""
    pull = jetstream.operation(f"CONSUMER.MSG.NEXT.{stream}.{created.name}")
    try:
        yield Copy(jetstream.connection, node or "a server", pull, batch)
    finally:
        # Not waited for: the server removes it by itself, should this get lost.
        delete = jetstream.operation(f"CONSUMER.DELETE.{stream}.{created.name}")
        with suppress(BlobError):
            jetstream.connection.publish_now(delete)


def refuse_read_once(config: Config) -> None:
    """`SetupError` if the stream with this configuration removes what a consumer has read."""
    if config.get("retention", "limits") != "limits":
        raise SetupError(
            "the stream removes what was read, so that it is not read through: `natsblob doctor`"
        )


class Copies:
    """The copies of `stream`, over one connection, with the permissions of an administrator."""

    def __init__(self, connection: Connection, stream: str, *, domain: str | None = None) -> None:
        self._connection = connection
        self._stream = stream
        self._api = f"$JS.{domain}.API" if domain else "$JS.API"
        self._batch = max(1, min(_LARGEST_BATCH, BATCH_BYTES // connection.max_payload))

    @asynccontextmanager
    async def opened(
        self, nodes: Sequence[str], *, subjects: Sequence[str] = ()
    ) -> AsyncIterator[dict[str, Copy]]:
        """Readers of the copies on `nodes`, from the start, of all subjects or the ones given.

        A server that takes no consumer, after a bounded number of attempts, is not among them.
        """
        found: dict[str, Copy] = {}
        async with AsyncExitStack() as stack:
            with suppress(TimeoutError):
                async with asyncio.timeout(PLACING_DEADLINE):
                    for _ in range(_PLACINGS):
                        if found.keys() >= set(nodes):
                            break
                        await self._place(nodes, subjects, found, stack)
            yield found

    async def _place(
        self, nodes: Sequence[str], subjects: Sequence[str], found: dict[str, Copy], stack: AsyncExitStack
    ) -> None:
        created = await self._create(subjects)
        cluster = created.cluster
        node = cluster.leader if cluster and cluster.name else nodes[0]
        if node not in nodes or node in found:
            await self._remove(created.name)
            return
        stack.push_async_callback(self._remove, created.name)
        pull = f"{self._api}.CONSUMER.MSG.NEXT.{self._stream}.{created.name}"
        found[node] = Copy(self._connection, node, pull, self._batch)

    async def lead(self, node: str) -> None:
        """Ask the leader to step down in favour of `node`; the election follows."""
        body = {"placement": {"preferred": node}}
        await self._call(f"STREAM.LEADER.STEPDOWN.{self._stream}", body, _Reply)

    async def replace(self, node: str) -> bool:
        """Have another server take the place of `node`; false if the cluster has none to spare."""
        body = {"peer": node}
        reply = await self._ask(f"STREAM.PEER.REMOVE.{self._stream}", body, _Reply)
        if reply.error is not None and reply.error.err_code == _NO_SPARE_SERVER:
            return False
        if reply.error is not None:
            raise reply.error.raised()
        return True

    async def _create(self, subjects: Sequence[str]) -> _Created:
        config = {**_EPHEMERAL, "deliver_policy": "all"}
        if subjects:
            config["filter_subjects"] = list(subjects)
        body = {"stream_name": self._stream, "config": config}
        return await self._call(f"CONSUMER.CREATE.{self._stream}", body, _Created)

    async def _remove(self, consumer: str) -> None:
        await shielded(self._delete(consumer))

    async def _delete(self, consumer: str) -> None:
        await self._call(f"CONSUMER.DELETE.{self._stream}.{consumer}", None, _Reply)

    async def _call(self, operation: str, body: object, kind: type[T]) -> T:
        async def attempt() -> T:
            reply = await self._ask(operation, body, kind)
            if reply.error is not None:
                raise reply.error.raised()
            return reply

        return await retrying(attempt, patience=_PATIENCE)

    async def _ask(self, operation: str, body: object, kind: type[T]) -> T:
        payload = msgspec.json.encode(body) if body is not None else b""
        answer = await self._connection.request(f"{self._api}.{operation}", payload, timeout=ATTEMPT_TIMEOUT)
        try:
            return msgspec.json.decode(answer.data, type=kind)
        except NOT_DECODED as error:
            raise InternalError("JetStream answered with something else than its API says") from error


def _delivered(message: Message) -> Delivered:
    """By the ack subject: `$JS.ACK.[domain.account.]stream.consumer.tries.seq.place.time.pending[.token]`."""
    tokens = message.reply.split(".")
    at = 5 if len(tokens) == 9 else 7
    seq, place, time, pending = map(int, tokens[at : at + 4])
    return Delivered(message.subject, seq, message.headers, message.data, place, pending, time, message.block)
