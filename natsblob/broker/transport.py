"""The TCP or TLS connection beneath nats-py's client, with reading and ending done differently (ADR 0004)."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from contextlib import suppress
from typing import Final, cast
from urllib.parse import ParseResult

from nats.aio.transport import Transport
from nats.errors import ProtocolError

from natsblob.broker.dial import dial
from natsblob.broker.receive import Cutter, Deliver
from natsblob.config.servers import DEFAULT_PORT

WRITE_AHEAD: Final = 1024 * 1024
"""Bytes handed to the socket and not taken by it yet, beyond which `drain` waits."""
_CLOSE_TIMEOUT: Final = 1.0
"""Seconds for a server to take what was written before; one that is frozen never does."""


class BulkTransport(asyncio.BufferedProtocol, Transport):
    """One connection to one server. Messages go to `deliver`; the library reads all other lines."""

    def __init__(self, deliver: Deliver) -> None:
        self._cutter = Cutter(deliver, self._take_line)
        self._lines: deque[bytes] = deque()
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._closed = asyncio.Event()
        self._failure: Exception | None = None
        self._transport: asyncio.Transport | None = None

    # Sizes of buffers are the library's; these are the cutter's.
    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:  # noqa: ARG002
        async with asyncio.timeout(connect_timeout):
            connected = await dial(str(uri.hostname), uri.port or DEFAULT_PORT)
            await asyncio.get_running_loop().create_connection(lambda: self, sock=connected)

    async def connect_tls(
        self,
        uri: str | ParseResult,
        ssl_context: ssl.SSLContext,
        buffer_size: int,  # noqa: ARG002
        connect_timeout: int,
    ) -> None:
        name = uri if isinstance(uri, str) else uri.hostname
        async with asyncio.timeout(connect_timeout):
            upgraded = await asyncio.get_running_loop().start_tls(
                self._socket, self, ssl_context, server_hostname=name
            )
        if upgraded is None:
            raise ConnectionResetError("the connection ended during the TLS handshake")
        self.connection_made(upgraded)

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=WRITE_AHEAD)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        return self._cutter.room()

    def buffer_updated(self, nbytes: int) -> None:
        try:
            self._cutter.received(nbytes)
        except ProtocolError as error:
            self._failure = error
            self._readable.set()
            self._socket.abort()

    def eof_received(self) -> None:
        """Nothing more to read: the event loop ends the connection."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._failure = self._failure or exc
        self._closed.set()
        self._readable.set()
        self._writable.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _take_line(self, line: bytes) -> None:
        self._lines.append(line)
        self._readable.set()

    # What the client library calls.

    def write(self, payload: bytes) -> None:
        self.writelines([payload])

    def writelines(self, payload: list[bytes]) -> None:
        """Hand bytes to the socket, or drop them if it has ended: the library is about to hear of it."""
        if not self._socket.is_closing():
            self._socket.writelines(payload)

    async def drain(self) -> None:
        await self._writable.wait()
        if self._closed.is_set():
            raise ConnectionResetError("the connection is lost")

    async def read(self, buffer_size: int) -> bytes:  # noqa: ARG002
        """The next line; no bytes at the end. Lines have been told apart from messages already."""
        return await self.readline()

    async def readline(self) -> bytes:
        while not self._lines and not self._closed.is_set() and self._failure is None:
            self._readable.clear()
            await self._readable.wait()
        if self._lines:
            return self._lines.popleft()
        if self._failure is not None:
            raise self._failure
        return b""

    def at_eof(self) -> bool:
        return self._closed.is_set() and not self._lines and self._failure is None

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End it at once, whatever is still to be sent. Also harmless before it began and after it ended."""
        if self._transport is not None:
            with suppress(AttributeError):  # of uvloop's, with TLS, once it has ended
                self._transport.abort()

    async def wait_closed(self) -> None:
        if self._transport is None:
            return
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                await self._closed.wait()
        except TimeoutError:
            self.abort()

    def __bool__(self) -> bool:
        return self._transport is not None

    @property
    def unsent(self) -> int:
        """Bytes that were handed to the socket and not taken by it yet."""
        return self._socket.get_write_buffer_size()

    @property
    def _socket(self) -> asyncio.Transport:
        if self._transport is None:
            raise ConnectionResetError("not connected")
        return self._transport
