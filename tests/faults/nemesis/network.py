"""How servers, workers and clients reach one another: directly, or through TCP proxies that can be cut.

A place in the network is the number of a server, from 1 on, or `CLIENTS` for all workers and clients.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import Final, Self

from natsblob.broker.embedded import LOOPBACK, free_port

CLIENTS: Final = 0
_READ: Final = 64 * 1024
_WAITING: Final = 64
"""Pieces of a stream that may be on their way through a proxy."""
_NOBODY: Final = f"{LOOPBACK}:1"
_RESET: Final = struct.pack("ii", 1, 0)


class Network:
    """Everybody on the loopback interface, with nothing between them."""

    def __init__(self, size: int) -> None:
        self.nodes = range(1, size + 1)
        ports: set[int] = set()
        while len(ports) < 3 * size:
            ports.add(free_port())
        self._ports = {node: (ports.pop(), ports.pop(), ports.pop()) for node in self.nodes}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def host(self, node: int) -> str:
        """Where a server listens."""
        return LOOPBACK

    def client_port(self, node: int) -> int:
        return self._ports[node][0]

    def route_port(self, node: int) -> int:
        return self._ports[node][1]

    def monitor_port(self, node: int) -> int:
        return self._ports[node][2]

    def route(self, source: int, target: int) -> str:
        """The address at which one server reaches another."""
        return f"{self.host(target)}:{self.route_port(target)}"

    def address(self, node: int) -> str:
        """The address at which workers and clients reach a server."""
        return f"{self.host(node)}:{self.client_port(node)}"

    def advertised(self, node: int) -> str:
        """What a server's configuration says of the address of its routes: others would go around a proxy."""
        return ""

    def command(self, node: int) -> list[str]:
        """What a server's command line begins with, to run it at its place."""
        return []

    async def cut(self, source: int, target: int) -> None:
        """From now on nothing gets from one place to another; the other direction stays as it is."""
        raise NotImplementedError("nothing can be cut on the bare loopback interface")

    async def heal(self) -> None:
        """Undo all cuts."""

    async def split(self, one: Iterable[int], other: Iterable[int]) -> None:
        """Cut both directions between any two places of two groups."""
        others = list(other)
        for source in one:
            for target in others:
                await self.cut(source, target)
                await self.cut(target, source)


class Link:
    """One proxy: a port that leads to another, with what may go wrong in between.

    What is cut is held, not lost, as packets are that TCP sends again. `delay` is in seconds, for each
    direction; `rate` in bytes per second, towards whoever connected.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._there = asyncio.Event()
        self._back = asyncio.Event()
        self._transports: set[asyncio.WriteTransport] = set()
        self._tear_after: int | None = None
        self.port = 0
        self.delay: Callable[[], float] = lambda: 0.0
        self.rate = 0.0
        self.heal()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, LOOPBACK, self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self, *, there: bool = True, back: bool = True) -> None:
        """Hold what goes to the target, or what comes back from it."""
        if there:
            self._there.clear()
        if back:
            self._back.clear()

    def release(self) -> None:
        """Let through what was held."""
        self._there.set()
        self._back.set()

    def heal(self) -> None:
        """Be a plain link again."""
        self.release()
        self.delay = lambda: 0.0
        self.rate = 0.0
        self._tear_after = None

    def tear(self, after: int) -> None:
        """Reset the next connection that carries as many bytes in one piece, in the middle of that piece."""
        self._tear_after = after

    def reset(self) -> None:
        """Reset all connections now."""
        for transport in list(self._transports):
            _reset(transport)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        writers = [writer]
        try:
            with suppress(OSError):
                await self._there.wait()
                target_reader, target_writer = await asyncio.open_connection(*self._target)
                writers.append(target_writer)
                self._transports |= {writer.transport, target_writer.transport}
                await self._carry(reader, target_writer, target_reader, writer)
        except asyncio.CancelledError:
            pass  # asyncio's own callback for connections logs tasks that end so
        finally:
            for one in writers:
                self._transports.discard(one.transport)
                one.transport.abort()
            self._tasks.discard(task)

    async def _carry(
        self,
        reader: asyncio.StreamReader,
        target_writer: asyncio.StreamWriter,
        target_reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """Carry bytes in both directions until one of them ends."""
        there = asyncio.create_task(self._pump(reader, target_writer, self._there, is_back=False))
        back = asyncio.create_task(self._pump(target_reader, writer, self._back, is_back=True))
        try:
            await asyncio.wait({there, back}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            there.cancel()
            back.cancel()
            await asyncio.gather(there, back, return_exceptions=True)

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        is_open: asyncio.Event,
        *,
        is_back: bool,
    ) -> None:
        """One direction. Pieces wait in a queue, so that a delay does not slow the stream down."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_WAITING)

        async def send() -> None:
            while True:
                due, data = await queue.get()
                await asyncio.sleep(max(0.0, due - loop.time()))
                await is_open.wait()
                if self._tear_after is not None and len(data) > self._tear_after:
                    writer.write(data[: self._tear_after])
                    self._tear_after = None
                    _reset(writer.transport)
                    return
                writer.write(data)
                await writer.drain()
                if is_back and self.rate:
                    await asyncio.sleep(len(data) / self.rate)

        async def receive() -> None:
            while data := await reader.read(_READ):
                await queue.put((loop.time() + self.delay(), data))

        sending = asyncio.create_task(send())
        receiving = asyncio.create_task(receive())
        try:
            await asyncio.wait({sending, receiving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sending.cancel()
            receiving.cancel()
            await asyncio.gather(sending, receiving, return_exceptions=True)


def _reset(transport: asyncio.WriteTransport) -> None:
    """End a connection with a reset, not in good order."""
    peer = transport.get_extra_info("socket")
    if peer is not None:
        with suppress(OSError):
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()


class ProxyNetwork(Network):
    """A proxy on the way from each place to each server."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        places = (CLIENTS, *self.nodes)
        self._stack = AsyncExitStack()
        self.links = {
            (source, target): Link((LOOPBACK, self._ports[target][0 if source == CLIENTS else 1]))
            for source in places
            for target in self.nodes
            if source != target
        }

    async def __aenter__(self) -> Self:
        for link in self.links.values():
            await self._stack.enter_async_context(link)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    @property
    def client_links(self) -> list[Link]:
        """The links that workers and clients use."""
        return [link for (source, _), link in self.links.items() if source == CLIENTS]

    def route(self, source: int, target: int) -> str:
        return f"{LOOPBACK}:{self.links[source, target].port}"

    def advertised(self, node: int) -> str:
        return f' advertise: "{_NOBODY}",'

    def address(self, node: int) -> str:
        return f"{LOOPBACK}:{self.links[CLIENTS, node].port}"

    async def cut(self, source: int, target: int) -> None:
        if (source, target) in self.links:
            self.links[source, target].cut(back=False)
        if (target, source) in self.links:
            self.links[target, source].cut(there=False)

    async def heal(self) -> None:
        for link in self.links.values():
            link.heal()


def jitter(rng: random.Random, most: float) -> Callable[[], float]:
    """Delays of up to `most` seconds. Each piece of a stream has its own, and they stay in order."""
    return lambda: rng.uniform(0, most)
