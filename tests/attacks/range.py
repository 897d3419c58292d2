"""A server, workers and honest clients that are attacked, and what is seen of it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import natsblob
from natsblob.broker.embedded import EmbeddedServer
from natsblob.testing.servers import temporary_server
from natsblob.testing.services import WorkerProcess, running_service
from tests.attacks.catalogue import ATTACKS, BLOBS, CHUNK, LARGE, known
from tests.attacks.load import PATIENCE, RATES, Honest, Seen

TIMES: Final = 3.0
"""By how much p99 may grow."""
NOISE: Final = 0.15
"""Seconds of p99 that are no matter: two cores are shared by servers, workers, attacker and clients."""
GROWTH: Final = 64.0
"""MiB by which a worker may grow: its own bounds on bytes in flight are of that size."""
_FILLING: Final = 32


@dataclass
class Report:
    """What one attack did."""

    name: str
    done: int
    before: Seen
    during: Seen
    rss: list[tuple[float, float]]
    """MiB of each worker before and after."""
    problems: list[str] = field(default_factory=list)
    """What must never be."""
    slow: list[str] = field(default_factory=list)
    """What a busy machine may cause as well."""

    def lines(self) -> list[str]:
        found = ATTACKS[self.name]
        p99 = {kind: (1000 * self.before.p99(kind), 1000 * self.during.p99(kind)) for kind in RATES}
        slow = ", ".join(f"{kind} {before:.0f} → {during:.0f}" for kind, (before, during) in p99.items())
        memory = ", ".join(f"{before:.0f} → {after:.0f}" for before, after in self.rss)
        bad = [*self.problems, *self.slow]
        return [
            f"{'BAD ' if bad else 'ok  '}{self.name}: {found.what}",
            f"     {found.rate:g}/s, {self.done} in all; {self.during.count} honest requests",
            f"     p99 in ms: {slow}",
            f"     memory of workers in MiB: {memory}",
            *(f"     ! {problem}" for problem in bad),
        ]


@dataclass
class Range:
    """One service under attack."""

    server: EmbeddedServer
    workers: list[WorkerProcess]
    client: natsblob.Client
    honest: Honest

    async def undisturbed(self, seconds: float) -> Seen:
        return await self.honest.run(seconds)

    async def attacked(self, name: str, seconds: float, before: Seen) -> Report:
        """Honest clients beside this attack."""
        memory = [rss(worker) for worker in self.workers]
        attacker = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.attacks.attacker", str(self.server.port), name, str(seconds),
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            during = await self.honest.run(seconds)
            async with asyncio.timeout(PATIENCE):
                output, _ = await attacker.communicate()
        finally:
            if attacker.returncode is None:
                attacker.kill()
                await attacker.wait()
        after = [rss(worker) for worker in self.workers]
        report = Report(name, int(output or b"0"), before, during, list(zip(memory, after, strict=True)))
        if attacker.returncode:
            report.problems.append("the attacker did not get to its end")
        await self._try_afterwards(report)
        self._judge(report)
        return report

    async def _try_afterwards(self, report: Report) -> None:
        """Something new can be stored and read, so the storage is connected; of every worker, most likely."""
        for number in range(8):
            data = f"after {report.name}, {number}".encode()
            try:
                info = await self.client.put(data, timeout=PATIENCE)
                if await self.client.get(info.digest, timeout=PATIENCE) != data:
                    report.problems.append("afterwards: other bytes")
            except natsblob.BlobError as error:
                report.problems.append(f"afterwards: {type(error).__name__}: {error}")

    def _judge(self, report: Report) -> None:
        report.problems += [f"{count} x {what}" for what, count in report.during.failures.items()]
        report.problems += ["a worker has ended" for worker in self.workers if not worker.running]
        for before, after in report.rss:
            if after > before + GROWTH:
                report.problems.append(f"a worker has grown: {before:.0f} → {after:.0f} MiB")
        for kind in RATES:
            before, during = report.before.p99(kind), report.during.p99(kind)
            if before and during > max(TIMES * before, NOISE):
                report.slow.append(f"p99 of {kind}: {1000 * before:.0f} → {1000 * during:.0f} ms")


def rss(worker: WorkerProcess) -> float:
    """MiB of memory that a worker has; 0 if it has ended."""
    try:
        status = Path(f"/proc/{worker.pid}/status").read_text()
    except OSError:
        return 0.0
    line = next((line for line in status.splitlines() if line.startswith("VmRSS")), "VmRSS: 0 kB")
    return int(line.split()[1]) / 1024


@asynccontextmanager
async def shooting_range(*, workers: int = 2, blobs: int = BLOBS) -> AsyncIterator[Range]:
    """A server (R1) and worker processes of its own, with this many blobs and a large one."""
    settings: dict[str, Any] = {"chunk_size": CHUNK, "log_level": "error", "collect_interval": 5}
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(temporary_server())
        running = await stack.enter_async_context(running_service(server.url, workers=workers, **settings))
        client = await stack.enter_async_context(natsblob.connect(server.url, timeout=PATIENCE))
        gate = asyncio.Semaphore(_FILLING)

        async def put(data: bytes) -> None:
            async with gate:
                await client.put(data)

        await asyncio.gather(*(put(known(number)) for number in range(blobs)), put(LARGE))
        yield Range(server, running, client, Honest(client, blobs))
