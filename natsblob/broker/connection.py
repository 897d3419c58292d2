"""A connection to NATS that its owner opens, uses and closes; every wait in it has a deadline."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from secrets import token_hex
from types import TracebackType
from typing import Final, Self

from nats.aio.client import RawCredentials
from nats.errors import UnexpectedEOF

from natsblob.broker.cleanup import shielded
from natsblob.broker.client import DirectClient, Handler, Options, header_block
from natsblob.broker.complaints import Complaints
from natsblob.broker.identity import read_creds, read_nkey, tls_context
from natsblob.broker.message import Message
from natsblob.broker.translate import nats_error, no_responders, translated
from natsblob.config import Settings
from natsblob.config.servers import AddressError, server_url
from natsblob.errors import BadRequestError, BlobError, DeadlineError, NotAllowedError, UnavailableError
from natsblob.logs import get_logger
from natsblob.wire import Headers

log = get_logger("natsblob.broker")

CONNECT_TIMEOUT: Final = 5.0
"""Seconds for the first connection. Later the client reconnects for as long as it lives."""
SHORTEST_ATTEMPT: Final = 0.5
LONGEST_ATTEMPT: Final = 2.0
"""Seconds for one server to answer; with many servers less, so that each has its turn in time."""
_LONGEST_DEAFNESS: Final = 30.0
"""Seconds at most between two attempts to get back a subscription that the server has refused."""
_NO_MORE: Final = "maximum subscriptions"
_NO_RESPONDERS: Final = "503"
_QUOTED: Final = re.compile(r'"([^"]+)"')
"""The subject in the server's refusal, which the client library hands on in lower case."""


@dataclass(frozen=True, slots=True)
class Access:
    """Where a NATS server is and how to be let in. What is `None` is not used."""

    servers: tuple[str, ...] = field(default=("nats://127.0.0.1:4222",), repr=False)
    """Addresses, which may have a user and a password in them."""
    name: str = "natsblob"
    creds: str | None = None
    nkey: str | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_first: bool = False
    inbox_prefix: str = "_INBOX"

    @classmethod
    def of(cls, settings: Settings, name: str) -> Access:
        """How the settings say to connect, under a `name` that monitoring shows."""
        paths = {key: getattr(settings, key) for key in ("creds", "nkey", "tls_ca", "tls_cert", "tls_key")}
        return cls(
            servers=settings.server,
            name=name,
            user=settings.user,
            password=settings.password,
            token=settings.token,
            tls_first=settings.tls_first,
            inbox_prefix=settings.inbox_prefix,
            **{key: str(path) for key, path in paths.items() if path is not None},
        )

    def options(self) -> Options:
        """For the client library; `SetupError` if a file that is named cannot be used."""
        given = {
            "user_credentials": None if self.creds is None else RawCredentials(read_creds(self.creds)),
            "nkeys_seed_str": None if self.nkey is None else read_nkey(self.nkey),
            "user": self.user,
            "password": self.password if self.password is not None or self.user is None else "",
            "token": self.token,
            "tls": self._tls(),
            "tls_handshake_first": self.tls_first or None,
            "inbox_prefix": self.inbox_prefix,
        }
        return {name: value for name, value in given.items() if value is not None}

    def _tls(self) -> ssl.SSLContext | None:
        if not (self.tls_ca or self.tls_cert or self.tls_first):
            return None
        return tls_context(self.tls_ca, self.tls_cert, self.tls_key)


class Connection(AbstractAsyncContextManager["Connection"]):
    """One connection. Opened with `connect`, closed by leaving the context it returns.

    `epoch` grows with every interruption: who has to know that nothing was missed compares it.
    """

    def __init__(self, client: DirectClient, inbox_prefix: str, on_closed: asyncio.Event) -> None:
        self._client = client
        self._inbox = f"{inbox_prefix}.{token_hex(11)}"
        self._waiting: dict[str, Handler] = {}
        self._next_token = 0
        self._asking: dict[asyncio.Future[Message], str] = {}
        self._subscribing: dict[asyncio.Future[NotAllowedError], str] = {}
        """Who waits for a subscription to be taken, or for what the server has against its subject."""
        self._renewals: dict[str, asyncio.Task[None]] = {}
        self._complaints = 0
        self._publishing: dict[str, Callable[[NotAllowedError], None]] = {}
        self.epoch = 0
        self.trouble = ""
        """What the server or the client library complained about last."""
        self.usable = asyncio.Event()
        """Set while requests can be sent and answered."""
        self.interruption = asyncio.Event()
        """Set while they cannot."""
        self.closed = on_closed
        """Set once the connection has ended for good, by its owner or because the server insists."""

    @property
    def max_payload(self) -> int:
        """Bytes of headers and payload in one message."""
        return self._client.max_payload

    def carries(self, size: int, headers: Headers) -> bool:
        """Whether a message with these headers and `size` bytes of payload is not too large."""
        return len(header_block(headers)) + size <= self.max_payload

    @property
    def is_connected(self) -> bool:
        return self._client.is_connected

    @property
    def url(self) -> str:
        """The server that this connection talks to now, without credentials."""
        parsed = self._client.connected_url
        return f"{parsed.scheme}://{parsed.netloc.rpartition('@')[2]}" if parsed else "nats://-"

    @property
    def server_version(self) -> tuple[int, int, int]:
        version = self._client.connected_server_version
        return (version.major, version.minor, version.patch)

    async def publish(
        self, subject: str, data: bytes | memoryview = b"", *, reply: str = "", headers: Headers | None = None
    ) -> None:
        """Hand a message to the server. That it was taken is seen by an answer only."""
        with translated():
            await self._client.send(subject, reply, headers, data)

    def publish_now(self, subject: str, data: bytes = b"", *, headers: Headers | None = None) -> None:
        """Hand a message to the server without waiting; `UnavailableError` if there is no room."""
        with translated():
            self._client.enqueue(subject, "", headers, data)

    async def request(
        self, subject: str, data: bytes | memoryview = b"", *, headers: Headers | None = None, timeout: float
    ) -> Message:
        """The first answer within `timeout` seconds; `NoRespondersError` if nobody listens.

        `UnavailableError` as soon as the connection is interrupted: the answer may have gone with it.
        """
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

        def take(message: Message) -> None:
            if not answer.done():
                answer.set_result(message)

        self._asking[answer] = subject
        try:
            with self.inbox(take) as reply:
                async with asyncio.timeout(timeout):
                    await self.publish(subject, data, reply=reply, headers=headers)
                    message = await answer
        except TimeoutError:
            if not self.is_connected:
                raise UnavailableError(f"not connected to NATS: {self.trouble}; a repeat is safe") from None
            raise DeadlineError(f"no answer on {subject} within {timeout:g} s") from None
        finally:
            del self._asking[answer]
        if message.status == _NO_RESPONDERS and not message.data:
            raise no_responders(subject)
        return message

    @contextmanager
    def refusals(self, subject: str, handler: Callable[[NotAllowedError], None]) -> Iterator[None]:
        """Tells the handler while the context lasts that these credentials may not publish to `subject`."""
        self._publishing[subject.lower()] = handler
        try:
            yield
        finally:
            del self._publishing[subject.lower()]

    def inbox(self, handler: Handler) -> Inbox:
        """A reply subject whose messages, and those beneath it, go to `handler` until it is left."""
        self._next_token += 1
        return Inbox(self._waiting, self._inbox, format(self._next_token, "x"), handler)

    def new_inbox(self) -> str:
        """A subject to `subscribe` to, for what keeps the subject that it was stored on when it arrives."""
        return f"{self._inbox.rpartition('.')[0]}.{token_hex(11)}"

    @asynccontextmanager
    async def subscribe(self, subject: str, handler: Handler, queue: str = "") -> AsyncIterator[None]:
        """Interest in `subject`, known to the server on entry and withdrawn on leaving.

        What the server had sent before it took the withdrawal still reaches the handler.
        `NotAllowedError` if these credentials may not subscribe.
        """
        with translated():
            sid = await self._client.subscribe_direct(subject, handler, queue)
        try:
            await self._confirmed(subject)
            yield
        finally:
            await shielded(self._client.unsubscribe_direct(sid))

    async def flush(self, timeout: float = CONNECT_TIMEOUT) -> None:
        """Returns when the server has processed everything sent so far, within `timeout` seconds."""
        with translated():
            async with asyncio.timeout(timeout):
                await self._client.flush()

    async def listen(self) -> None:
        """Begin to hear answers: once, before the first request.

        `NotAllowedError` if these credentials may not subscribe to the inbox.
        """
        await self._client.subscribe_direct(self._answers, self._dispatch)
        await self._confirmed(self._answers)
        self.restored()

    @property
    def _answers(self) -> str:
        return f"{self._inbox}.>"

    async def _confirmed(self, subject: str) -> None:
        """Returns when the server has taken the subscription, and raises what it has against it."""
        complaints = self._complaints
        refusal: asyncio.Future[NotAllowedError] = asyncio.get_running_loop().create_future()
        self._subscribing[refusal] = subject.lower()
        try:
            await self.flush()
        finally:
            del self._subscribing[refusal]
        if refusal.done():
            raise refusal.result()
        if self._complaints != complaints:
            raise UnavailableError(f"the server takes no more subscriptions: {self.trouble}")

    def _dispatch(self, message: Message) -> None:
        token = message.subject[len(self._inbox) + 1 :].partition(".")[0]
        handler = self._waiting.get(token)
        if handler is not None:
            handler(message)

    def refused(self, error: NotAllowedError) -> None:
        """The server refused a subject: tell who waits for an answer that cannot come."""
        named = _QUOTED.search(error.message)
        subject = named.group(1).lower() if named else ""
        if "subscription" in error.message.lower():
            waiting = [one for one, asked in self._subscribing.items() if asked == subject]
            for one in waiting:
                if not one.done():
                    one.set_result(error)
            if not waiting and subject not in self._renewals and self._client.subscribes(subject):
                self._renewals[subject] = asyncio.create_task(self._subscribe_again(subject))
                self._renewals[subject].add_done_callback(self._renewed)
        elif (publishing := self._publishing.get(subject)) is not None:
            publishing(error)
        for answer, asked in self._asking.items():
            if asked.lower() == subject and not answer.done():
                answer.set_exception(error)

    async def _subscribe_again(self, subject: str) -> None:
        """A subscription that was taken was refused later: ask for it until it is allowed again.

        Without that nobody would notice, before the next reconnect, that a worker is deaf.
        """
        hears_answers = subject != self._answers.lower()
        self.epoch += 1
        if not hears_answers:
            self._lose()
        try:
            for number in count():
                await asyncio.sleep(min(_LONGEST_DEAFNESS, 2.0**number))
                with suppress(BlobError), translated():
                    await self._client.subscribe_again(subject)
                    await self._confirmed(subject)
                    break
        finally:
            del self._renewals[subject]
        self.epoch += 1
        if not hears_answers and self.is_connected:
            self.restored()

    def _renewed(self, renewal: asyncio.Task[None]) -> None:
        """A defect would leave the connection deaf: then it counts as ended, which its owner notices."""
        if not renewal.cancelled() and (error := renewal.exception()) is not None:
            log.error("nats.defect", exc_info=error)
            self.trouble = f"a defect: {error!r}"
            self.closed.set()

    def complained(self, error: Exception) -> None:
        """The server or the client library says that something is wrong."""
        if isinstance(error, UnexpectedEOF) and self.trouble:
            return  # the server has said why
        self.trouble = str(error) or type(error).__name__
        self._complaints += _NO_MORE in self.trouble.lower()

    def _lose(self) -> None:
        self.usable.clear()
        self.interruption.set()

    def restored(self) -> None:
        """There is a connection, and it hears answers as far as is known."""
        self.trouble = ""
        self.interruption.clear()
        self.usable.set()

    def interrupted(self) -> None:
        """Messages may have got lost: tell who would wait for one in vain."""
        self.epoch += 1
        self._lose()
        for answer in self._asking:
            if not answer.done():
                error = UnavailableError("the connection was interrupted; a repeat is safe")
                answer.set_exception(error)

    async def close(self) -> None:
        """Flush and end the connection; returns within a few seconds whatever the server does."""
        for renewal in list(self._renewals.values()):
            renewal.cancel()
        if not self._client.is_closed:
            with suppress(BlobError):
                if self._client.is_connected:
                    await self.flush(2.0)
            with suppress(TimeoutError):
                async with asyncio.timeout(3.0):
                    await self._client.close()
        self.closed.set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await shielded(self.close())


class Inbox:
    """A reply subject; entering it yields the subject, leaving it drops what arrives later."""

    __slots__ = ("_handler", "_subject", "_token", "_waiting")

    def __init__(self, waiting: dict[str, Handler], prefix: str, token: str, handler: Handler) -> None:
        self._waiting = waiting
        self._subject = f"{prefix}.{token}"
        self._token = token
        self._handler = handler

    def __enter__(self) -> str:
        self._waiting[self._token] = self._handler
        return self._subject

    def __exit__(self, *_: object) -> None:
        self._waiting.pop(self._token, None)


async def connect(access: Access, *, timeout: float = CONNECT_TIMEOUT) -> Connection:
    """A connection, within `timeout` seconds. The caller owns it: use it as a context, or `close` it.

    `BadRequestError` for an address that can be none, `NotAllowedError` if the server refuses the
    credentials, `UnavailableError` if there is none.
    """
    servers = _checked(access.servers)
    client = DirectClient(access.options)
    closed = asyncio.Event()
    connection = Connection(client, access.inbox_prefix, closed)
    failures: list[BlobError] = []
    complaints = Complaints()
    refused = asyncio.Event()
    established = False

    async def on_error(error: Exception) -> None:
        translation = nats_error(error)
        connection.complained(error)
        if not established:
            failures.append(translation)
            if isinstance(translation, NotAllowedError):
                refused.set()
        else:
            if isinstance(translation, NotAllowedError):
                connection.refused(translation)
            complaints.log(str(error) or type(error).__name__)

    async def on_disconnect() -> None:
        connection.interrupted()
        if established and not client.is_closed:
            log.warning("nats.disconnected")

    async def on_reconnect() -> None:
        connection.epoch += 1
        connection.restored()
        log.info("nats.reconnected", url=connection.url)

    async def on_closed() -> None:
        closed.set()

    with translated():
        options = access.options()
    attempt = asyncio.ensure_future(
        client.connect(
            servers=servers,
            name=access.name,
            error_cb=on_error,
            disconnected_cb=on_disconnect,
            reconnected_cb=on_reconnect,
            closed_cb=on_closed,
            connect_timeout=_attempt(timeout, len(servers)),  # type: ignore[arg-type]
            reconnect_time_wait=0.25,  # type: ignore[arg-type]  # seconds; the library only adds it up
            max_reconnect_attempts=-1,
            ping_interval=5,
            max_outstanding_pings=2,
            **options,
        )
    )
    watch = asyncio.ensure_future(refused.wait())
    try:
        await asyncio.wait({attempt, watch}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if not attempt.done() or attempt.exception():
            raise _connect_failure(access, failures, attempt, timeout)
        established = True
        client.options["connect_timeout"] = LONGEST_ATTEMPT
        with translated():
            await connection.listen()
    except BaseException:
        await shielded(_abandon(client, attempt))
        raise
    finally:
        watch.cancel()
    return connection


def _attempt(timeout: float, servers: int) -> float:
    return max(SHORTEST_ATTEMPT, min(LONGEST_ATTEMPT, timeout / servers))


def _checked(servers: tuple[str, ...]) -> list[str]:
    try:
        return [server_url(url.strip()) for url in servers]
    except AddressError as error:
        raise BadRequestError(f"an address of a NATS server is malformed: {error}") from error


async def _abandon(client: DirectClient, attempt: asyncio.Future[None]) -> None:
    attempt.cancel()
    await asyncio.wait({attempt}, timeout=1.0)
    with translated(), suppress(TimeoutError):
        async with asyncio.timeout(2.0):
            await client.close()


def _connect_failure(
    access: Access, failures: list[BlobError], attempt: asyncio.Future[None], timeout: float
) -> BlobError:
    for failure in failures:
        if isinstance(failure, NotAllowedError):
            return failure
    error = attempt.exception() if attempt.done() and not attempt.cancelled() else None
    if isinstance(error, Exception):
        return nats_error(error)
    where = ", ".join(_without_userinfo(url) for url in access.servers)
    said = f" (the last attempt: {failures[-1].message})" if failures else ""
    return UnavailableError(
        f"no NATS server answers at {where} within {timeout:g} s{said}; "
        "start one (`natsblob serve --embedded`) or name another with --server"
    )


def _without_userinfo(url: str) -> str:
    scheme, separator, rest = url.rpartition("://")
    return scheme + separator + rest.rpartition("@")[2]
