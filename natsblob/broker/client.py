"""nats-py's client with the places replaced where it would lose requests or time (ADR 0004).

- A message goes from the socket to its handler directly (`receive`, `transport`). The library reads it into
  a buffer that it cuts up, puts it into a queue that drops when full, and has a task for each
  subscription that runs one callback at a time.
- Header blocks are parsed by `parse_headers`. The library stops reading when one is malformed, which
  any client can bring about.
- Publishing is `send`, which lets a cancellation through; the library's flush swallows it. What was
  published in one round of the event loop is written at its end, without a task in between.
- A ping waits its turn. The library's overtakes what is still to be sent, so that `flush` proves nothing.
- A user and a password in an address are decoded. The library sends %40 as it stands.
- Where TLS is asked for, nothing is sent without it. The library goes on in the clear, credentials included,
  where a server, or somebody between, says nothing of TLS.

Reconnecting, TLS, authentication and all of the protocol but messages stay the library's.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from time import monotonic
from typing import Any, Final

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


class DirectClient(Client):
    """See the module's text. `max_unflushed` bounds the bytes that wait for the socket."""

    max_unflushed: Final = 4 * 1024 * 1024

    _bulk: BulkTransport
    _write_is_due = False
    _own_login: bool | None = None
    """Whether a user or token was given beside the addresses, and outranks what stands in them."""

    async def _connect_to_server(self, s: Srv) -> None:
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
            subject.decode("utf-8", "replace"), reply.decode("utf-8", "replace"), data, parse_headers(headers)
        )
        try:
            handler(message)
        except Exception:  # a defect in one handler must not stop the reading
            log.exception("nats.handler")

    def enqueue(self, subject: str, reply: str, headers: Headers | None, data: bytes | memoryview) -> None:
        """Publish without waiting; `UnavailableError` where too much waits for the socket already."""
        head = frame_head(subject, reply, headers, len(data))
        if self.is_closed or self.is_draining_pubs:
            raise UnavailableError("the connection to NATS is closed")
        if len(data) > self.max_payload:
            raise TooLargeError("the message is larger than the server's max_payload")
        if self._unsent > self.max_unflushed * (2 if self.is_connected else 1):
            raise UnavailableError("the connection to NATS is interrupted or too slow")
        self._pending += (head, data, _CRLF)  # type: ignore[arg-type]  # only ever joined
        self._pending_data_size += len(head) + len(data) + len(_CRLF)
        self.stats["out_msgs"] += 1
        self.stats["out_bytes"] += len(data)
        self._write_soon()

    async def send(self, subject: str, reply: str, headers: Headers | None, data: bytes | memoryview) -> None:
        """Publish. Waits where more than `max_unflushed` bytes wait for the socket."""
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


def frame_head(subject: str, reply: str, headers: Headers | None, size: int) -> bytes:
    """The bytes of a PUB or HPUB before its payload; `BadRequestError` rather than an injection."""
    if not _SUBJECT.fullmatch(subject) or (reply and not _SUBJECT.fullmatch(reply)):
        raise BadRequestError("a subject has no spaces or control characters")
    if not headers:
        return f"PUB {subject} {reply} {size}\r\n".encode()
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items() if name != STATUS])
    status = f" {headers[STATUS]}" if STATUS in headers else ""
    block = f"NATS/1.0{status}\r\n{lines}\r\n".encode()
    if block.count(b"\n") != block.count(b"\r") or block.count(b"\n") != len(headers) + (1 if status else 2):
        raise BadRequestError("a header has no line breaks")
    return f"HPUB {subject} {reply} {len(block)} {len(block) + size}\r\n".encode() + block


Options = dict[str, Any]
"""Keyword arguments of nats-py's `connect`."""
