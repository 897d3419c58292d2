"""How much memory do worker and client need for large blobs, many at once and one very large?

python -m bench.memory [--at-once N] [--size SIZE] [--single SIZE] [--output DIR]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from bench.environment import environment, lines
from bench.meter import Meter
from bench.profiles import GIB, MIB
from bench.run import Worker
from natsblob.broker.embedded import EmbeddedServer
from natsblob.broker.loop import loop_factory
from natsblob.config.quantity import format_size, parse_size
from natsblob.testing.servers import temporary_server

_ROOT: Final = Path(__file__).parent.parent


async def run(loads: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """Put and get so many blobs of a size at once, with a new worker each time; the peaks in bytes."""
    results = []
    async with temporary_server() as server, Worker(server.url, 1) as worker:
        for count, size in loads:
            given = ("put", str(size), str(count))
            for verb in ("put", "get"):
                await worker.renew()
                used = await _transferred(server, worker, *given)
                given = ("get", *used.pop("digests"))
                results.append({"verb": verb, "at_once": count, "size": size, **used})
    return results


async def _transferred(server: EmbeddedServer, worker: Worker, *given: str) -> dict[str, Any]:
    meter = Meter({"worker": [worker.pid], "server": [server.pid]})
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.transfer", server.url, *given), stdout=PIPE, cwd=_ROOT
    )
    said, _ = await process.communicate()
    if process.returncode:
        raise SystemExit("a transfer failed")
    used = {role: asdict(usage) for role, usage in meter.read().items()}
    answer = json.loads(said)
    client = {"cpu": answer.pop("cpu"), "peak": answer.pop("peak")}
    return {**answer, "client": client, **used}


def table(results: Iterable[dict[str, Any]]) -> Iterable[str]:
    yield f"{'':36}{'MiB/s':>8}{'client':>10}{'worker':>10}{'server':>12}   peak memory in MiB"
    for one in results:
        what = f"{one['verb']}, {format_size(one['size'])}, {one['at_once']} at once"
        peaks = [one[role]["peak"] / MIB for role in ("client", "worker", "server")]
        rate = one["size"] * one["at_once"] / MIB / one["seconds"]
        yield f"{what:36}{rate:>8,.0f}{peaks[0]:>10,.0f}{peaks[1]:>10,.0f}{peaks[2]:>12,.0f}"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m bench.memory", description="docs/benchmarks.md says more.")
    parser.add_argument("--at-once", type=int, default=64, help="how many blobs [64]")
    parser.add_argument("--size", type=parse_size, default=256 * MIB, help="of each of them [256MiB]")
    parser.add_argument("--single", type=parse_size, default=2 * GIB, help="of a blob for itself [2GiB]")
    parser.add_argument("--output", type=Path, metavar="DIR", default=Path("bench/out"), help="[bench/out]")
    return parser.parse_args()


async def main(given: argparse.Namespace) -> None:
    facts = environment()
    print("\n".join(lines(facts)), end="\n\n")
    results = await run([(given.at_once, given.size), (1, given.single)])
    print("\n".join(table(results)))
    path = given.output / "memory.json"
    path.write_text(json.dumps({"environment": facts, "results": results}, indent=1) + "\n")
    print(f"\nwritten: {path}")


if __name__ == "__main__":
    chosen = options()
    chosen.output.mkdir(parents=True, exist_ok=True)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(main(chosen))
