"""What a peer in Python is driven by: one line of JSON per measurement, one line of JSON as its answer.

    {"verb": "put", "size": 4096, "count": 1000, "at_once": 32, "run": "7"}
    {"seconds": 1.03, "cpu": 0.6, "held": 4096000, "latencies": [0.0311, …], "first_bytes": [0.0309, …]}

What a put of a run has stored, the other verbs of the same run use. Times are seconds, `cpu` of
this process in user and system mode; `held` is how many bytes of data to put were kept in memory beside what
the client needs. `error` instead where it failed.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from time import perf_counter, process_time
from typing import Any, Final, Protocol, TypeAlias

from natsblob.broker.loop import loop_factory

_STAMP: Final = 16
_LARGE: Final = 1024 * 1024
"""Bytes from which a copy would show in the peak of memory."""


class Peer(Protocol):
    """An Object Store as a user of its client sees it."""

    async def put(self, name: str, data: bytes) -> None: ...

    async def get(self, name: str) -> float:
        """Read all of it; the time (of `perf_counter`) at which the first byte was there."""
        ...


Connect: TypeAlias = Callable[[str, str], AbstractAsyncContextManager[Peer]]
"""A peer on the server at a URL, with a bucket."""


@dataclass(frozen=True, slots=True)
class Order:
    verb: str
    size: int
    count: int
    at_once: int
    run: str


def main(connect: Connect) -> None:
    """Obey orders until standard input ends. The command line names a URL and a bucket."""
    url, bucket = sys.argv[1:3]
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_obey(connect, url, bucket))


async def _obey(connect: Connect, url: str, bucket: str) -> None:
    async with connect(url, bucket) as peer:
        async for line in _orders():
            try:
                answer = await _measured(peer, Order(**json.loads(line)))
            except Exception as error:  # noqa: BLE001 - whatever a peer raises is its result
                answer = {"error": f"{type(error).__name__}: {error}"}
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


async def _orders() -> AsyncIterator[bytes]:
    while line := await asyncio.to_thread(sys.stdin.buffer.readline):
        yield line


async def _measured(peer: Peer, order: Order) -> dict[str, Any]:
    names = [f"{order.run}-{number}" for number in range(1, order.count + 1)]
    # Different bytes for each put: the service would store the same ones only once.
    blobs = _blobs(order.size, order.count) if order.verb == "put" else [b""] * order.count
    held = sum(map(len, blobs))
    work = list(zip(names, blobs, strict=True))
    del blobs
    work.reverse()
    latencies: list[float] = []
    first_bytes: list[float] = []

    async def lane() -> None:
        while work:
            name, data = work.pop()
            begun = perf_counter()
            if order.verb == "put":
                await peer.put(name, data)
            elif order.verb == "get":
                first_bytes.append(await peer.get(name) - begun)
            else:
                await getattr(peer, order.verb)(name)
            latencies.append(perf_counter() - begun)

    cpu, started = process_time(), perf_counter()
    try:
        async with asyncio.TaskGroup() as lanes:
            for _ in range(order.at_once):
                lanes.create_task(lane())
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
    return {
        "seconds": perf_counter() - started,
        "cpu": process_time() - cpu,
        "held": held,
        "latencies": latencies,
        "first_bytes": first_bytes,
    }


def _blobs(size: int, count: int) -> list[bytes]:
    if size >= _LARGE:
        return [os.urandom(size) for _ in range(count)]
    body = os.urandom(max(0, size - _STAMP))
    return [os.urandom(min(size, _STAMP)) + body for _ in range(count)]
