"""Ten times as many requests as a worker can serve: it serves what its limits say, and refuses the rest."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import pytest

import natsblob
from natsblob.broker.embedded import EmbeddedServer
from natsblob.service.handlers import LISTS_AT_ONCE
from natsblob.store.jetstream import JetStreamStore
from natsblob.testing.payloads import pattern
from natsblob.testing.servers import temporary_server
from natsblob.testing.services import WorkerProcess, running_worker
from natsblob.wire import Page
from tests.fuzz.link import Answer, Link, published
from tests.integration.raw import service

AT_ONCE = 64
"""The worker's limit of requests."""
TIMES = 10
BLOB = pattern(4096)
PATIENCE = 30.0
LOOKS = 10
"""How often it is looked whether all is as before: others may use the disk just then."""


@dataclass
class Seen:
    """Answers within some time; durations in seconds."""

    served: list[float] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    took: float = 0

    @property
    def rate(self) -> float:
        return len(self.served) / self.took

    def __str__(self) -> str:
        refused = self.refused.total() / self.took
        times = f"median {median(self.served):.4f} s, p99 {quantiles(self.served, n=100)[98]:.4f} s"
        return f"{self.rate:.0f}/s served, {times}, {refused:.0f}/s refused"


class Load:
    """Puts of new blobs, as many at a time or as often as is asked for."""

    def __init__(self) -> None:
        self._sent: dict[str, float] = {}
        self._count = 0
        self._seen = Seen()
        self._ended = asyncio.Event()
        self._until = 0.0
        self._keep = False
        self.link: Link

    async def closed(self, at_once: int, seconds: float) -> Seen:
        """So many requests at a time, each next one when one is answered."""
        self._seen, self._keep, self._until = Seen(), True, time.perf_counter() + seconds
        self.link.send(b"".join(self._next() for _ in range(at_once)))
        return await self._answered(seconds)

    async def open(self, rate: float, seconds: float) -> Seen:
        """So many requests a second, whatever becomes of them."""
        self._seen, self._keep, sent = Seen(), False, 0
        started = time.perf_counter()
        while (passed := time.perf_counter() - started) < seconds:
            due = int(passed * rate) - sent
            self.link.send(b"".join(self._next() for _ in range(due)))
            sent += due
            await asyncio.sleep(0.002)
        return await self._answered(seconds)

    async def _answered(self, seconds: float) -> Seen:
        """All that was sent has been answered."""
        self._ended.clear()
        async with asyncio.timeout(seconds + PATIENCE):
            while self._sent:
                await self._ended.wait()
                self._ended.clear()
        self._seen.took = seconds
        return self._seen

    def _next(self) -> bytes:
        self._count += 1
        reply = f"_INBOX.load.{self._count}"
        self._sent[reply] = time.perf_counter()
        return published("loaded.put", reply.encode(), b"%08d" % self._count + BLOB)

    def take(self, subject: str, answer: Answer) -> None:
        now = time.perf_counter()
        started = self._sent.pop(subject)
        if answer.is_error:
            error = json.loads(answer.data)["error"]
            assert error["details"]["retry_after_ms"] > 0
            self._seen.refused[error["name"]] += 1
        else:
            self._seen.served.append(now - started)
        if self._keep and now < self._until:
            self.link.send(self._next())
        if not self._sent:
            self._ended.set()


@pytest.fixture
async def worker(server: EmbeddedServer) -> AsyncIterator[WorkerProcess]:
    settings = {"prefix": "loaded", "bucket": "loaded", "max_requests": AT_ONCE, "log_level": "error"}
    async with running_worker(server.url, **settings) as process:
        yield process


@pytest.fixture
async def load(server: EmbeddedServer, worker: WorkerProcess) -> AsyncIterator[Load]:
    load = Load()
    load.link = await Link.open(server.port, load.take, "_INBOX.load.>")
    yield load
    await load.link.close()


def is_as_before(now: Seen, before: Seen) -> bool:
    return not now.refused and median(now.served) < 3 * median(before.served)


def resident(process: WorkerProcess) -> int:
    """Pages."""
    return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])


async def test_what_is_too_much_is_refused_and_the_rest_is_served(worker: WorkerProcess, load: Load) -> None:
    await load.closed(AT_ONCE // 2, 0.5)
    alone, carried, memory = await load.closed(1, 1), await load.closed(AT_ONCE // 2, 1), resident(worker)
    burst = await load.open(TIMES * carried.rate, 2)
    grown, again = resident(worker) / memory, await load.closed(1, 0.5)
    for _ in range(LOOKS):
        if is_as_before(again, alone):
            break
        again = await load.closed(1, 0.5)
    for name, seen in {"alone": alone, "carried": carried, "burst": burst, "afterwards": again}.items():
        print(f"{name}: {seen}")  # noqa: T201 - the figures of docs/reliability.md
    print(f"memory: {grown:.2f} times")  # noqa: T201

    assert set(burst.refused) == {"busy"}
    assert burst.refused.total() > len(burst.served)
    assert burst.rate > carried.rate / 5
    # As many as the worker takes at a time wait for one another, and for nobody else.
    assert quantiles(burst.served, n=100)[98] < 6 * AT_ONCE / min(carried.rate, burst.rate)
    assert grown < 1.5
    assert is_as_before(again, alone)


async def test_many_pages_at_a_time_wait_for_one_another(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes the names of all blobs into memory, however few it answers with."""
    now = most = 0
    whole = JetStreamStore.list

    async def counted(*args: Any, **named: Any) -> Page:
        nonlocal now, most
        now += 1
        most = max(most, now)
        try:
            return await whole(*args, **named)
        finally:
            now -= 1

    monkeypatch.setattr(JetStreamStore, "list", counted)
    async with service(server.url) as raw:
        digest = await raw.put(b"one")
        pages = await asyncio.gather(*(raw.ask("list") for _ in range(50)))
    assert most == LISTS_AT_ONCE
    assert {page.json["blobs"][0]["digest"] for page in pages} == {digest}


async def test_a_worker_that_was_cut_off_comes_back() -> None:
    """A server keeps so much for a connection that does not read, and no more."""
    async with (
        temporary_server(extra="max_pending: 1MB\nwrite_deadline: 500ms") as server,
        running_worker(server.url, prefix="loaded", storage="memory", log_level="error") as process,
        natsblob.connect(server.url, prefix="loaded", timeout=PATIENCE) as blobs,
    ):
        before = await blobs.put(BLOB)
        os.kill(process.pid, signal.SIGSTOP)
        try:
            link = await Link.open(server.port, lambda *_: None)
            for number in range(20_000):
                link.send(published("loaded.put", b"_INBOX.nobody", b"%05d" % number + BLOB))
            await link.flush()
            await link.close()
        finally:
            os.kill(process.pid, signal.SIGCONT)
        assert (await blobs.put(b"afterwards")).created
        assert await blobs.get(before.digest) == BLOB
