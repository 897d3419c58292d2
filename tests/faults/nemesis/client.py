"""One client under load, as a process: what it does follows from its seed, what it hears goes to a history.

It is told what to do by one line of JSON on its standard input, and to stop by the end of it. Operations
that have begun are then waited for.
"""

from __future__ import annotations

import asyncio
import random
import sys
import threading
from collections.abc import Awaitable
from pathlib import Path
from typing import Final

import msgspec

import natsblob
from natsblob.client.service import decoded
from natsblob.digest import Digest
from natsblob.errors import BlobError
from natsblob.wire import HasReply
from tests.faults.nemesis.history import (
    CANCELLED,
    HISTORIES,
    NOT_FOUND,
    OK,
    UNANSWERED,
    WRONG,
    Operation,
    Recorder,
    Tail,
    content,
    history_of,
)

SMALL: Final = 32 * 1024
LARGE: Final = range(1_100_000, 3_000_000)
"""Bytes of a blob that does not fit one message, and so is put and got in chunks."""
ON_TIME: Final = 5.0
"""Seconds after its deadline in which an answer still counts: processes share two cores here."""
RECENT: Final = 12
SHARED: Final = 40
"""Blobs that all clients put, again and again."""


class Orders(msgspec.Struct, kw_only=True):
    """What a client is to do."""

    number: int
    seed: int
    servers: list[str]
    directory: str
    """Where the histories of all clients are."""
    timeout: float
    lanes: int = 3
    pause: float = 0.15
    """Seconds between two operations of a lane, on average."""
    large: float = 0.12
    """The share of puts that need chunks."""
    puts: float = 0.45
    """The share of operations that put."""
    once: float = 0.0
    """The share of `has` that is one request, which nobody repeats: it gets an answer, or none."""
    cancels: float = 0.0
    """The share of operations that are cancelled before they have ended."""


class Lane:
    """Does one operation after the other."""

    def __init__(self, orders: Orders, number: int, blobs: natsblob.Client, load: Load) -> None:
        self._orders = orders
        self._name = f"{orders.number}/{number}"
        self._blobs = blobs
        self._load = load
        self._rng = random.Random(f"{orders.seed}/{self._name}")
        self._count = 0

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await self._step()
            await asyncio.sleep(self._rng.expovariate(1 / self._orders.pause))

    async def _step(self) -> None:
        known = self._load.known()
        dice = self._rng.random()
        if dice < self._orders.puts or not known:
            await self._put_and_look()
        elif dice > 0.97:
            self._count += 1
            await self._get(f"absent {self._name}/{self._count}", 64)
        else:
            chosen = known[-RECENT:] if self._rng.random() < 0.5 else known
            blob, size = self._rng.choice(chosen)
            await (self._get(blob, size) if self._rng.random() < 0.7 else self._has(blob, size))

    async def _put_and_look(self) -> None:
        self._count += 1
        blob, size = f"blob {self._name}/{self._count}", self._rng.randrange(SMALL)
        if self._rng.random() < self._orders.large:
            size = self._rng.choice(LARGE)
        elif self._rng.random() < 0.05:
            number = self._rng.randrange(SHARED)
            blob, size = f"shared {number}", 100 * number
        data = content(blob, size)
        address = Digest.of(data)
        declared = address if self._rng.random() < 0.3 else None
        operation = self._load.recorder.begin("put", blob, size)

        async def put() -> str:
            info = await self._blobs.put(data, digest=declared)
            return OK if (info.digest, info.size) == (address, size) else WRONG

        await self._bounded(operation, put())
        if operation.is_acknowledged:
            self._load.acknowledged.append((blob, size))
            await (self._get(blob, size) if self._rng.random() < 0.7 else self._has(blob, size))

    async def _get(self, blob: str, size: int) -> None:
        data = content(blob, size)
        address = Digest.of(data)
        operation = self._load.recorder.begin("get", blob, size)

        first, length = 0, None
        if self._rng.random() < 0.15:
            first = self._rng.randrange(size + 1)
            length = self._rng.randrange(size - first + 1)

        async def get() -> str:
            found = await self._blobs.get(address, offset=first, length=length)
            return OK if found == data[first : size if length is None else first + length] else WRONG

        await self._bounded(operation, get())

    async def _has(self, blob: str, size: int) -> None:
        address = Digest.of(content(blob, size))
        operation = self._load.recorder.begin("has", blob, size)

        async def has() -> str:
            return OK if await self._blobs.has(address) else NOT_FOUND

        async def has_once() -> str:
            service = self._blobs._service
            reply = await service.once(service.subjects.has, str(address).encode(), timeout=service.timeout)
            return OK if decoded(reply, HasReply).exists else NOT_FOUND

        await self._bounded(operation, has_once() if self._rng.random() < self._orders.once else has())

    async def _bounded(self, operation: Operation, call: Awaitable[str]) -> None:
        """Make the call, and write down how it ended."""
        is_cancelled = self._rng.random() < self._orders.cancels
        allowed = self._rng.expovariate(20) if is_cancelled else self._deadline(operation) + ON_TIME
        outcome, detail = OK, ""
        try:
            async with asyncio.timeout(allowed):
                outcome = await call
        except TimeoutError:
            outcome = CANCELLED if is_cancelled else UNANSWERED
        except BlobError as error:
            outcome, detail = error.name, error.message
        except Exception as error:  # noqa: BLE001 - whatever it is, the checker has to see it
            outcome, detail = type(error).__name__, str(error)
        self._load.recorder.end(operation, outcome, detail)

    def _deadline(self, operation: Operation) -> float:
        """Seconds in which the SDK promises an answer: for large blobs one timeout for each of the steps.

        A put has opening, staging, committing (for which it takes two attempts of 10 s more) and aborting.
        """
        timeout = self._orders.timeout
        if operation.kind == "has":
            return timeout
        return 4 * timeout + 24 if operation.size > SMALL else 2 * timeout


class Load:
    """What the lanes of one client share: the history, and what anybody has had acknowledged."""

    def __init__(self, orders: Orders) -> None:
        self._directory = Path(orders.directory)
        self._own = history_of(self._directory, orders.number)
        self.recorder = Recorder(self._own, orders.number)
        self.acknowledged: list[tuple[str, int]] = []
        self._others: dict[Path, Tail] = {}

    def known(self) -> list[tuple[str, int]]:
        """Blobs that were acknowledged to this client or, as their histories say, to others."""
        for path in self._directory.glob(HISTORIES):
            if path != self._own:
                self._others.setdefault(path, Tail(path))
        for other in self._others.values():
            self.acknowledged += [
                (one.blob, one.size) for one in other.ended() if one.kind == "put" and one.is_acknowledged
            ]
        return self.acknowledged


async def main() -> None:
    orders = msgspec.json.decode(sys.stdin.buffer.readline(), type=Orders)
    load = Load(orders)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def wait_for_the_end() -> None:
        sys.stdin.buffer.read()
        loop.call_soon_threadsafe(stop.set)

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    async with natsblob.connect(",".join(orders.servers), timeout=orders.timeout) as blobs:
        lanes = [Lane(orders, number, blobs, load) for number in range(orders.lanes)]
        await asyncio.gather(*(lane.run(stop) for lane in lanes))
    load.recorder.close()


if __name__ == "__main__":
    asyncio.run(main())
