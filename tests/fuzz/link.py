"""A connection to NATS without a client library: what is sent is what was written, byte by byte."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, NamedTuple

LOOPBACK: Final = "127.0.0.1"
_HELLO: Final = b'CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true}\r\n'


class Answer(NamedTuple):
    """One message that came back. `headers` are as they stand in the block, names and values."""

    data: bytes
    headers: dict[str, str]
    status: str

    @property
    def is_error(self) -> bool:
        return "Nats-Service-Error-Code" in self.headers


Taker = Callable[[str, Answer], None]
"""Takes an answer and the subject that it came on."""


class Link(asyncio.Protocol):
    """One connection, whose answers go to `take`. `ended` is done once the server has closed it."""

    def __init__(self, take: Taker) -> None:
        self._take = take
        self._buffer = bytearray()
        self._pongs: list[asyncio.Future[None]] = []
        self._transport: asyncio.Transport
        self.said: list[str] = []
        """Errors that the server has told."""
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    async def open(cls, port: int, take: Taker, *subjects: str) -> Link:
        """A connection that listens to `subjects`, in the server's eyes too."""
        _, link = await asyncio.get_running_loop().create_connection(lambda: cls(take), LOOPBACK, port)
        link.send(_HELLO)
        for number, subject in enumerate(subjects, start=1):
            link.send(f"SUB {subject} {number}\r\n".encode())
        await link.flush()
        return link

    def send(self, protocol: bytes) -> None:
        self._transport.write(protocol)

    async def flush(self) -> None:
        """Returns when the server has seen all that was sent."""
        pong: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pongs.append(pong)
        self.send(b"PING\r\n")
        async with asyncio.timeout(30):
            await pong

    async def close(self) -> None:
        self._transport.close()
        await self.ended

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        position = 0
        while True:
            end = self._buffer.find(b"\r\n", position)
            if end < 0:
                break
            line = bytes(self._buffer[position:end])
            if line.startswith((b"MSG ", b"HMSG ")):
                after = self._message(line.split(b" "), end + 2)
                if after is None:
                    break
                position = after
            else:
                position = end + 2
                self._control(line)
        del self._buffer[:position]

    def _message(self, parts: list[bytes], start: int) -> int | None:
        """Hand on a message that is complete; where the next one begins."""
        size = int(parts[-1])
        if len(self._buffer) < start + size + 2:
            return None
        head = int(parts[-2]) if parts[0] == b"HMSG" else 0
        block = bytes(self._buffer[start : start + head])
        data = bytes(self._buffer[start + head : start + size])
        self._take(parts[1].decode("utf-8", "replace"), Answer(data, *_parsed(block)))
        return start + size + 2

    def _control(self, line: bytes) -> None:
        if line == b"PING":
            self.send(b"PONG\r\n")
        elif line == b"PONG" and self._pongs:
            self._pongs.pop(0).set_result(None)
        elif line.startswith(b"-ERR"):
            self.said.append(line.decode("utf-8", "replace"))


def _parsed(block: bytes) -> tuple[dict[str, str], str]:
    first, *lines = block.decode("utf-8", "replace").split("\r\n")
    pairs = (line.partition(":") for line in lines if line)
    return {name: value.strip() for name, _, value in pairs}, first.removeprefix("NATS/1.0").strip()[:3]


def published(subject: str | bytes, reply: bytes, body: bytes, block: bytes = b"") -> bytes:
    """A PUB, or with a header block an HPUB, as it goes over the wire."""
    named = subject.encode() if isinstance(subject, str) else subject
    target = named + (b" " + reply if reply else b"")
    if block:
        return b"HPUB %s %d %d\r\n%s%s\r\n" % (target, len(block), len(block) + len(body), block, body)
    return b"PUB %s %d\r\n%s\r\n" % (target, len(body), body)
