"""Real worker processes for tests, which may be killed and stopped like any other."""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, Final

import anyio

from natsblob.config import Settings, encode

START_DEADLINE: Final = 30.0
STOP_DEADLINE: Final = 45.0


class WorkerProcess:
    """A worker in a process of its own."""

    def __init__(self, process: Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.returncode is None

    async def kill(self) -> None:
        """End it at once (SIGKILL)."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> int:
        """Let it drain (SIGTERM), and return its exit status."""
        await self._end(signal.SIGTERM)
        return self._process.returncode or 0

    async def _end(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(number)
        with anyio.fail_after(STOP_DEADLINE):
            await self._process.wait()


@asynccontextmanager
async def running_worker(url: str, **settings: Any) -> AsyncIterator[WorkerProcess]:
    """A worker process that answers requests on the server at `url`; it is gone on leaving."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "natsblob.supervisor", stdin=PIPE, stdout=PIPE
    )
    worker = WorkerProcess(process)
    try:
        if process.stdin is None or process.stdout is None:
            raise AssertionError("a worker process without pipes")
        settings = {"log_level": "warning", **settings}
        process.stdin.write(encode(Settings(server=tuple(url.split(",")), **settings)) + b"\n")
        with anyio.fail_after(START_DEADLINE):
            if not await process.stdout.readline():
                raise AssertionError(f"the worker ended with status {await process.wait()}")
        yield worker
    finally:
        if worker.running:
            await worker.kill()


@asynccontextmanager
async def running_service(
    url: str, *, workers: int = 1, **settings: Any
) -> AsyncIterator[list[WorkerProcess]]:
    """Several worker processes on the server at `url`, or at several with commas between."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(running_worker(url, **settings)) for _ in range(workers)]
