"""The receiving end of a connection: larger reads, and payloads that are put together once (ADR 0004).

The library reads 32 KiB at a time into one growing buffer, from which it cuts every payload and then
moves the rest to the front. For chunks of half a MiB that is most of what a client spends.
"""

from __future__ import annotations

from typing import Any, Final, Protocol
from urllib.parse import ParseResult

from nats.aio.transport import TcpTransport
from nats.errors import ProtocolError
from nats.protocol.parser import Parser

READ_SIZE: Final = 1024 * 1024
"""Bytes asked of the socket at a time."""
_LONGEST_LINE: Final = 1024 * 1024
"""Bytes of a control line; INFO names every server of a cluster."""
_CRLF: Final = 2


class BulkTransport(TcpTransport):
    """A TCP connection that is read in large pieces."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # the library leaves it untyped

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:
        await super().connect(uri, max(buffer_size, READ_SIZE), connect_timeout)

    async def read(self, buffer_size: int) -> bytes:
        data: bytes = await super().read(max(buffer_size, READ_SIZE))
        return data


class Receiver(Protocol):
    """The client, as far as the parser calls it with messages."""

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes
    ) -> None: ...


class BulkParser(Parser):
    """Cuts messages out of what is read; all other operations are the library's to parse."""

    def __init__(self, client: Any) -> None:
        super().__init__(client)
        self._client: Receiver = client

    def reset(self) -> None:
        super().reset()
        self._line = b""
        self._parts: list[memoryview] = []
        self._missing = 0
        self._subject = self._reply = b""
        self._sid = self._header_size = self._size = 0

    async def parse(self, data: bytes = b"") -> None:
        """Take what was read, in pieces of any size, and hand on the messages that are complete."""
        view = memoryview(data)
        position = 0
        while position < len(data):
            if self._missing:
                taken = view[position : position + self._missing]
                self._parts.append(taken)
                self._missing -= len(taken)
                position += len(taken)
                if not self._missing:
                    await self._message_is_complete()
                continue
            end = data.find(b"\n", position) + 1
            self._line += data[position : end or len(data)]
            if len(self._line) > _LONGEST_LINE:
                raise ProtocolError("nats: a control line without an end")
            if not end:
                return
            position = end
            line, self._line = self._line, b""
            if line.startswith((b"MSG ", b"HMSG ")):
                self._message_begins(line)
            else:
                await super().parse(line)

    def _message_begins(self, line: bytes) -> None:
        try:
            operation, self._subject, sid, *reply, size = line.split()
            header_size = reply.pop() if operation == b"HMSG" else b"0"
            self._reply = reply[0] if reply else b""
            self._sid, self._header_size, self._size = int(sid), int(header_size), int(size)
        except ValueError as error:
            raise ProtocolError("nats: malformed MSG") from error
        self._missing = self._size + _CRLF

    async def _message_is_complete(self) -> None:
        parts, self._parts = self._parts, []
        header = bytes(cut(parts, self._header_size))
        payload = cut(parts, self._size - self._header_size)
        await self._client._process_msg(self._sid, self._subject, self._reply, payload, header)  # noqa: SLF001


def cut(parts: list[memoryview], size: int) -> bytes:
    """Take the first `size` bytes off `parts`, copied once."""
    taken: list[memoryview] = []
    while size > 0:
        part = parts.pop(0)
        if len(part) > size:
            parts.insert(0, part[size:])
            part = part[:size]
        taken.append(part)
        size -= len(part)
    return b"".join(taken)
