"""Real nats-servers for tests, on free ports and in directories that go away with them.

async with temporary_server() as server:
    nc = await nats.connect(server.url)
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import anyio

from natsblob.broker.embedded import LOOPBACK, EmbeddedServer, PortTakenError, free_port
from natsblob.errors import UnavailableError

SETTLE_DEADLINE: Final = 60.0
"""Seconds until the servers of a cluster agree; an election takes 4 to 9 on an idle machine."""
MONITOR_DEADLINE: Final = 2.0
_POLL: Final = 0.05
_ATTEMPTS: Final = 5


@contextmanager
def temporary_store_dir() -> Iterator[Path]:
    """A directory for the store of one server or cluster, removed at the end."""
    with tempfile.TemporaryDirectory(prefix="natsblob-", ignore_cleanup_errors=True) as directory:
        yield Path(directory)


@asynccontextmanager
async def temporary_server(*, extra: str = "", jetstream: str = "") -> AsyncIterator[EmbeddedServer]:
    """A server that answers, with an empty store; `extra` and `jetstream` as in `EmbeddedServer`."""
    with temporary_store_dir() as directory:
        async with EmbeddedServer(directory, extra=extra, jetstream=jetstream) as server:
            yield server


@asynccontextmanager
async def temporary_cluster(
    size: int = 3, *, extra: str = "", jetstream: str = ""
) -> AsyncIterator[EmbeddedCluster]:
    """A cluster that has elected its leader, with empty stores; the rest is as in `EmbeddedServer`."""
    with temporary_store_dir() as directory:
        async with EmbeddedCluster(directory, size, extra=extra, jetstream=jetstream) as cluster:
            yield cluster


@dataclass(frozen=True, slots=True)
class Seat:
    """Where one server of a cluster meets the others, and where it can be monitored."""

    route_port: int
    monitor_port: int

    def config(self, peers: Sequence[Seat]) -> str:
        routes = ", ".join(f'"nats://{LOOPBACK}:{peer.route_port}"' for peer in peers if peer != self)
        return (
            f'http: "{LOOPBACK}:{self.monitor_port}"\n'
            f'cluster {{ name: test, listen: "{LOOPBACK}:{self.route_port}", routes: [{routes}] }}\n'
        )


class EmbeddedCluster:
    """`size` servers with routes between them; each of `servers` may be killed, paused and restarted."""

    def __init__(
        self,
        directory: Path,
        size: int = 3,
        *,
        extra: str = "",
        jetstream: str = "",
        binary: Path | None = None,
    ) -> None:
        """`extra`, `jetstream` and `binary` as in `EmbeddedServer`."""
        self._directory = directory
        self._size = size
        self._extra = extra
        self._jetstream = jetstream
        self._binary = binary
        self._seats: list[Seat] = []
        self.servers: list[EmbeddedServer] = []

    @property
    def urls(self) -> list[str]:
        return [server.url for server in self.servers]

    def named(self, name: str) -> EmbeddedServer:
        """The server that JetStream calls `name`, as in `cluster.leader` of a stream's info."""
        return next(server for server in self.servers if server.name == name)

    async def __aenter__(self) -> Self:
        try:
            await self._start()
            await self.settled()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def _start(self) -> None:
        for attempt in range(_ATTEMPTS):
            self._take_seats()
            try:
                await asyncio.gather(*(server.start() for server in self.servers))
            except PortTakenError:
                await self._stop()
                if attempt == _ATTEMPTS - 1:
                    raise
            else:
                return

    def _take_seats(self) -> None:
        ports: set[int] = set()
        while len(ports) < 2 * self._size:
            ports.add(free_port())
        self._seats = [Seat(ports.pop(), ports.pop()) for _ in range(self._size)]
        self.servers = [
            EmbeddedServer(
                self._directory / f"n{number}",
                name=f"n{number}",
                extra=seat.config(self._seats) + self._extra,
                extra_ports=(seat.route_port, seat.monitor_port),
                jetstream=self._jetstream,
                binary=self._binary,
            )
            for number, seat in enumerate(self._seats, start=1)
        ]

    async def _stop(self) -> None:
        await asyncio.gather(*(server.stop() for server in self.servers))

    async def settled(self) -> None:
        """Wait until all servers that run see one another and follow one JetStream leader.

        `UnavailableError` if they do not in time, for example because most of them are down.
        """
        running = {
            server.name: seat.monitor_port
            for server, seat in zip(self.servers, self._seats, strict=True)
            if server.running
        }
        try:
            with anyio.fail_after(SETTLE_DEADLINE):
                await until_settled(running, self._size)
        except TimeoutError as error:
            raise UnavailableError(f"{len(running)} of {self._size} servers found no leader") from error


async def until_settled(monitor_ports: Mapping[str, int], size: int) -> None:
    """Wait until these servers, by name, of a cluster of `size` are connected and have a meta leader."""
    while not await _is_settled(monitor_ports, size):  # noqa: ASYNC110 - another process decides
        await anyio.sleep(_POLL)


async def _is_settled(monitor_ports: Mapping[str, int], size: int) -> bool:
    leaders = set()
    for name, port in monitor_ports.items():
        routes = await monitor(port, "/routez")
        meta = (await monitor(port, "/jsz")).get("meta_cluster", {})
        peers = {route["remote_name"] for route in routes.get("routes", [])}
        if not peers >= monitor_ports.keys() - {name} or meta.get("cluster_size") != size:
            return False
        leader = meta.get("leader")
        leaders.add(leader)
        if leader == name:
            followers = {peer["name"] for peer in meta.get("replicas", []) if peer["current"]}
            if not followers >= monitor_ports.keys() - {name}:
                return False
    return len(leaders) == 1 and leaders <= monitor_ports.keys()


async def monitor(port: int, path: str) -> dict[str, Any]:
    """What the monitoring endpoint of a server says at `path`; empty if it does not answer."""
    try:
        with anyio.fail_after(MONITOR_DEADLINE):
            reader, writer = await asyncio.open_connection(LOOPBACK, port)
            try:
                writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
                _, _, body = (await reader.read()).partition(b"\r\n\r\n")
            finally:
                writer.close()
            answer: dict[str, Any] = json.loads(body)
            return answer
    except (OSError, TimeoutError, ValueError):
        return {}
