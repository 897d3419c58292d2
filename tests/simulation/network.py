"""Connections of the simulation: the real `Connection` on a client whose messages pass through faults."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from types import SimpleNamespace
from typing import Any, Final, Literal, Protocol, cast
from urllib.parse import urlparse

from natsblob.broker.client import DirectClient, Handler
from natsblob.broker.connection import Connection
from natsblob.broker.message import Message
from natsblob.errors import UnavailableError
from natsblob.wire import STATUS, Headers
from tests.simulation.faults import Faults
from tests.simulation.stream import ViolationError

MAX_PAYLOAD: Final = 1024 * 1024
_HOP: Final = 0.002
_LATE: Final = 8.0


class Peer(Protocol):
    """Who takes what clients publish."""

    def take(self, message: Message) -> None: ...


class SimulatedClient:
    """What `Connection` uses of nats-py's client. Crashed, it sends and hears nothing any more."""

    max_payload: Final = MAX_PAYLOAD
    is_closed: Final = False
    connected_url: Final = urlparse("nats://simulation:4222")
    connected_server_version: Final = SimpleNamespace(major=2, minor=12, patch=0)

    def __init__(self, network: Network) -> None:
        self._network = network
        self._subscriptions: dict[int, tuple[str, str, Handler]] = {}
        self._next_sid = 0
        self.is_connected = True
        self.is_dead = False
        self.steps = 0
        self._unanswered: dict[str, set[str]] = {}
        self.on_step: Callable[[int], None] | None = None
        """Called with the number of messages sent so far, before each: where crashes happen."""

    async def send(self, subject: str, reply: str, headers: Headers | None, data: bytes | memoryview) -> None:
        self.enqueue(subject, reply, headers, data)

    def enqueue(self, subject: str, reply: str, headers: Headers | None, data: bytes | memoryview) -> None:
        self.steps += 1
        if self.on_step is not None:
            self.on_step(self.steps)
        if self.is_dead:
            return
        if not self.is_connected:
            raise UnavailableError("the connection to NATS is interrupted")
        if not subject.startswith("$JS."):
            self._bound(reply)
        self._network.to_server(self, packed(subject, reply, bytes(data), headers or {}))

    def _bound(self, reply: str) -> None:
        """What windows of publishers are for: a server drops the client with too much on its way."""
        window, _, index = reply.rpartition(".")
        if window.count(".") == 2:
            unanswered = self._unanswered.setdefault(window, set())
            unanswered.add(index)
            if len(unanswered) > self._network.max_pending:
                raise ViolationError(f"{len(unanswered)} chunks were published without an answer to any")

    async def subscribe_direct(self, subject: str, handler: Handler, queue: str = "") -> int:
        self._next_sid += 1
        self._subscriptions[self._next_sid] = (subject, queue, handler)
        return self._next_sid

    async def unsubscribe_direct(self, sid: int) -> None:
        self._subscriptions.pop(sid, None)

    async def flush(self) -> None:
        await asyncio.sleep(_HOP)

    def deliver(self, message: Message, address: str) -> None:
        """Hand on what was sent to `address`: consumers send messages of other subjects there."""
        if self.is_dead or not self.is_connected:
            return
        window, _, index = address.rpartition(".")
        self._unanswered.get(window, set()).discard(index)
        for _, _, handler in self._matching(address):
            handler(message)

    def hears(self, subject: str) -> set[str]:
        """The queue groups in which the server may send it here; "" is none, so that it is sent always."""
        if self.is_dead or not self.is_connected:
            return set()
        return {queue for _, queue, _ in self._matching(subject)}

    def _matching(self, subject: str) -> list[tuple[str, str, Handler]]:
        """As `matches`, for all patterns at once: nothing else in the simulation is called so often."""
        siblings = f"{subject.rpartition('.')[0]}.*"
        return [
            one
            for one in self._subscriptions.values()
            if one[0] in (subject, siblings) or (one[0][-1] == ">" and subject.startswith(one[0][:-1]))
        ]


def packed(subject: str, reply: str, data: bytes, headers: Headers) -> Message:
    """A message with the header block that these headers make."""
    status = f" {headers[STATUS]}" if STATUS in headers else ""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items() if name != STATUS)
    return Message(subject, reply, data, headers, f"NATS/1.0{status}\r\n{lines}\r\n".encode())


def matches(pattern: str, subject: str) -> bool:
    if pattern.endswith(".*"):
        return subject.rpartition(".")[0] == pattern[:-2]
    return subject.startswith(pattern[:-1]) if pattern.endswith(".>") else subject == pattern


Line = tuple[SimulatedClient, Literal["in", "out"]]


class Network:
    """Carries messages between clients and the server, well or badly."""

    def __init__(self, random: Random, faults: Faults, *, max_pending: int) -> None:
        self.faults = faults
        self.max_pending = max_pending
        """Chunks on their way to or from one client at most; there is no flow control."""
        self.clients: list[SimulatedClient] = []
        self._random = random
        self._server: Peer | None = None
        self._latest: dict[Line, float] = {}

    def serve(self, server: Peer) -> None:
        self._server = server

    async def connect(self) -> tuple[Connection, SimulatedClient]:
        client = SimulatedClient(self)
        self.clients.append(client)
        connection = Connection(cast("DirectClient", client), "_INBOX", asyncio.Event())
        await connection.listen()
        return connection, client

    def to_server(self, client: SimulatedClient, message: Message) -> None:
        if self._server is not None:
            self._carry((client, "out"), self._server.take, message)

    def route(self, message: Message, to: str | None = None) -> bool:
        """Send to all who listen, and to one of those in a queue group; whether there is anybody."""
        address = message.subject if to is None else to
        heard = [(client, client.hears(address)) for client in self.clients]
        hearers = [client for client, groups in heard if "" in groups]
        members = [client for client, groups in heard if groups - {""}]
        if members:
            hearers.append(self._random.choice(members))
        for client in hearers:
            self._carry((client, "in"), client.deliver, message, address)
        return bool(hearers)

    def _carry(self, line: Line, arrive: Callable[..., None], *what: Any) -> None:
        random, faults = self._random, self.faults
        if random.random() < faults.lost:
            return
        for _ in range(2 if random.random() < faults.duplicated else 1):
            loop = asyncio.get_running_loop()
            at = loop.time() + _HOP * (0.5 + random.random())
            if random.random() < faults.late:
                at += _LATE * random.random()
            if random.random() < faults.reordered:
                at += 0.05 * random.random()
            else:  # behind what went before, as on one TCP connection
                at = max(at, self._latest.get(line, 0.0) + 1e-6)
                self._latest[line] = at
            loop.call_at(at, arrive, *what)
