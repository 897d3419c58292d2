"""Do two workers carry twice the load of one? Also on a machine whose cores client and server need as well.

    python -m bench.workers [--share PART] [--workers N,…] [--clients N] [--rounds N] [--output DIR]

Each worker is held to a part of a core, by stopping and continuing it, so that it is the workers that are
busy and nothing else. With `--share 1`, for machines with cores enough, nothing is held.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, Final

from bench.environment import environment, lines
from bench.meter import Meter, cpu_time
from bench.peers.driver import Order
from bench.processes import OURS, PeerProcess, running
from bench.profiles import KIB, PLAIN
from natsblob.broker.embedded import EmbeddedServer
from natsblob.broker.loop import loop_factory
from natsblob.testing.servers import temporary_server
from natsblob.testing.services import running_service

_SIZE: Final = 4 * KIB
_COUNT: Final = 3_000
_AT_ONCE: Final = 256
"""Requests under way for each worker: while one is stopped they gather there, and the other has to have
enough left. A busy worker answers many that came together for less each."""
_LOOKED_AT_EVERY: Final = 0.002
_SAVED: Final = 0.02
"""Seconds of CPU time that a worker may be behind its share."""
_VERBS: Final = ("put", "get", "has")


@asynccontextmanager
async def held(pids: Sequence[int], share: float) -> AsyncIterator[None]:
    """Let each of these processes use a part of one core only."""
    if share >= 1:
        yield
        return
    holding = [asyncio.create_task(_hold(pid, share)) for pid in pids]
    try:
        yield
    finally:
        for task in holding:
            task.cancel()
        await asyncio.wait(holding)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


async def _hold(pid: int, share: float) -> None:
    """Let a process run until it has used what its share of the time so far comes to, again and again.

    It is its CPU time that counts: a process that had to wait for a core has not used it.
    """
    loop = asyncio.get_running_loop()
    began, used = loop.time(), cpu_time(pid)
    while True:
        over = cpu_time(pid) - used - share * (loop.time() - began)
        if over > 0:
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(over / share)
            os.kill(pid, signal.SIGCONT)
        elif over < -_SAVED:  # it had nothing to do, and shall not make up for that
            began, used = loop.time(), cpu_time(pid)
        await asyncio.sleep(_LOOKED_AT_EVERY)


async def run(share: float, workers: Sequence[int], clients: int, rounds: int) -> list[dict[str, Any]]:
    """Rates and the CPU that workers used, of every round, by how many workers there were."""
    kind = next(kind for kind in OURS if kind.name == PLAIN)
    results: list[dict[str, Any]] = []
    async with temporary_server(jetstream="sync_interval: 2m") as server:
        for number in range(rounds):
            for several in workers if number % 2 == 0 else reversed(workers):
                _tell(f"round {number + 1} of {rounds}: {several} workers")
                lanes = several * _AT_ONCE // clients
                order = Order("put", _SIZE, _COUNT, lanes, f"run{number}-{several}")
                async with running([kind] * clients, server.url) as peers:
                    for verb in _VERBS:
                        one = await _measured(server, peers, replace(order, verb=verb), several, share)
                        results.append({"workers": several, "verb": verb, **one})
                    async with running_service(server.url):
                        await _ordered(peers, replace(order, verb="clear"))
    return results


async def _measured(
    server: EmbeddedServer, peers: Sequence[PeerProcess], order: Order, workers: int, share: float
) -> dict[str, float]:
    """By new workers, which know no blob: of two that were there before, each would know half of them."""
    service = running_service(server.url, workers=workers, max_requests=8 * _AT_ONCE)
    async with service as running_workers:
        pids = [worker.pid for worker in running_workers]
        await _ordered(peers, Order("put", _SIZE, 200, 64, f"warm{order.run}-{order.verb}"))
        async with held(pids, share):
            meter = Meter({"workers": pids, "server": [server.pid]})
            seconds = await _ordered(peers, order)
            used = meter.read()
    return {
        "rate": len(peers) * order.count / seconds,
        "busy": used["workers"].cpu / seconds,
        "server_busy": used["server"].cpu / seconds,
    }


async def _ordered(peers: Sequence[PeerProcess], order: Order) -> float:
    """All clients do the same at the same time; the seconds that the slowest one took."""
    orders = [peer.order(replace(order, run=f"{order.run}-{place}")) for place, peer in enumerate(peers)]
    return max(float(answer["seconds"]) for answer in await asyncio.gather(*orders))


def table(results: Sequence[dict[str, Any]]) -> Iterable[str]:
    """For each verb and number of workers the median rate, and what it is of the first number's."""
    rates: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for one in results:
        rates[one["verb"], one["workers"]].append(one)
    first = results[0]["workers"]
    yield f"{'':6}{'workers':>8}{'a second':>11}{'times':>8}{'CPU of workers':>16}{'of the server':>15}"
    for (verb, workers), rows in sorted(rates.items()):
        pairs = zip(rows, rates[verb, first], strict=True)
        times = median(row["rate"] / base["rate"] for row, base in pairs)
        rate, busy, server = (median(row[key] for row in rows) for key in ("rate", "busy", "server_busy"))
        yield f"{verb:6}{workers:>8}{rate:>11,.0f}{times:>8.2f}{busy:>16.2f}{server:>15.2f}"


def _tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m bench.workers", description="docs/benchmarks.md says more.")
    parser.add_argument("--share", type=float, default=0.2, help="of a core, for each worker [0.2]")
    parser.add_argument("--workers", default="1,2", metavar="N,…", help="how many to compare [1,2]")
    parser.add_argument("--clients", type=int, default=1, help="processes that ask [1]")
    parser.add_argument("--rounds", type=int, default=5, help="[5]")
    parser.add_argument("--output", type=Path, metavar="DIR", default=Path("bench/out"), help="[bench/out]")
    return parser.parse_args()


async def main(given: argparse.Namespace) -> None:
    facts = {**environment(), "share": given.share, "clients": given.clients}
    print("\n".join(lines(facts)), end="\n\n")
    several = [int(one) for one in given.workers.split(",")]
    results = await run(given.share, several, given.clients, given.rounds)
    print("\n".join(table(results)))
    path = given.output / "workers.json"
    path.write_text(json.dumps({"environment": facts, "results": results}, indent=1) + "\n")
    print(f"\nwritten: {path}")


if __name__ == "__main__":
    chosen = options()
    chosen.output.mkdir(parents=True, exist_ok=True)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(main(chosen))
