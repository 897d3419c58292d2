"""What does an operation cost? Messages stored, fsyncs of the server, CPU of client, worker and server.

python -m bench.cost [--code DIR …] [--quick] [--output FILE]

Each DIR is a checkout of natsblob, this one if none is given: `git worktree add DIR COMMIT` makes another, to
compare before and after in one sitting. R1, file storage, `sync_interval: always`, one worker, one operation
at a time. CPU is measured first; then all is done again with strace at the server, which counts fsyncs and is
slow.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import nats

from bench.meter import cpu_time
from natsblob.broker.embedded import EmbeddedServer
from natsblob.testing.servers import temporary_server

_CLIENT: Final = Path(__file__).with_name("cost_client.py")
_HERE: Final = Path(__file__).parent.parent
_DEADLINE: Final = 600.0
KIB: Final = 1024
SIZES: Final = {"4 KiB": (4 * KIB, 100), "1 MiB": (1024 * KIB, 20), "64 MiB": (64 * 1024 * KIB, 4)}
"""Size of a blob, and how many of it."""
VERBS: Final = (("put", "put"), ("has", "has"), ("get", "get"), ("put again", "put"), ("delete", "delete"))


@dataclass
class Cost:
    """Of one operation, on the average of several. CPU and wall time in milliseconds."""

    code: str
    verb: str
    size: str
    messages: float
    client: float
    worker: float
    server: float
    wall: float
    fsyncs: float | None = None


@asynccontextmanager
async def _process(code: Path, *command: str) -> AsyncIterator[Process]:
    """A program on the natsblob of `code`."""
    environment = {**os.environ, "PYTHONPATH": str(code), "NATSBLOB_LOG_LEVEL": "error"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdin=PIPE, stdout=PIPE, cwd=code, env=environment
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _line(process: Process, text: str = "") -> str:
    """What it says next, to this."""
    if process.stdin is None or process.stdout is None:
        raise AssertionError("a process without pipes")
    process.stdin.write(text.encode())
    async with asyncio.timeout(_DEADLINE):
        said = await process.stdout.readline()
    if not said:
        raise SystemExit(f"a process ended with status {await process.wait()}")
    return said.decode()


class Fsyncs:
    """How many a process made; known when the counting has ended."""

    count = 0


@asynccontextmanager
async def _fsyncs(pid: int) -> AsyncIterator[Fsyncs]:
    """Count while this lasts."""
    found = Fsyncs()
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "log"
        log.touch()
        calls = "trace=fsync,fdatasync,sync_file_range,sync"
        process = await asyncio.create_subprocess_exec(
            "strace", "-f", "-q", "-e", calls, "-p", str(pid), "-o", str(log), stderr=PIPE
        )
        try:
            await asyncio.sleep(1)  # it says nothing when it is attached
            yield found
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()
            found.count = sum("sync(" in line for line in log.read_text().splitlines())


async def _stored(server: EmbeddedServer) -> int:
    nc = await nats.connect(server.url)
    try:
        return (await nc.jetstream().stream_info("OBJ_blobs")).state.last_seq
    finally:
        await nc.close()


class Lab:
    """A server, and a worker and a client of one checkout."""

    def __init__(self, code: Path, server: EmbeddedServer, worker: Process, client: Process) -> None:
        self._code = code
        self._server = server
        self._workers = _family(worker.pid)
        self._client = client

    async def cost(self, name: str, verb: str, size: str, asked: dict[str, Any], *, count: bool) -> Cost:
        """One operation, several times; with `count` its fsyncs too, and times that say nothing."""
        several = asked["count"]
        before = await self._spent()
        if count:
            async with _fsyncs(self._server.pid) as fsyncs:
                answer = await self._done(verb, asked)
        else:
            answer, fsyncs = await self._done(verb, asked), Fsyncs()
        spent = [(late - early) / several for late, early in zip(await self._spent(), before, strict=True)]
        messages, worker, server = spent
        return Cost(
            code=str(self._code),
            verb=name,
            size=size,
            messages=messages,
            client=1000 * answer["cpu"] / several,
            worker=1000 * worker,
            server=1000 * server,
            wall=1000 * answer["seconds"] / several,
            fsyncs=fsyncs.count / several if count else None,
        )

    async def _done(self, verb: str, asked: dict[str, Any]) -> dict[str, float]:
        answer: dict[str, float] = json.loads(
            await _line(self._client, json.dumps({**asked, "verb": verb}) + "\n")
        )
        return answer

    async def _spent(self) -> tuple[float, ...]:
        """Messages that were stored so far, and CPU seconds of workers and server."""
        return await _stored(self._server), sum(map(cpu_time, self._workers)), cpu_time(self._server.pid)


async def measure(code: Path, *, count: bool, sizes: dict[str, tuple[int, int]]) -> list[Cost]:
    """All operations on one checkout."""
    found = []
    serve = ("-m", "natsblob", "serve", "--workers", "1", "--server")
    async with temporary_server() as server, _process(code, *serve, server.url) as worker:
        await _line(worker)
        async with _process(code, str(_CLIENT), server.url) as client:
            lab = Lab(code, server, worker, client)
            for size, (length, several) in sizes.items():
                await lab.cost("", "put", size, {"size": length, "first": 10**6, "count": 1}, count=False)
                asked = {"size": length, "first": 0, "count": several}
                found += [await lab.cost(name, verb, size, asked, count=count) for name, verb in VERBS]
    return found


def _family(pid: int) -> list[int]:
    """A process and those that it has started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in children for one in _family(int(child)))]


def table(costs: Sequence[Cost]) -> Iterator[str]:
    yield "| operation | code | messages | fsyncs | client ms | worker ms | server ms | wall ms |"
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    for one in sorted(costs, key=lambda cost: (list(SIZES).index(cost.size), cost.verb)):
        fsyncs = "" if one.fsyncs is None else f"{one.fsyncs:.1f}"
        times = " | ".join(f"{value:.2f}" for value in (one.client, one.worker, one.server, one.wall))
        yield f"| {one.verb} {one.size} | {one.code} | {one.messages:.1f} | {fsyncs} | {times} |"


async def compared(codes: Sequence[Path], sizes: dict[str, tuple[int, int]]) -> list[Cost]:
    costs = []
    for code in codes:
        found = await measure(code, count=False, sizes=sizes)
        if shutil.which("strace"):
            for cost, counted in zip(found, await measure(code, count=True, sizes=sizes), strict=True):
                cost.fsyncs = counted.fsyncs
        costs += found
    return costs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--code", nargs="*", type=Path, default=[_HERE])
    parser.add_argument("--quick", action="store_true", help="a tenth of the operations, nothing of 64 MiB")
    parser.add_argument("--output", type=Path, help="the figures as JSON")
    given = parser.parse_args()
    sizes = SIZES
    if given.quick:
        sizes = {name: (size, max(2, many // 10)) for name, (size, many) in SIZES.items() if many > 10}
    costs = asyncio.run(compared([code.resolve() for code in given.code], sizes))
    print("\n".join(table(costs)))
    if given.output:
        figures: list[dict[str, Any]] = [asdict(cost) for cost in costs]
        given.output.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
