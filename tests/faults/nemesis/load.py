"""Clients under load, as processes, and the histories that they write."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from tests.faults.nemesis.client import Orders
from tests.faults.nemesis.history import Operation, Tail

LAST_ANSWERS: Final = 240.0
"""Seconds that clients may take until what they have begun has ended; each operation has its own deadline."""
_LOOK_AGAIN: Final = 0.05


class StuckError(AssertionError):
    """Puts were not acknowledged again although there is no fault any more, or a client has ended."""


class Load:
    """Several clients. They begin when the context does, and are killed where they have not been stopped."""

    def __init__(
        self, directory: Path, seed: int, clients: Sequence[Mapping[str, Any]], timeout: float
    ) -> None:
        """`clients` has for each one its orders where they are not the usual ones, with its `servers`."""
        paths = [directory / f"client{number}.jsonl" for number in range(len(clients))]
        self._orders = [
            Orders(
                number=number,
                seed=seed,
                history=str(path),
                others=[str(other) for other in paths if other != path],
                timeout=timeout,
                **orders,
            )
            for number, (path, orders) in enumerate(zip(paths, clients, strict=True))
        ]
        self._directory = directory
        self._tails = [Tail(path) for path in paths]
        self._processes: list[Process] = []
        self.operations: list[Operation] = []
        """What has ended, as of the last look."""

    async def __aenter__(self) -> Self:
        for orders in self._orders:
            await self._start(orders)
        return self

    async def _start(self, orders: Orders) -> None:
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

    def look(self) -> int:
        """Read on in the histories; the number of acknowledged puts so far."""
        for tail in self._tails:
            self.operations += tail.ended()
        return sum(one.kind == "put" and one.is_acknowledged for one in self.operations)

    async def until_acknowledged(self, count: int, within: float) -> None:
        """Wait for `count` more acknowledged puts; `StuckError` where they do not come in time."""
        wanted = self.look() + count
        try:
            async with asyncio.timeout(within):
                while self.look() < wanted:
                    self._check()
                    await asyncio.sleep(_LOOK_AGAIN)
        except TimeoutError as error:
            missing = wanted - self.look()
            raise StuckError(f"{missing} of {count} puts were not acknowledged in {within} s") from error

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
        self.look()
        return self.operations + [one for tail in self._tails for one in tail.unfinished]

    def _check(self) -> None:
        if any(process.returncode is not None for process in self._processes):
            raise StuckError(self._last_words())

    def _last_words(self) -> str:
        logs = sorted(self._directory.glob("client*.log"))
        return "a client has ended by itself:\n" + "\n".join(log.read_text()[-2000:] for log in logs)
