"""One schedule: everything that happens in it follows from its seed."""

from __future__ import annotations

import asyncio
import math
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Any, Final

from natsblob.broker.connection import Connection
from natsblob.digest import Digest
from natsblob.errors import BlobCorruptError
from natsblob.objectstore.info import Layout
from tests.simulation.caller import Blob, Caller
from tests.simulation.clock import StuckError, VirtualLoop, deterministic
from tests.simulation.faults import Faults
from tests.simulation.history import History
from tests.simulation.network import Network
from tests.simulation.server import Server
from tests.simulation.stream import Stream, ViolationError
from tests.simulation.worker import BUCKET, CHUNK, WINDOW, Worker

_SIZES: Final = (0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 5 * CHUNK + 3, 9 * CHUNK)
_SETTLED: Final = 900.0
"""Seconds after which everything that was sent has arrived."""
_OLD: Final = 6 * 3600.0
"""Seconds after which everything that nothing names is old enough to be collected, whatever the clock did."""
_PASSES: Final = 6
"""To see an orphan, to drop it, to see that, to purge it, and the same once more for its decision."""
_WRITTEN: Final = 90.0
"""Seconds after which no request is on its way that was made before: what rots was written long ago."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one schedule."""

    seed: int
    faults: Faults
    history: History
    violation: str | None
    virtual_seconds: float

    def __str__(self) -> str:
        lines = [
            f"seed {self.seed}: {self.violation or 'no violation'}",
            str(self.faults),
            *self.history.lines(),
        ]
        return "\n".join(lines)


def run(seed: int, faults: Faults | None = None) -> Outcome:
    """Run the schedule of a seed to its end, or to the first violation; with these faults or drawn ones."""
    loop = VirtualLoop()
    schedule = Schedule(seed, faults)
    found: list[str] = []

    def failed(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        found.append(str(context.get("exception") or context["message"]))

    loop.set_exception_handler(failed)
    violation: str | None = None
    with deterministic(seed):
        try:
            loop.run_until_complete(schedule.run(found))
        except (ViolationError, StuckError) as error:
            violation = str(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the outcome says in which schedule
            violation = "".join(traceback.format_exception(error))
        finally:
            loop.set_exception_handler(lambda *_: None)
            _end(loop)
    return Outcome(seed, schedule.faults, schedule.history, found[0] if found else violation, loop.time())


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


def _end(loop: VirtualLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks, timeout=60.0))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


class Schedule:
    """Callers, workers and faults; then healing, collection and a last look at everything."""

    def __init__(self, seed: int, faults: Faults | None) -> None:
        self._random = random = Random(seed)
        self.faults = faults or Faults.drawn(random)
        self.history = History(lease=self.faults.max_age / 2 or math.inf)
        self._network = Network(random, self.faults, max_pending=WINDOW)
        self._stream = Stream(Layout(BUCKET), replicas=3)
        self._stream.max_age = self.faults.max_age
        self._stream.max_bytes = 1_000_000 if self.faults.full else -1
        self._server = Server(self._network, self._stream, random)
        self._network.serve(self._server)
        sizes = random.sample(_SIZES, 2)
        self._blobs = [self._blob(number, size) for number, size in enumerate(sizes)]
        self._workers: list[Worker] = []
        self._deletes = random.random() < 0.4

    def _blob(self, number: int, size: int) -> Blob:
        data = self._random.randbytes(size)
        return Blob(number, data, Digest.of(data))

    async def run(self, found: list[str]) -> None:
        random, faults = self._random, self.faults
        for number in range(2):
            crash_at = random.randint(1, 60) if number < faults.crashes else None
            self._workers.append(await Worker.start(self._network, crash_at=crash_at))
        accomplice = (await self._network.connect())[0] if faults.hostile else None
        callers = [
            self._caller(f"caller {number}", faults, (await self._network.connect())[0], accomplice)
            for number in range(random.choice((1, 2, 3)))
        ]
        trouble = [asyncio.create_task(fault) for fault in self._trouble()]
        await asyncio.gather(*(caller.run(random.randint(2, 4)) for caller in callers))
        for _ in range(faults.remade):
            await self._remake(callers)
            await asyncio.gather(*(caller.run(random.randint(2, 4)) for caller in callers))
        if faults.rot:
            await asyncio.sleep(_WRITTEN)
            self._rot()
            await asyncio.gather(*(caller.run(random.randint(2, 4)) for caller in callers))
            for _ in range(_PASSES):
                await asyncio.sleep(_OLD)
                await callers[0].do("collect", self._blobs[0])
        for task in trouble:
            task.cancel()
        await self._heal(found)
        await self._look(self._caller("reader", Faults(), (await self._network.connect())[0]))
        if found:
            raise ViolationError(found[0])

    def _caller(
        self, name: str, faults: Faults, connection: Connection, accomplice: Connection | None = None
    ) -> Caller:
        return Caller(
            name,
            self._random,
            faults,
            connection,
            self._workers,
            self._blobs,
            self.history,
            deletes=self._deletes,
            accomplice=accomplice,
        )

    def _trouble(self) -> list[Coroutine[Any, Any, None]]:
        random, faults = self._random, self.faults
        periods: list[Coroutine[Any, Any, None]] = [
            self._restarts(number) for number in range(len(self._workers))
        ]
        periods += [self._period("no leader", self._lose_leader, self._elect) for _ in range(faults.outages)]
        periods += [self._period("full", self._fill, self._empty) for _ in range(faults.full)]
        periods += [self._cut(most=5.0) for _ in range(faults.cuts)]
        periods += [self._cut(most=90.0) for _ in range(faults.closed)]
        if faults.lag:
            periods.append(self._lag())
        if faults.clock_step:
            periods.append(self._step_clock(random.uniform(-faults.clock_step, faults.clock_step)))
        return periods

    async def _restarts(self, number: int) -> None:
        """A worker that crashed is replaced a little later."""
        while True:
            await self._workers[number].crashed.wait()
            await asyncio.sleep(1.0)
            self._note("a worker crashed and is started again")
            await self._workers[number].stop()
            self._workers[number] = await Worker.start(self._network)

    async def _period(self, name: str, begin: Callable[[], None], end: Callable[[], None]) -> None:
        await asyncio.sleep(self._random.choice((0.1, 3.0, 30.0)) * self._random.random())
        self._note(f"{name}: begins")
        begin()
        await asyncio.sleep(self._random.choice((1.0, 9.0, 40.0)) * self._random.random())
        end()
        self._note(f"{name}: ends")

    def _lose_leader(self) -> None:
        self._server.has_leader = False

    def _elect(self) -> None:
        self._server.has_leader = True
        if self._random.random() < 0.5:
            self._stream.forget_purged_ids()

    def _fill(self) -> None:
        self._stream.limit = self._stream.size

    def _empty(self) -> None:
        self._stream.limit = None

    async def _cut(self, *, most: float) -> None:
        """A worker has no storage for up to so many seconds."""
        await asyncio.sleep(self._random.choice((0.1, 3.0, 30.0)) * self._random.random())
        worker = self._random.choice(self._workers)
        self._note("a connection is lost")
        worker.client.is_connected = False
        worker.connection.interrupted()
        await asyncio.sleep(most * self._random.random())
        worker.client.is_connected = True
        worker.connection.epoch += 1
        worker.connection.restored()
        self._note("it is back")

    async def _remake(self, callers: list[Caller]) -> None:
        """Delete the stream when nothing is written, and make it anew; what was in it has just been read."""
        await asyncio.sleep(_WRITTEN)
        await asyncio.gather(*(caller.do("get", blob) for caller in callers for blob in self._blobs))
        self._stream.remake()
        self.history.remade.append(asyncio.get_running_loop().time())
        self._note("the stream is deleted and made anew")

    async def _lag(self) -> None:
        for number in count():
            for replica in self._stream.replicas[1:]:
                replica.lag = (
                    self.faults.lag * self._random.choice((0.0, 0.01, 0.2, 1.0)) * self._random.random()
                )
            await asyncio.sleep(5.0 * 2**number)

    def _rot(self) -> None:
        """One copy loses names, and chunks of what has a name."""
        random, now = self._random, asyncio.get_running_loop().time()
        number, is_counted = random.choice((0, 0, 1)), random.random() < 0.5
        lost = {seq for seq in self._stream.seqs_of_visible(now) if random.random() < self.faults.rot}
        self._stream.rot(number, lost, is_counted=is_counted, now=now)
        what = "counts" if is_counted else "does not count"
        self._note(f"replica {number} loses {len(lost)} messages, and {what} them")

    async def _step_clock(self, step: float) -> None:
        await asyncio.sleep(self._random.choice((0.1, 3.0, 30.0)) * self._random.random())
        self._server.clock_offset += step
        self._note(f"the server's clock steps by {step:.0f} s")

    async def _heal(self, found: list[str]) -> None:
        self._network.faults = Faults()
        self._elect()
        self._empty()
        self._stream.repair()
        for replica in self._stream.replicas:
            replica.lag = 0.0
        for client in self._network.clients:
            client.is_connected = True
        await asyncio.sleep(_SETTLED)
        for worker in self._workers:
            await worker.stop()
        self._note("healed")
        self._check_leaks()
        if found:
            raise ViolationError(found[0])

    def _check_leaks(self) -> None:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        if left:
            raise ViolationError(f"tasks were left behind: {[task.get_coro() for task in left]}")
        for worker in self._workers:
            if worker.connection._waiting or worker.connection._asking:
                raise ViolationError("a worker still waits for answers when nothing runs")

    async def _look(self, caller: Caller) -> None:
        """After collection with an old clock nothing is left but blobs, and all that were acknowledged."""
        self._workers[:] = [await Worker.start(self._network)]
        self.history.check(all_succeed=self.faults.are_harmless)
        await self._read_all(caller)
        for _ in range(_PASSES):
            await asyncio.sleep(_OLD)
            await self._workers[0].collector.collect()
        self._note("collected")
        self._check_orphans()
        await self._read_all(caller)
        if self.faults.damage:
            await self._heal_damage()
        await self._workers[0].stop()
        self.history.check(all_succeed=self.faults.are_harmless)

    async def _heal_damage(self) -> None:
        """Rot that is the same on all copies: who reads it is told, and the next put stores the bytes anew.

        A blob whose bytes no worker wrote or read is found out by the put itself.
        """
        names = {self._stream.layout.meta(blob.digest.hex): blob for blob in self._blobs if blob.data}
        for subject, info in list(self._stream.visible.items()):
            if subject not in names or not info.chunks:
                continue
            blob, [*chunks] = names[subject], self._stream.chunks_of(info.nuid)
            self._stream.damage(self._random.choice(chunks).seq)
            self._note(f"a chunk of blob {blob.number} rots on all copies")
            other = await Worker.start(self._network)
            try:
                async for _ in self._workers[0].store.chunks(blob.digest):
                    pass
                raise ViolationError(f"rotten bytes of blob {blob.number} were served")
            except BlobCorruptError:
                self._note("its reader was told")
            await other.store.put(_once(blob.data))
            try:
                read = b"".join([chunk async for chunk in other.store.chunks(blob.digest)])
            except BlobCorruptError:
                read = b""
            await other.stop()
            if read != blob.data:
                raise ViolationError(f"blob {blob.number} was acknowledged, and not healed")

    async def _read_all(self, caller: Caller) -> None:
        now = asyncio.get_running_loop().time()
        for blob in self._blobs:
            self._server.expire()
            visible = self._is_whole(blob)
            put = self.history.must_exist(blob.number, now, now)
            if put is not None and not visible:
                raise ViolationError(f"acknowledged, and lost:\n{put}")
            await caller.do("get", blob)
            call = self.history.calls[-1]
            if call.error is not None and call.found is None:
                raise ViolationError(f"not readable after healing:\n{call}")
            if call.found != visible:
                raise ViolationError(f"a get does not tell what is there:\n{call}")

    def _is_whole(self, blob: Blob) -> bool:
        """Whether there is metadata, and what it names has not begun to expire."""
        info = self._stream.visible.get(self._stream.layout.meta(blob.digest.hex))
        return info is not None and len(list(self._stream.chunks_of(info.nuid))) == info.chunks

    def _check_orphans(self) -> None:
        layout = self._stream.layout
        live = {info.nuid for info in self._stream.visible.values()}
        for subject in self._stream.agreed.by_subject:
            nuid = layout.nuid_of(subject)
            if subject.startswith(f"$O.{BUCKET}.C.") and nuid is not None and nuid not in live:
                raise ViolationError(f"orphans are left after collection: {subject}")
            owner = layout.owner_of(subject)
            if owner is not None and owner[1] == "decision" and owner[0] not in live:
                raise ViolationError(f"a decision is left after collection: {subject}")

    def _note(self, what: str) -> None:
        self.history.events.append((asyncio.get_running_loop().time(), what))
