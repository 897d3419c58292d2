"""nats-py's client with those parts replaced that would lose requests or time (ADR 0004).

- A message goes from the socket to its handler directly (`receive`, `transport`). The library reads it into
  a buffer that it cuts up, puts it into a queue that drops when full, and has a task for each
  subscription that runs one callback at a time.
- Header blocks are parsed by `parse_headers`. The library stops reading when one is malformed, which
  any client can bring about.
- Publishing is `send`, which lets a cancellation through; the library's flush swallows it. What was
  published in one round of the event loop is written at its end, without a task in between.
- A ping waits its turn. The library's overtakes what is still to be sent, so that `flush` proves nothing.
- A user and a password in an address are decoded. The library sends %40 as it stands.
- If TLS is asked for, nothing is sent without it. The library goes on in the clear, credentials included,
  if a server, or somebody between, says nothing of TLS.
- Only its owner closes a connection (ADR 0016). The library does so at most complaints of a server, and stops
  reading at a line that it does not understand.
- Credentials are read again for each attempt, and what a server says of itself later counts.

Choosing servers, replaying subscriptions, TLS and logging in stay the library's.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Callable
from time import monotonic
from typing import Annotated, Any, Final

import msgspec
from nats import errors as nats_errors
from nats.aio.client import PING_PROTO, Client, Srv
from nats.aio.msg import Msg
from nats.errors import SecureConnWantedError

from natsblob.broker.message import Message, parse_headers
from natsblob.broker.receive import LANDING
from natsblob.broker.transport import BulkTransport
from natsblob.config.servers import login_in
from natsblob.errors import BadRequestError, TooLargeError, UnavailableError
from natsblob.logs import get_logger
from natsblob.wire import STATUS, Headers

log = get_logger("natsblob.broker")

Handler = Callable[[Message], None]
"""Takes one message, in order of arrival, and returns at once: it runs inside the reading loop."""

_SUBJECT: Final = re.compile(r"[^\s\x00-\x1f\x7f]+")
_CRLF: Final = b"\r\n"
_JOINED: Final = 64 * 1024
"""Bytes up to which what is written at a time is put together first."""
_LOOK_AGAIN: Final = 0.1
"""Seconds after which it is asked anew whether there is a connection to wait for."""
_PONG: Final = b"PONG\r\n"
_LONGEST_CONTROL_LINE: Final = 4096
"""Bytes of a subject, a reply subject and two sizes: servers close the connection over a longer line."""
_LONGEST_COMPLAINT: Final = 500
_MOST_SERVERS: Final = 256
"""Addresses that are kept: those that were given, and those that servers told of."""
_FIRST_PAUSE: Final = 0.25
_LONGEST_PAUSE: Final = 5.0
"""Seconds before another attempt to log in; the first number after one failure."""


class DirectClient(Client):
    """See the module's text. `max_unflushed` bounds the bytes that wait for the socket."""

    max_unflushed: Final = 4 * 1024 * 1024

    _bulk: BulkTransport
    _write_is_due = False
    _own_login: bool | None = None
    """Whether a user or token was given beside the addresses, and outranks what stands in them."""
    _failures = 0
    """How often in a row logging in failed."""

    def __init__(self, renewed: Callable[[], Options] = dict) -> None:
        """`renewed` reads the credentials again; it may raise what keeps them from being used."""
        super().__init__()
        self._renewed = renewed

    async def _connect_to_server(self, s: Srv) -> None:
        if self._transport:
            self._bulk.abort()
        if rounds := self._failures // max(1, len(self._server_pool)):
            longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(rounds, 8))
            await asyncio.sleep(longest * random.uniform(0.5, 1.0))  # noqa: S311
        s.last_attempt = monotonic()
        self._log_in(s)
        self._transport = self._bulk = BulkTransport(self._deliver)
        await self._bulk.connect(s.uri, LANDING, self.options["connect_timeout"])

    def _log_in(self, server: Srv) -> None:
        """Use what stands in the address. Servers that others told about are asked as those were."""
        if self._own_login is None:
            self._own_login = self.options["user"] is not None or self.options["token"] is not None
        login = None if self._own_login else login_in(server.uri.geturl())
        if login is not None and login.password is None:
            self.options.update(user=None, password=None, token=login.user)
        elif login is not None:
            self.options.update(user=login.user, password=login.password, token=None)

    async def _process_connect_init(self) -> None:
        """Log in. Whatever goes wrong is an error that the library tries again after."""
        if self._ping_interval_task is not None:
            self._ping_interval_task.cancel()
        try:
            self._renew()
            await super()._process_connect_init()
        except (OSError, nats_errors.Error, TimeoutError):
            self._failures += 1
            raise
        except Exception as error:
            self._failures += 1
            raise nats_errors.Error(f"nats: connecting failed: {error}") from error
        self._failures = 0

    async def _attempt_reconnect(self) -> None:
        """Connect again, as often as it takes. A defect in here ends the connection and leaves none deaf."""
        try:
            await super()._attempt_reconnect()
        except Exception as error:
            log.exception("nats.reconnect")
            await self._error_cb(error)
            await self._close(Client.CLOSED, do_cbs=True)

    def _renew(self) -> None:
        """Take the credentials as they are now: a file may have been replaced."""
        options = self._renewed()
        if "tls" in options:
            self.options["tls"] = options["tls"]
        self._user_credentials = options.get("user_credentials", self._user_credentials)
        self._nkeys_seed_str = options.get("nkeys_seed_str", self._nkeys_seed_str)
        if self._user_credentials is not None or self._nkeys_seed_str is not None:
            self._setup_nkeys_connect()

    async def _read_loop(self) -> None:
        """Take lines until the connection ends, and have another one made then, whatever it ended by."""
        bulk = self._bulk
        try:
            while line := await bulk.readline():
                await self._take_line(line)
            raise nats_errors.UnexpectedEOF
        except Exception as error:  # noqa: BLE001 - a connection that nobody reads would seem to be alive
            if bulk is self._bulk and not self.is_closed and not self.is_reconnecting:
                bulk.abort()
                await self._error_cb(error)
                await self._process_op_err(error)

    async def _take_line(self, line: bytes) -> None:
        operation, _, rest = line.rstrip(b"\r\n").partition(b" ")
        match operation.upper():
            case b"PING":
                self._pending.append(_PONG)
                self._pending_data_size += len(_PONG)
                self._write_soon()
            case b"PONG":
                await self._process_pong()
            case b"-ERR":
                await self._process_err(rest.decode("utf-8", "replace").strip(" '"))
            case b"INFO":
                self._server_info = _information(rest)
                await self._process_info(self._server_info)
            case b"+OK":
                pass
            case _:
                raise nats_errors.ProtocolError(f"nats: unknown operation {operation[:20]!r}")

    async def _process_pong(self) -> None:
        self._pings_outstanding = 0
        if self._pongs:
            waiting = self._pongs.pop(0)
            if not waiting.done():
                waiting.set_result(True)

    async def _process_err(self, err_msg: str) -> None:
        """Tell what the server complains about. If it is serious, the server ends the connection itself."""
        await self._error_cb(nats_errors.Error(f"nats: {err_msg[:_LONGEST_COMPLAINT]}"))

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        info = _check_information(info)
        self._max_payload = info.get("max_payload", self._max_payload)
        if len(self._server_pool) >= _MOST_SERVERS:
            info = {**info, "connect_urls": []}
        await super()._process_info(info, initial_connection)

    async def flush(self, timeout: int = 10) -> None:
        """As the library's, which proves nothing and says nothing if there is no connection."""
        if not self.is_connected and not self.is_closed:
            raise UnavailableError("the connection to NATS is interrupted")
        await super().flush(timeout)

    async def subscribe_again(self, subject: str) -> None:
        """Ask once more for the messages of `subject`, in lower case: the server has refused it meanwhile."""
        for subscription in list(self._subs.values()):
            if subscription.subject.lower() == subject:
                await self._send_subscribe(subscription)

    def subscribes(self, subject: str) -> bool:
        return any(subscription.subject.lower() == subject for subscription in self._subs.values())

    def _connect_command(self) -> bytes:
        server = self._current_server
        wanted = "tls" in self.options or (server is not None and server.uri.scheme == "tls")
        if wanted and not self._server_info.get("tls_required"):
            raise SecureConnWantedError
        return super()._connect_command()

    async def subscribe_direct(self, subject: str, handler: Handler, queue: str = "") -> int:
        """Subscribe and return the subscription's id; `handler` gets every message, synchronously."""

        async def callback(_: Msg) -> None:
            raise AssertionError("messages of this subscription do not pass through the library's queue")

        callback.deliver = handler  # type: ignore[attr-defined]
        subscription = await self.subscribe(subject, queue=queue, cb=callback)
        return subscription._id  # noqa: SLF001 - the library offers no other name for it

    async def unsubscribe_direct(self, sid: int) -> None:
        """Withdraw interest; what the server had sent before that still reaches the handler.

        Also harmless when the subscription or the connection is gone already.
        """
        subscription = self._subs.get(sid)
        if subscription is None or self.is_closed:
            return
        try:
            if self.is_connected:
                await self._send_unsubscribe(sid)
                await self.flush()
        finally:
            self._remove_sub(sid)
            subscription._stop_processing()  # noqa: SLF001 - the library's own way would drop messages

    def _deliver(self, sid: int, subject: bytes, reply: bytes, headers: bytes, data: bytes) -> None:
        handler: Handler | None = getattr(getattr(self._subs.get(sid), "_cb", None), "deliver", None)
        if handler is None:
            return
        self.stats["in_msgs"] += 1
        self.stats["in_bytes"] += len(data)
        message = Message(
            subject.decode("utf-8", "replace"),
            reply.decode("utf-8", "replace"),
            data,
            parse_headers(headers),
            headers,
        )
        try:
            handler(message)
        except Exception:  # a defect in one handler must not stop the reading
            log.exception("nats.handler")

    def enqueue(self, subject: str, reply: str, headers: Headers | None, data: bytes | memoryview) -> None:
        """Publish without waiting; `UnavailableError` if too much waits for the socket already.

        `TooLargeError` rather than what the server would close the connection over.
        """
        line, block = frame_head(subject, reply, headers, len(data))
        if self.is_closed or self.is_draining_pubs:
            raise UnavailableError("the connection to NATS is closed")
        if len(block) + len(data) > self.max_payload:
            raise TooLargeError("the message is larger than the server's max_payload", limit=self.max_payload)
        if self._unsent > self.max_unflushed * (2 if self.is_connected else 1):
            raise UnavailableError("the connection to NATS is interrupted or too slow")
        self._pending += (line, block, data, _CRLF)  # type: ignore[arg-type]  # only ever joined
        self._pending_data_size += len(line) + len(block) + len(data) + len(_CRLF)
        self.stats["out_msgs"] += 1
        self.stats["out_bytes"] += len(data)
        self._write_soon()

    async def send(self, subject: str, reply: str, headers: Headers | None, data: bytes | memoryview) -> None:
        """Publish. Waits while more than `max_unflushed` bytes wait for the socket."""
        while self._unsent > self.max_unflushed:
            await self._sent_some()
        self.enqueue(subject, reply, headers, data)

    async def _send_ping(self, future: asyncio.Future[bool] | None = None) -> None:
        """A ping behind what waits to be sent; the library's own overtakes it, and `flush` proves nothing."""
        self._pongs.append(future or asyncio.get_running_loop().create_future())
        self._pending.append(PING_PROTO)
        self._pending_data_size += len(PING_PROTO)
        self._write_soon()

    @property
    def _unsent(self) -> int:
        """Bytes that wait for the socket. Those of an interrupted connection are lost."""
        return self._pending_data_size + (self._bulk.unsent if self.is_connected else 0)

    def _write_soon(self) -> None:
        if not self._write_is_due:
            self._write_is_due = True
            asyncio.get_running_loop().call_soon(self._write)

    def _write(self) -> None:
        self._write_is_due = False
        if self.is_connected and self._pending:
            pending, size, self._pending, self._pending_data_size = (
                self._pending,
                self._pending_data_size,
                [],
                0,
            )
            # A system call with many small pieces takes longer than joining them.
            self._bulk.writelines([b"".join(pending)] if size <= _JOINED else pending)

    async def _sent_some(self) -> None:
        """Wait until the socket has taken some of what waits for it; look again soon in any case."""
        self._write()
        try:
            async with asyncio.timeout(_LOOK_AGAIN):
                await self._bulk.drain()
        except TimeoutError:
            pass
        except OSError as error:
            raise UnavailableError("the connection to NATS is interrupted") from error
        if not self.is_connected:
            raise UnavailableError("the connection to NATS is interrupted")


def frame_head(subject: str, reply: str, headers: Headers | None, size: int) -> tuple[bytes, bytes]:
    """The line of a PUB or HPUB and its header block; `BadRequestError` rather than an injection."""
    if not _SUBJECT.fullmatch(subject) or (reply and not _SUBJECT.fullmatch(reply)):
        raise BadRequestError("a subject has no spaces or control characters")
    if not headers:
        return _line(f"PUB {subject} {reply} {size}"), b""
    block = header_block(headers)
    return _line(f"HPUB {subject} {reply} {len(block)} {len(block) + size}"), block


def header_block(headers: Headers) -> bytes:
    """Headers as they are sent, and counted against `max_payload`; `BadRequestError` for a line break."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items() if name != STATUS])
    status = f" {headers[STATUS]}" if STATUS in headers else ""
    block = f"NATS/1.0{status}\r\n{lines}\r\n".encode()
    if block.count(b"\n") != block.count(b"\r") or block.count(b"\n") != len(headers) + (1 if status else 2):
        raise BadRequestError("a header has no line breaks")
    return block


def _line(text: str) -> bytes:
    line = text.encode()
    if len(line) > _LONGEST_CONTROL_LINE:
        raise BadRequestError("a subject or reply subject is too long for the server")
    return line + _CRLF


def _information(text: bytes) -> dict[str, Any]:
    try:
        return _check_information(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise nats_errors.ProtocolError("nats: malformed INFO") from error


def _check_information(info: Any) -> dict[str, Any]:
    """What a server says of itself; `ProtocolError` unless what is used of it can be."""
    try:
        checked = msgspec.convert(info, _Information)
    except msgspec.ValidationError as error:
        raise nats_errors.ProtocolError("nats: malformed INFO") from error
    return {**info, "max_payload": checked.max_payload} if checked.max_payload else dict(info)


class _Information(msgspec.Struct):
    max_payload: Annotated[int, msgspec.Meta(ge=1)] | None = None
    connect_urls: list[str] | None = None


Options = dict[str, Any]
"""Keyword arguments of nats-py's `connect`."""
