"""Does it matter how many blobs are stored? The same requests on a small and on a large bucket, in turns.

    python -m bench.growth [--blobs N] [--rounds N] [--output DIR]

Two servers of the same configuration, a worker on each. docs/benchmarks.md says how to read the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from asyncio.subprocess import PIPE
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Final, TypeAlias

import natsblob
from bench.chore import BUCKET, CHORES
from bench.environment import environment, lines
from bench.fill import content
from bench.meter import Meter, peak, resident
from bench.profiles import KIB, MIB
from bench.results import PERCENTILES
from bench.run import Worker
from natsblob import wire
from natsblob.broker.connection import Access, Connection, connect
from natsblob.broker.embedded import EmbeddedServer
from natsblob.broker.loop import loop_factory
from natsblob.cli.bench import percentile
from natsblob.client.service import Service
from natsblob.digest import Digest
from natsblob.testing.servers import temporary_store_dir

SMALL: Final = 1_000
SIZE: Final = 4 * KIB
SOME = 100
"""Requests of a kind in a round, one at a time; six times as many 32 at once, five in a batch."""
_FILLERS: Final = 3
_AT_ONCE: Final = 32
_FIRST: Final = [Digest(bytes(32))]
_NEXT: Final = [Digest(bytes([0, number] + [0] * 30)) for number in range(1, 21)]
"""Where pages begin that are in the same range of names as the first, with a million blobs as well."""
_FIRST_NEW: Final = 10**12
"""The number of the first blob that a round puts, beyond all that were there before."""
_PATIENCE: Final = 300.0
_ROOT: Final = Path(__file__).parent.parent

Plan: TypeAlias = Callable[[], Awaitable[list[float]]]


@dataclass
class Place:
    """A bucket that has `blobs` blobs, on a server and with a worker of its own."""

    blobs: int
    server: EmbeddedServer
    start_up: float
    """Seconds until the server answered with this bucket on its disk."""
    resident: int
    """Bytes that the server had in memory then."""
    stored: int
    """Bytes on its disk."""
    worker: Worker
    client: natsblob.Client
    connection: Connection
    rounds: dict[str, list[list[float]]] = field(default_factory=lambda: defaultdict(list))
    worker_peak: int = 0

    def latencies(self, verb: str) -> list[float]:
        return sorted(second for one in self.rounds[verb] for second in one)


@asynccontextmanager
async def place(blobs: int) -> AsyncIterator[Place]:
    """Fill a bucket with the server's usual `sync_interval`, and serve it with `always`."""
    with temporary_store_dir() as folder:
        async with EmbeddedServer(folder, jetstream="sync_interval: 2m") as server, Worker(server.url, 1):
            await _fill(server.url, blobs)
        began = perf_counter()
        async with EmbeddedServer(folder) as server:
            start_up = perf_counter() - began
            idle = resident(server.pid)
            disk = sum(path.stat().st_blocks * 512 for path in folder.rglob("*"))
            async with (
                Worker(server.url, 1) as worker,
                natsblob.connect(server.url) as client,
                await connect(Access(servers=(server.url,), name="growth")) as connection,
            ):
                yield Place(blobs, server, start_up, idle, disk, worker, client, connection)


async def _fill(url: str, blobs: int) -> None:
    share = -(-blobs // _FILLERS)
    parts = [(first, min(share, blobs - first)) for first in range(0, blobs, share)]
    fillers = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bench.fill", url, BUCKET, str(first), str(number), str(SIZE)),
            cwd=_ROOT,
        )
        for first, number in parts
    ]
    for filler in fillers:
        if await filler.wait():
            raise SystemExit("the bucket could not be filled")


async def one_round(places: Sequence[Place], number: int, picks: random.Random) -> None:
    """Every kind of request at every place, in turns, beginning with another place each time."""
    turn = number % len(places)
    ordered = [*places[turn:], *places[:turn]]
    plans = {}
    for one in ordered:
        await one.worker.renew()  # one that remembers nothing
        plans[one.blobs] = _plan(one, number, picks)
    for verb in plans[ordered[0].blobs]:
        for one in ordered:
            one.rounds[verb].append(await plans[one.blobs][verb]())
    for one in ordered:
        one.worker_peak = max(one.worker_peak, peak(one.worker.pid))


class Caller:
    """The operations that are measured, on one bucket."""

    def __init__(self, place: Place, batch: Sequence[Digest], first_new: int) -> None:
        self._blobs = place.client
        self._requests = Service(place.connection, wire.DEFAULT_PREFIX, _PATIENCE)
        self._batch = batch
        self._new = count(first_new)
        self._put: list[Digest] = []

    async def put(self, _: Digest) -> None:
        info = await self._blobs.put(content(next(self._new), SIZE))
        self._put.append(info.digest)

    async def delete(self, _: Digest) -> None:
        await self._blobs.delete(self._put.pop())

    async def get(self, digest: Digest) -> None:
        await self._blobs.get(digest)

    async def stat(self, digest: Digest) -> None:
        await self._blobs.stat(digest)

    async def has(self, digest: Digest) -> None:
        if not await self._blobs.has(digest):
            raise LookupError(digest)

    async def has_not(self, _: Digest) -> None:
        if await self._blobs.has(_digest(next(self._new))):
            raise LookupError("what nobody has stored is there")

    async def has_batch(self, _: Digest) -> None:
        if await self._blobs.missing(self._batch, timeout=_PATIENCE):
            raise LookupError("blobs are missing")

    async def page(self, digest: Digest) -> None:
        """A page of names that begins behind `digest`; repeated where the worker has no time left."""
        request = wire.ListRequest(after=digest)
        await self._requests.ask(self._requests.subjects.list, request, wire.Page)


def _plan(place: Place, number: int, picks: random.Random) -> dict[str, Plan]:
    """What is measured in a round, in this order. What is picked for one kind no other has touched before."""
    picked = iter(picks.sample(range(place.blobs), min(SMALL, 8 * SOME)))
    get, has, stat, batch = ([_digest(next(picked)) for _ in range(n * SOME)] for n in (1, 1, 1, 5))
    newest = [_digest(one) for one in picks.sample(range(place.blobs - SMALL, place.blobs), 2 * SOME)]
    call = Caller(place, batch, _FIRST_NEW + number * 10**6)
    nothing = newest[:1]
    return {
        "put": lambda: serial(call.put, nothing * SOME),
        "put, 32 at once": lambda: at_once(call.put, nothing * 6 * SOME),
        "get, first time": lambda: serial(call.get, get),
        "get, again": lambda: serial(call.get, get),
        "get, 32 at once": lambda: at_once(call.get, get * 6),
        "get, of the newest 1,000": lambda: serial(call.get, newest[:SOME]),
        "has, first time": lambda: serial(call.has, has),
        "has, again": lambda: serial(call.has, has),
        "has, 32 at once": lambda: at_once(call.has, has * 6),
        "has, of the newest 1,000": lambda: serial(call.has, newest[SOME:]),
        "has, of what is not there": lambda: serial(call.has_not, nothing * SOME),
        "has, 500 a request, first time": lambda: serial(call.has_batch, nothing),
        "has, 500 a request, again": lambda: serial(call.has_batch, nothing * 10),
        "stat, first time": lambda: serial(call.stat, stat),
        "list, the first page": lambda: serial(call.page, _FIRST),
        "list, another page": lambda: serial(call.page, _NEXT),
        "delete, 32 at once": lambda: at_once(call.delete, nothing * 7 * SOME),
    }


def _digest(number: int) -> Digest:
    return Digest.of(content(number, SIZE))


async def serial(operation: Callable[[Digest], Awaitable[None]], digests: Iterable[Digest]) -> list[float]:
    latencies = []
    for digest in digests:
        begun = perf_counter()
        await operation(digest)
        latencies.append(perf_counter() - begun)
    return latencies


async def at_once(operation: Callable[[Digest], Awaitable[None]], digests: Sequence[Digest]) -> list[float]:
    left = list(digests)
    latencies: list[float] = []

    async def lane() -> None:
        while left:
            latencies.extend(await serial(operation, [left.pop()]))

    async with asyncio.TaskGroup() as lanes:
        for _ in range(_AT_ONCE):
            lanes.create_task(lane())
    return latencies


async def chores(place: Place) -> dict[str, Any]:
    """What goes through the whole bucket, in processes of their own, and what it costs worker and server."""
    spent: dict[str, Any] = {}
    for chore in CHORES:
        _tell(f"{place.blobs:,} blobs: {chore}")
        meter = Meter({"worker": [place.worker.pid], "server": [place.server.pid]})
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bench.chore", place.server.url, chore), stdout=PIPE, cwd=_ROOT
        )
        try:
            async with asyncio.timeout(_PATIENCE):
                said, _ = await process.communicate()
        except TimeoutError:
            process.kill()
            said, _ = b"", await process.wait()
        usage = {role: asdict(used) for role, used in meter.read().items()}
        spent[chore] = {**(json.loads(said) if said else {"failed": process.returncode}), **usage}
    return spent


async def run(blobs: int, rounds: int) -> dict[str, Any]:
    """Everything, as what is written to the report."""
    picks = random.Random(1)
    _tell(f"filling a bucket with {blobs:,} blobs")
    async with place(blobs) as large, place(SMALL) as small:
        places = (small, large)
        for number in range(rounds):
            _tell(f"round {number + 1} of {rounds}")
            await one_round(places, number, picks)
        server = {one.blobs: resident(one.server.pid) for one in places}
        return {
            "verbs": {verb: _compared(verb, small, large) for verb in small.rounds},
            "places": [
                {
                    "blobs": one.blobs,
                    "start_up_seconds": one.start_up,
                    "server_resident_after_start": one.resident,
                    "server_resident_after_rounds": server[one.blobs],
                    "disk": one.stored,
                    "worker_peak": one.worker_peak,
                    "chores": await chores(one),
                }
                for one in places
            ],
        }


def _compared(verb: str, small: Place, large: Place) -> dict[str, Any]:
    """Latencies in seconds, and how many times longer it took in the large bucket, by medians of rounds."""
    medians = [[median(one) for one in place.rounds[verb]] for place in (small, large)]
    ratios = [theirs / ours for ours, theirs in zip(*medians, strict=True)]
    by_place = {
        name: {f"p{p:g}": percentile(one.latencies(verb), p) for p in PERCENTILES}
        for name, one in (("small", small), ("large", large))
    }
    return {**by_place, "ratio": median(ratios), "ratios": ratios}


def table(report: dict[str, Any]) -> Iterable[str]:
    small, large = report["places"]
    heading = [f"{one['blobs']:,}: {p}" for one in (small, large) for p in ("p50", "p99")]
    yield f"{'':32}" + "".join(f"{word:>18}" for word in heading) + f"{'ratio of p50':>14}{'of p99':>8}"
    for verb, row in report["verbs"].items():
        times = [row[name][p] for name in ("small", "large") for p in ("p50", "p99")]
        shown = "".join(f"{f'{second * 1000:,.2f} ms':>18}" for second in times)
        yield f"{verb:32}{shown}{row['ratio']:>14.2f}{times[3] / times[1]:>8.2f}"
    for one in (small, large):
        blobs = one["blobs"]
        yield ""
        yield (
            f"{blobs:,} blobs: the server starts in {one['start_up_seconds']:.1f} s with "
            f"{one['server_resident_after_start'] / MIB:,.0f} MiB in memory and has "
            f"{one['server_resident_after_rounds'] / MIB:,.0f} MiB after the rounds; "
            f"{one['disk'] / MIB:,.0f} MiB on disk; worker's peak {one['worker_peak'] / MIB:,.0f} MiB"
        )
        for chore, spent in one["chores"].items():
            if "failed" in spent:
                yield f"  {chore}: not done within {_PATIENCE:.0f} s, or failed"
                continue
            used = {"itself": spent, "worker": spent["worker"], "server": spent["server"]}
            yield f"  {chore}: {spent['seconds']:.1f} s; CPU seconds and peak: " + ", ".join(
                f"{role} {usage['cpu']:.1f} s, {usage['peak'] / MIB:,.0f} MiB" for role, usage in used.items()
            )
    each = large["blobs"] - small["blobs"]
    grown = {name: (large[name] - small[name]) / each for name in ("server_resident_after_start", "disk")}
    yield ""
    yield (
        f"for each blob: {grown['server_resident_after_start']:,.0f} bytes of the server's memory "
        f"after its start, {grown['disk']:,.0f} bytes on disk for {SIZE:,} of content"
    )


def _tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.growth", description="docs/benchmarks.md says more."
    )
    parser.add_argument("--blobs", type=int, default=1_000_000, help="in the large bucket [1000000]")
    parser.add_argument("--rounds", type=int, default=5, help="[5]")
    parser.add_argument("--output", type=Path, metavar="DIR", default=Path("bench/out"), help="[bench/out]")
    return parser.parse_args()


async def main(given: argparse.Namespace) -> None:
    facts = environment()
    print("\n".join(lines(facts)), end="\n\n")
    report = await run(given.blobs, given.rounds)
    print("\n".join(table(report)))
    path = given.output / "growth.json"
    path.write_text(json.dumps({"environment": facts, **report}, indent=1) + "\n")
    print(f"\nwritten: {path}")


if __name__ == "__main__":
    chosen = options()
    chosen.output.mkdir(parents=True, exist_ok=True)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(main(chosen))
