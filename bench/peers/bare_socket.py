"""The ceiling for any client in Python: a blocking socket, and a parser that knows only what it needs.

    python -m bench.peers.bare_socket URL BUCKET [--verify]

One operation at a time. With `--verify` SHA-256 of all that is put and got is computed, and compared.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from secrets import token_hex
from time import perf_counter
from typing import Final
from urllib.parse import urlsplit

from bench.peers.bare_loop import WINDOW
from bench.peers.driver import main
from natsblob.broker.allocator import keep_memory
from natsblob.chunking import DEFAULT_CHUNK_SIZE

_READ: Final = 1024 * 1024
_JOINED: Final = 64 * 1024
"""Bytes up to which one system call is cheaper than a copy saved."""
_TIMEOUT: Final = 60.0
_SEQUENCE: Final = re.compile(rb"Nats-Sequence: (\d+)")


class Line:
    """A connection that has one subscription, and reads its messages one after the other."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self._socket = socket.create_connection((address.hostname or "", address.port or 4222), _TIMEOUT)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray(2 * _READ)
        self._start = self._end = 0
        self._inbox = f"_INBOX.{token_hex(8)}".encode()
        self._socket.sendall(b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\n')
        self._socket.sendall(b"SUB %b 1\r\n" % self._inbox)

    def close(self) -> None:
        self._socket.close()

    def publish(self, subject: str, data: bytes | memoryview) -> None:
        head = b"PUB %b %b %d\r\n" % (subject.encode(), self._inbox, len(data))
        if len(data) <= _JOINED:
            self._socket.sendall(b"".join((head, data, b"\r\n")))
        else:
            self._socket.sendall(head)
            self._socket.sendall(data)
            self._socket.sendall(b"\r\n")

    def messages(self) -> Iterator[tuple[bytes, memoryview]]:
        """Header block and payload of each message; the payload is overwritten by the next one."""
        while True:
            words = self._line().split()
            if words[0] == b"PING":
                self._socket.sendall(b"PONG\r\n")
            elif words[0] == b"-ERR":
                raise OSError(b" ".join(words).decode())
            elif words[0] in {b"MSG", b"HMSG"}:
                header = int(words[-2]) if words[0] == b"HMSG" else 0
                frame = self._take(int(words[-1]) + 2)
                yield bytes(frame[:header]), frame[header:-2]

    def _line(self) -> bytes:
        while (at := self._buffer.find(b"\r\n", self._start, self._end)) < 0:
            self._fill()
        line = bytes(memoryview(self._buffer)[self._start : at])
        self._start = at + 2
        return line

    def _take(self, size: int) -> memoryview:
        while self._end - self._start < size:
            self._fill()
        frame = memoryview(self._buffer)[self._start : self._start + size]
        self._start += size
        return frame

    def _fill(self) -> None:
        view = memoryview(self._buffer)
        if self._start > _READ // 2:
            rest = self._end - self._start
            view[:rest] = bytes(view[self._start : self._end])
            self._start, self._end = 0, rest
        count = self._socket.recv_into(view[self._end :])
        if not count:
            raise OSError("the server has closed the connection")
        self._end += count


class BareSocket:
    def __init__(self, line: Line, bucket: str, *, verify: bool) -> None:
        self._line = line
        self._messages = line.messages()
        self._chunks = f"$O.{bucket}.C"
        self._reads = f"$JS.API.DIRECT.GET.OBJ_{bucket}"
        self._verify = verify
        self._stored: dict[str, tuple[int, bytes]] = {}

    async def put(self, name: str, data: bytes) -> None:
        await asyncio.to_thread(self._put, name, data)

    async def get(self, name: str) -> float:
        return await asyncio.to_thread(self._get, name)

    def _put(self, name: str, data: bytes) -> None:
        sha = hashlib.sha256()
        view = memoryview(data)
        unanswered = 0
        for start in range(0, len(data), DEFAULT_CHUNK_SIZE):
            if unanswered == WINDOW:
                self._acknowledged()
                unanswered -= 1
            chunk = view[start : start + DEFAULT_CHUNK_SIZE]
            self._line.publish(f"{self._chunks}.{name}", chunk)
            unanswered += 1
            if self._verify:
                sha.update(chunk)
        for _ in range(unanswered):
            self._acknowledged()
        self._stored[name] = len(data), sha.digest()

    def _acknowledged(self) -> None:
        _, ack = next(self._messages)
        answer = json.loads(bytes(ack))
        if "error" in answer:
            raise OSError(answer["error"]["description"])

    def _get(self, name: str) -> float:
        size, digest = self._stored[name]
        sha = hashlib.sha256()
        sequence, first = 1, 0.0
        while size > 0:
            request = {"seq": sequence, "next_by_subj": f"{self._chunks}.{name}", "batch": WINDOW}
            self._line.publish(self._reads, json.dumps(request).encode())
            for header, payload in self._messages:
                if not payload:
                    break
                first = first or perf_counter()
                size -= len(payload)
                found = _SEQUENCE.search(header)
                sequence = int(found[1]) + 1 if found else sequence
                if self._verify:
                    sha.update(payload)
        if self._verify and sha.digest() != digest:
            raise ValueError(f"{name} was read with other bytes than it was put with")
        return first


@asynccontextmanager
async def connect(url: str, bucket: str, *, verify: bool) -> AsyncIterator[BareSocket]:
    line = Line(url)
    try:
        yield BareSocket(line, bucket, verify=verify)
    finally:
        line.close()


if __name__ == "__main__":
    keep_memory()
    main(partial(connect, verify="--verify" in sys.argv[3:]))
