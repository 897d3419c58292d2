"""Clients under load, as processes, and the histories that they write."""

from __future__ import annotations

import asyncio
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from tests.faults.nemesis.client import Orders
from tests.faults.nemesis.history import OK, Operation, Tail, history_of

LAST_ANSWERS: Final = 240.0
"""Seconds that clients may take until what they have begun has ended; each operation has its own deadline."""
_LOOK_AGAIN: Final = 0.05


class StuckError(AssertionError):
    """Puts were not acknowledged again although there is no fault any more, or a client has ended."""


class Load:
    """Any number of clients; on leaving the context those are killed that have not been stopped."""

    def __init__(self, directory: Path, seed: int, timeout: float) -> None:
        """`timeout`, in seconds, is what clients give each request."""
        self._directory = directory
        self._seed = seed
        self._timeout = timeout
        self._tails: list[Tail] = []
        self._processes: list[Process] = []
        self.operations: list[Operation] = []
        """What has ended, as of the last look."""

    async def __aenter__(self) -> Self:
        return self

    async def start(self, servers: Sequence[str], **unusual: Any) -> None:
        """Start one more client on these servers; `unusual` is what else is to be in its orders."""
        orders = Orders(
            number=len(self._processes),
            seed=self._seed,
            servers=list(servers),
            directory=str(self._directory),
            timeout=self._timeout,
            **unusual,
        )
        self._tails.append(Tail(history_of(self._directory, orders.number)))
        with (self._directory / f"client{orders.number}.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.faults.nemesis.client", stdin=PIPE, stderr=log
            )
        self._processes.append(process)
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(orders) + b"\n")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()

    async def until_acknowledged(self, count: int, within: float) -> None:
        """Wait for `count` more acknowledged puts; `StuckError` where they do not come in time."""
        await self.until(OK, count, within)

    async def until(self, outcome: str, count: int, within: float) -> None:
        """Wait until `count` more puts had this outcome; `StuckError` where they had not in time."""
        wanted = self._puts(outcome) + count
        give_up_at = time.monotonic() + within
        while (missing := wanted - self._puts(outcome)) > 0:
            self._check()
            if time.monotonic() > give_up_at:
                raise StuckError(f"{missing} of {count} puts were not {outcome!r} in {within:g} s")
            await asyncio.sleep(_LOOK_AGAIN)

    def _puts(self, outcome: str) -> int:
        for tail in self._tails:
            self.operations += tail.ended()
        return sum(one.kind == "put" and one.outcome == outcome for one in self.operations)

    async def stop(self) -> list[Operation]:
        """Have all clients stop, wait for them, and return everything that they began."""
        self._check()
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        async with asyncio.timeout(LAST_ANSWERS):
            for process in self._processes:
                if await process.wait():
                    raise StuckError(self._last_words())
        for tail in self._tails:
            self.operations += tail.ended()
        return self.operations + [one for tail in self._tails for one in tail.unfinished]

    def _check(self) -> None:
        if any(process.returncode is not None for process in self._processes):
            raise StuckError(self._last_words())

    def _last_words(self) -> str:
        logs = sorted(self._directory.glob("client*.log"))
        return "a client has ended by itself:\n" + "\n".join(log.read_text()[-2000:] for log in logs)
