"""Honest clients at a fixed, modest rate: how many of their requests fail, and how long they take."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random
from typing import Final

import natsblob
from tests.attacks.catalogue import LARGE, known

RATES: Final = {"put": 8.0, "large put": 0.5, "get": 15.0, "large get": 0.5, "has": 10.0, "list": 0.5}
"""Requests of each kind a second."""
PATIENCE: Final = 20.0
LARGE_PUT: Final = 2_500_000


@dataclass
class Seen:
    """What came of the requests of one period."""

    durations: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in RATES})
    failures: Counter[str] = field(default_factory=Counter)

    @property
    def count(self) -> int:
        return sum(map(len, self.durations.values())) + self.failures.total()

    def p99(self, kind: str) -> float:
        """Seconds; the slowest one of fewer than a hundred."""
        ordered = sorted(self.durations[kind]) or [0.0]
        return ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]


class Honest:
    """One client, whose requests do not wait for one another."""

    def __init__(self, client: natsblob.Client, blobs: int) -> None:
        """`blobs` are stored already."""
        self._client = client
        self._blobs = blobs
        self._random = Random(blobs)
        self._count = 0
        self._stored: list[bytes] = []

    async def run(self, seconds: float) -> Seen:
        """Load for so long, and until the last request is answered."""
        seen, began = Seen(), time.monotonic()
        done = dict.fromkeys(RATES, 0)
        tasks: list[asyncio.Task[None]] = []
        while (passed := time.monotonic() - began) < seconds:
            for kind, rate in RATES.items():
                for _ in range(int(passed * rate) - done[kind]):
                    tasks.append(asyncio.create_task(self._timed(seen, kind, self._request(kind))))
                    done[kind] += 1
            await asyncio.sleep(0.01)
        await asyncio.gather(*tasks)
        return seen

    async def _timed(self, seen: Seen, kind: str, request: Callable[[], Awaitable[bool]]) -> None:
        began = time.monotonic()
        try:
            if not await request():
                seen.failures[f"{kind}: wrong"] += 1
                return
        except natsblob.BlobError as error:
            seen.failures[f"{kind}: {type(error).__name__}: {error}"] += 1
            return
        seen.durations[kind].append(time.monotonic() - began)

    def _request(self, kind: str) -> Callable[[], Awaitable[bool]]:
        client = self._client
        self._count += 1
        number = self._count
        data = self._random.choice(self._stored or [known(1)])

        async def put() -> bool:
            new = b"honest %d" % number + self._random.randbytes(4_000 if kind == "put" else LARGE_PUT)
            info = await client.put(new, timeout=PATIENCE)
            self._stored = [*self._stored[-20:], new]
            return str(info.digest) == natsblob.Digest.of(new).hex

        async def get() -> bool:
            wanted = data if kind == "get" else LARGE
            return await client.get(natsblob.Digest.of(wanted), timeout=PATIENCE) == wanted

        async def has() -> bool:
            return await client.has(natsblob.Digest.of(data), timeout=PATIENCE)

        async def listed() -> bool:
            return len([info async for info in client.list(timeout=PATIENCE)]) >= self._blobs

        return {"put": put, "large put": put, "get": get, "large get": get, "has": has, "list": listed}[kind]
