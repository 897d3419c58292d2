"""A blob service as its clients reach it: requests that are repeated until they are answered."""

from __future__ import annotations

import asyncio
from typing import Final, TypeVar

import msgspec

from natsblob import tracing, wire
from natsblob.broker.connection import Connection
from natsblob.broker.message import Message
from natsblob.broker.retry import retrying
from natsblob.chunking import MESSAGE_RESERVE
from natsblob.client.slots import Slots
from natsblob.digest import Digest
from natsblob.errors import BadRequestError, DeadlineError, InternalError, NoRespondersError
from natsblob.wire import Caps, Headers, Info

T = TypeVar("T")

FIRST_ATTEMPT: Final = 5.0
"""Seconds after which a request is repeated; doubled each time. A worker may have died with it."""
WINDOWS_AT_ONCE: Final = 4
"""Windows of frames on their way to one client, of 8 MiB each at most: they come without flow control, and a
server disconnects the client for which more than 64 MiB wait (`max_pending`)."""
UPLOADS_AT_ONCE: Final = 8
"""Blobs that one client stages at a time, as many as one worker watches: others it has to read back before it
can commit them."""


class Service:
    """The service under one prefix, over one connection.

    `timeout`, in seconds, is what a call may take in all if it is not told otherwise. Within it
    whatever is retryable is repeated, with jitter and no sooner than a busy worker asks for.
    """

    def __init__(self, connection: Connection, prefix: str, timeout: float) -> None:
        self.connection = connection
        self.subjects = wire.Subjects(prefix)
        self.timeout = timeout
        self.windows = Slots(WINDOWS_AT_ONCE)
        self.uploads = Slots(UPLOADS_AT_ONCE)
        self.is_relayed = False
        """Whether this client may not publish chunks into the stream, as it has found out."""
        self._caps: Caps | None = None

    @property
    def room(self) -> int:
        """Bytes that fit one request beside its headers, as the server has it now."""
        return max(1, self.connection.max_payload - MESSAGE_RESERVE)

    async def once(
        self, subject: str, body: bytes = b"", *, headers: Headers | None = None, timeout: float
    ) -> Message:
        """The answer to one request, or the error that it is."""
        try:
            reply = await self.connection.request(subject, body, headers=traced(headers), timeout=timeout)
        except NoRespondersError as error:
            raise NoRespondersError(
                f"nobody answers on {subject}: start a worker (`natsblob serve`), or check the prefix"
            ) from error
        refusal = wire.decode_error(reply.data, reply.headers)
        if refusal is not None:
            raise refusal
        return reply

    async def call(
        self,
        subject: str,
        body: bytes = b"",
        *,
        headers: Headers | None = None,
        timeout: float | None = None,
    ) -> Message:
        """The answer to a request that is repeated while that may help, within `timeout` seconds."""
        loop = asyncio.get_running_loop()
        patience = self.timeout if timeout is None else timeout
        give_up_at = loop.time() + patience
        allowed = FIRST_ATTEMPT

        async def attempt() -> Message:
            nonlocal allowed
            left = give_up_at - loop.time()
            if left <= 0:
                raise DeadlineError(f"no answer on {subject} within {patience:g} s")
            answer = self.once(subject, body, headers=headers, timeout=min(allowed, left))
            allowed *= 2
            try:
                return await answer
            except DeadlineError as error:
                if loop.time() < give_up_at:
                    raise
                raise DeadlineError(f"no answer on {subject} within {patience:g} s") from error

        return await retrying(attempt, patience=patience)

    async def ask(self, subject: str, request: object, kind: type[T], *, timeout: float | None = None) -> T:
        """The answer, as a `kind`, to a request that is a message of the wire protocol."""
        return decoded(await self.call(subject, wire.encode(request), timeout=timeout), kind)

    async def caps(self, *, timeout: float | None = None) -> Caps:
        """What the service can do and carry, as a worker says it now."""
        self._caps = decoded(await self.call(self.subjects.caps, timeout=timeout), Caps)
        return self._caps

    async def known_caps(self, *, timeout: float | None = None) -> Caps:
        """What the service said of itself when it was asked last: that seldom changes."""
        return self._caps or await self.caps(timeout=timeout)


def traced(headers: Headers | None) -> Headers | None:
    """The headers with the trace context of the caller, if there is one."""
    complete = dict(headers or {})
    tracing.inject(complete)
    return complete or None


def decoded(reply: Message, kind: type[T]) -> T:
    """The message in a reply; `InternalError` if the service does not keep to the protocol."""
    try:
        return wire.decode(reply.data, kind)
    except BadRequestError as error:
        raise broken_protocol() from error


def about(reply: Message, digest: Digest) -> Info:
    """What a reply says of this blob; `InternalError` if it speaks of another one."""
    info = decoded(reply, Info)
    if info.digest != digest:
        raise broken_protocol()
    return info


def has_field(reply: Message, name: str) -> bool:
    """Whether the JSON object in a reply has the field that tells two kinds of answer apart."""
    try:
        return name in msgspec.json.decode(reply.data, type=dict[str, msgspec.Raw])
    except wire.NOT_DECODED as error:
        raise broken_protocol() from error


def broken_protocol() -> InternalError:
    return InternalError("the service answered with something else than the protocol says; is it natsblob?")
