"""What lies in a stream, message by message, without the bodies: bounded answers, whatever the subjects are.

The server's list of subjects comes 100,000 at a time, however long they are, and leaves out what it has not
indexed. A consumer of headers shows every message (ADR 0017).

Servers end if such a consumer reads a message whose header block is one byte long. So if reading headers
failed, the messages that follow are read whole before headers are asked for again, and what ends servers is
removed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

import msgspec

from natsblob.broker.cleanup import shielded
from natsblob.broker.consumers import refuse_read_once
from natsblob.broker.jetstream import ATTEMPT_TIMEOUT, PART_BYTES, ApiErrorBody, JetStream
from natsblob.broker.message import Message
from natsblob.broker.retry import delay
from natsblob.config.quantity import NANOSECONDS
from natsblob.errors import DeadlineError, UnavailableError
from natsblob.logs import get_logger

log = get_logger("natsblob.broker")

PART: Final = 2_048
"""Messages in one answer."""
_LIFETIME: Final = 60
"""Seconds after which the server removes a consumer that nobody reads, should its owner die."""
_ATTEMPTS: Final = 5
"""Consumers that are tried without a message that is new."""
_TOO_LARGE: Final = "409"


class Listed(NamedTuple):
    """A message of the stream: the subject with `U+FFFD` in place of what is not UTF-8."""

    subject: str
    seq: int
    is_harmful: bool = False
    """Whether servers end if its headers are read without its payload. Known only of what was read whole."""


class _Created(msgspec.Struct):
    name: str = ""
    num_pending: int = 0
    error: ApiErrorBody | None = None


class _Removed(msgspec.Struct):
    error: ApiErrorBody | None = None


class Census:
    """Of one stream. It remembers where reading failed, so that a server ends once at most."""

    def __init__(self, jetstream: JetStream, stream: str) -> None:
        self._jetstream = jetstream
        self._stream = stream
        self._doubt = 0
        """From this sequence on `PART` messages may be harmful: their headers were asked for in vain."""
        self._reads_whole = False
        """Since one was found. That takes ten times as long."""

    async def messages(self, *, start: int = 1) -> AsyncGenerator[Listed, None]:
        """The messages from a sequence on, in stream order, as the server has them that takes the consumer.

        To be closed by its user. `SetupError` if reading would remove messages.
        """
        info = await self._jetstream.stream(self._stream)
        refuse_read_once(info.config)
        failed = 0
        while True:
            try:
                await self._examine()
                async with self._opened(start) as reader:
                    self._doubt = start
                    while page := await reader.next():
                        failed = 0
                        for listed in page:
                            if listed.is_harmful:
                                await self._remove(listed.seq)
                            else:
                                yield listed
                            start = listed.seq + 1
                        self._doubt = start
                    self._doubt = 0
                return
            except (UnavailableError, DeadlineError) as error:
                failed += 1
                if failed == _ATTEMPTS:
                    raise
                await asyncio.sleep(delay(failed, error))

    async def _examine(self) -> None:
        """Read whole what may have ended a server, and remove what did."""
        if not self._doubt or self._reads_whole:
            return
        left = PART
        async with self._opened(self._doubt, headers_only=False) as reader:
            while left > 0 and (page := await reader.next(left)):
                left -= len(page)
                for listed in page:
                    if listed.is_harmful:
                        await self._remove(listed.seq)
        self._doubt = 0

    async def _remove(self, seq: int) -> None:
        """Remove a message that no client library writes. Many lose their connection when they read it."""
        self._reads_whole = True
        stored = await self._jetstream.at_leader(self._stream, seq)
        if stored is None or not _is_harmful(stored.block):
            return
        await self._jetstream.remove(self._stream, seq)
        advice = "find out who may publish it, take the permission away, then restart the workers"
        log.warning(
            "census.harmful_removed", stream=self._stream, seq=seq, subject=stored.subject, advice=advice
        )

    @asynccontextmanager
    async def _opened(self, start: int, *, headers_only: bool = True) -> AsyncIterator[_Reader]:
        config: dict[str, Any] = {
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": max(start, 1),
            "ack_policy": "none",
            "replay_policy": "instant",
            "headers_only": headers_only and not self._reads_whole,
            "num_replicas": 1,
            "mem_storage": True,
            "inactive_threshold": _LIFETIME * NANOSECONDS,
        }
        body = {"stream_name": self._stream, "config": config}
        created = await self._jetstream.call(f"CONSUMER.CREATE.{self._stream}", body, _Created)
        consumer = f"{self._stream}.{created.name}"
        try:
            yield _Reader(self._jetstream, consumer, created.num_pending)
        finally:
            await shielded(self._jetstream.call(f"CONSUMER.DELETE.{consumer}", None, _Removed))


class _Reader:
    def __init__(self, jetstream: JetStream, consumer: str, pending: int) -> None:
        self._connection = jetstream.connection
        self._pull = jetstream.operation(f"CONSUMER.MSG.NEXT.{consumer}")
        self._place = 0
        self._pending = pending

    async def next(self, most: int | None = None) -> list[Listed]:
        """The next messages, at most `most`, none at the end.

        `UnavailableError` if some got lost on the way.
        """
        if self._pending == 0:
            return []
        messages, status = await self._ask({"batch": min(most or PART, PART), "max_bytes": PART_BYTES})
        if not messages and status == _TOO_LARGE:
            messages, status = await self._ask({"batch": 1})
        listed: list[Listed] = []
        for place, pending, one in sorted(map(_delivered, messages)):
            if place != self._place + 1:
                break
            self._place, self._pending = place, pending
            listed.append(one)
        if not listed:
            raise UnavailableError(f"the server does not list all that the stream holds ({status})")
        return listed

    async def _ask(self, request: dict[str, int]) -> tuple[list[Message], str]:
        taken: list[Message] = []
        ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def take(message: Message) -> None:
            if ended.done():
                return
            if not message.reply:  # a stored message has one: where it would be acknowledged
                ended.set_result(message.status or "")
                return
            taken.append(message)
            if len(taken) == request["batch"]:
                ended.set_result("")

        inbox = self._connection.new_inbox()
        body = msgspec.json.encode({**request, "no_wait": True})
        async with self._connection.subscribe(inbox, take):
            await self._connection.publish(self._pull, body, reply=inbox)
            try:
                async with asyncio.timeout(ATTEMPT_TIMEOUT):
                    status = await ended
            except TimeoutError:
                raise DeadlineError("the server does not list in time what the stream holds") from None
        return taken, status


def _delivered(message: Message) -> tuple[int, int, Listed]:
    """Place among what the consumer sent, how many follow, and the message.

    `$JS.ACK.[domain.account.]stream.consumer.tries.seq.place.time.pending[.token]`
    """
    tokens = message.reply.split(".")
    at = 5 if len(tokens) == 9 else 7
    listed = Listed(message.subject, int(tokens[at]), _is_harmful(message.block))
    return int(tokens[at + 1]), int(tokens[at + 3]), listed


def _is_harmful(block: bytes) -> bool:
    """Whether this header block ends a server that delivers it without the payload (2.11.11 to 2.15.1)."""
    return len(block) == 1
