"""A worker process, several connections that send it requests of every kind, and what is to be seen of it."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final

from natsblob.broker.embedded import EmbeddedServer, free_port
from natsblob.testing.payloads import BOUNDARIES, cut, pattern
from natsblob.testing.servers import monitor, temporary_server
from natsblob.testing.services import WorkerProcess, running_worker
from natsblob.wire import Subjects
from tests.fuzz.cases import Case, Cases
from tests.fuzz.link import LOOPBACK, Answer, Link, published
from tests.fuzz.oracle import World, judged_error
from tests.fuzz.uploads import Uploader

PREFIX: Final = "fuzzed"
BUCKET: Final = "fuzzed"
CHUNK: Final = 4096
LINKS: Final = 4
UPLOADERS: Final = 4
IN_FLIGHT: Final = 40
"""Requests that a connection waits for at a time: all of them together stay below a worker's limit."""
PATIENCE: Final = 45.0
"""Seconds for an answer: a worker's deadline and some."""
EXPIRY: Final = 20.0
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_SHOWN: Final = 20


@dataclass
class Report:
    """What came of it."""

    requests: int = 0
    answered: int = 0
    dropped: int = 0
    uploads: int = 0
    broken_connections: int = 0
    seconds: float = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    memory: list[int] = field(default_factory=list)
    """Resident bytes of the worker after each tenth of the requests."""
    violations: list[str] = field(default_factory=list)

    def violated(self, text: str) -> None:
        if len(self.violations) < _SHOWN:
            self.violations.append(text[:1500])

    def lines(self) -> list[str]:
        mib = [f"{size / 2**20:.1f}" for size in self.memory]
        return [
            f"{self.requests:,} requests in {self.seconds:.0f} s",
            f"{self.answered:,} answered as they may be, {self.dropped:,} dropped by rule",
            f"beside them {self.uploads:,} uploads and {self.broken_connections:,} broken connections",
            f"answers: {', '.join(f'{name} {count:,}' for name, count in self.outcomes.most_common())}",
            f"resident memory of the worker after each tenth, MiB: {', '.join(mib)}",
            f"violations: {len(self.violations)}",
            *self.violations,
        ]


class Client:
    """One connection and the requests that are on their way on it."""

    def __init__(
        self, cases: Cases, world: World, report: Report, budget: itertools.count[int], goal: int
    ) -> None:
        self._cases = cases
        self._world = world
        self._report = report
        self._budget = budget
        self._goal = goal
        self._waiting: dict[str, tuple[Case, float]] = {}
        self.link: Link
        self.done = asyncio.Event()

    async def run(self, port: int, name: str) -> None:
        """Send requests until all clients together have sent enough, and wait for the last answers."""
        self.link = await Link.open(port, self._take, f"_INBOX.{name}.>")
        try:
            self._fill()
            await self._until_answered(name)
        finally:
            await self.link.close()

    async def _until_answered(self, name: str) -> None:
        while not self.done.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self.done.wait()
            late = [case for case, sent in self._waiting.values() if time.monotonic() - sent > PATIENCE]
            for case in late:
                self._report.violated(f"no answer: {case.endpoint} {case.sent[:300]!r}")
            if late or self.link.ended.done():
                break
        if not self.link.ended.done():
            await self.link.flush()
        if self.link.said or self.link.ended.done():
            last = [case.sent[:300] for case, _ in list(self._waiting.values())[-3:]]
            self._report.violated(f"the server ended {name}, and said {self.link.said} after {last}")

    def _fill(self) -> None:
        while len(self._waiting) < IN_FLIGHT:
            if next(self._budget) >= self._goal:
                if not self._waiting:
                    self.done.set()
                return
            case = self._cases.next()
            self._report.requests += 1
            if case.token is None:
                self._report.dropped += 1
            else:
                self._waiting[case.token] = (case, time.monotonic())
            self.link.send(case.sent)

    def _take(self, subject: str, answer: Answer) -> None:
        token = ".".join(subject.split(".", 3)[1:3])
        if token not in self._waiting:
            self._report.violated(f"an answer too many to {token}: {answer}")
            return
        case, _ = self._waiting[token]
        outcome, problem = self._judged(case, answer)
        if problem:
            self._report.violated(
                f"{problem}: {case.endpoint} {case.sent[:600]!r} -> {outcome} {answer.data[:300]!r}"
            )
        if outcome == "frame":
            return
        self._report.outcomes[outcome] += 1
        self._report.answered += not problem
        del self._waiting[token]
        self._fill()

    def _judged(self, case: Case, answer: Answer) -> tuple[str, str]:
        """How the request ended, or `frame` where it has not, and what is wrong with that."""
        if case.awaited is None:
            ack = json.loads(answer.data)
            return "stored" if "seq" in ack else "refused by the stream", "" if ack.keys() & {
                "seq",
                "error",
            } else "?"
        if answer.is_error:
            name, problem = judged_error(self._world, answer)
            allowed = case.awaited.names | {"busy"}
            return name, problem or ("" if name in allowed else f"may be {sorted(case.awaited.names)}")
        if case.awaited.framed and answer.status:
            return "window", "" if answer.status in ("204", "404", "408") else "no end of a window"
        if answer.status:
            return answer.status, "nobody answers"
        if "ok" not in case.awaited.names:
            return "ok", f"may be {sorted(case.awaited.names)}"
        ended = "frame" if case.awaited.framed and "Blob-Chunk" in answer.headers else "ok"
        return ended, case.awaited.check(answer)


class Asking:
    """Requests one by one on a connection, for what has to wait for each answer."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._answers: dict[str, asyncio.Future[Answer]] = {}
        self._count = 0
        self.link: Link

    async def open(self, port: int) -> None:
        self.link = await Link.open(port, self._take, f"_INBOX.{self._name}.>")

    async def __call__(self, make: Callable[[bytes], bytes]) -> Answer:
        self._count += 1
        reply = f"_INBOX.{self._name}.{self._count}"
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._answers[reply] = answer
        self.link.send(make(reply.encode()))
        async with asyncio.timeout(PATIENCE):
            return await answer

    async def ask(self, endpoint: str, body: bytes = b"") -> Answer:
        return await self(lambda reply: published(f"{PREFIX}.{endpoint}", reply, body))

    def _take(self, subject: str, answer: Answer) -> None:
        waiting = self._answers.pop(subject, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)


@asynccontextmanager
async def worker() -> AsyncIterator[tuple[EmbeddedServer, WorkerProcess, int]]:
    """A server, a worker process on it, and the port at which the server can be watched."""
    port = free_port()
    settings: dict[str, Any] = {"prefix": PREFIX, "bucket": BUCKET, "storage": "memory", "chunk_size": CHUNK}
    settings |= {
        "window_bytes": 16 * CHUNK,
        "upload_expiry": EXPIRY,
        "collect_interval": 5.0,
        "log_level": "error",
    }
    async with (
        temporary_server(extra=f'http: "{LOOPBACK}:{port}"') as server,
        running_worker(server.url, **settings) as process,
    ):
        yield server, process, port


async def fuzz(seed: int, requests: int) -> Report:
    """Send that many requests that follow from the seed, and look whether all went as the protocol says."""
    report = Report()
    async with worker() as (server, process, watched), AsyncExitStack() as stack:
        asking = Asking("asking")
        await asking.open(server.port)
        stack.push_async_callback(asking.link.close)
        world = await _world(asking)
        connections, config = await _connections(watched), await _config(asking)
        budget = itertools.count()
        cases = [Cases(seed * LINKS + number, world, PREFIX, BUCKET, f"c{number}") for number in range(LINKS)]
        clients = [Client(one, world, report, budget, requests) for one in cases]
        uploaders = [
            Uploader(asking, world, PREFIX, seed * UPLOADERS + number) for number in range(UPLOADERS)
        ]
        beside = [_vandalise(server.port, report, Random(seed)), _watch_memory(process.pid, report, requests)]
        beside += [_upload(uploader, report) for uploader in uploaders]
        tasks = [asyncio.ensure_future(work) for work in beside]
        stack.push_async_callback(_end, tasks)
        started = time.monotonic()
        await asyncio.gather(
            *(client.run(server.port, f"c{number}") for number, client in enumerate(clients))
        )
        report.seconds = time.monotonic() - started
        report.memory.append(_resident(process.pid))
        await _end(tasks)
        unanswered = [digest for one in cases for digest in one.unanswered]
        stored = world.known.copy()
        for uploader in uploaders:
            stored |= uploader.stored
        await _check(asking, report, unanswered, stored)
        if await _connections(watched) != connections or not process.running:
            report.violated("the worker, or a connection of it, is another one than before")
        if await _config(asking) != config:
            report.violated("the stream is configured in another way than before")
    return report


async def _world(asking: Asking) -> World:
    """Store what is known, and one blob that no reply carries."""
    caps = json.loads((await asking.ask("caps")).data)
    known = [pattern(777, "first")] + [pattern(size(CHUNK), "known") for size in BOUNDARIES.values()]
    pool = [pattern(size(CHUNK), "pool") for size in BOUNDARIES.values() if size(CHUNK)]
    pool += [pattern(100 + number, "pool") for number in range(30)]
    for data in known:
        await asking.ask("put", data)
    large = pattern(caps["max_inline"] + CHUNK, "large")
    await _put_large(asking, large)
    known.append(large)
    digested = [{hashlib.sha256(data).hexdigest(): data for data in blobs} for blobs in (known, pool)]
    return World(digested[0], digested[1], caps)


async def _put_large(asking: Asking, data: bytes) -> None:
    opened = json.loads((await asking.ask("put.open", b"{}")).data)
    chunks = list(cut(data, CHUNK))
    for index, chunk in enumerate(chunks):
        block = b"NATS/1.0\r\nBlob-Chunk: %d\r\n\r\n" % index
        await asking(partial(_to, opened["chunk_subject"], chunk, block))
    request = {"upload": opened["upload"], "size": len(data), "chunks": len(chunks)}
    answer = await asking.ask("put.commit", json.dumps(request).encode())
    assert not answer.is_error, answer


def _to(subject: str, body: bytes, block: bytes, reply: bytes) -> bytes:
    return published(subject, reply, body, block)


async def _upload(uploader: Uploader, report: Report) -> None:
    """One upload after the other, with time for others in between."""
    while True:
        try:
            problems = await uploader.one()
        except (TimeoutError, LookupError, ValueError) as error:
            report.violated(f"an upload was answered in no form of its own, or not at all: {error!r}")
            return
        for problem in problems:
            report.violated(problem)
        report.uploads += 1
        await asyncio.sleep(0.01)


async def _vandalise(port: int, report: Report, random: Random) -> None:
    """Connections that send what is no protocol, or half of a message, and go away."""
    subject = f"{PREFIX}.put".encode()
    while True:
        half = b"PUB %s _INBOX.v %d\r\n" % (subject, random.randrange(1, 10**6)) + random.randbytes(
            random.randrange(900)
        )
        wrong = [
            random.randbytes(random.randrange(1, 4000)),
            b"CONNECT {" + random.randbytes(100) + b"}\r\n",
            b'CONNECT {"headers":true}\r\n' + half,
            b'CONNECT {"headers":true}\r\nHPUB %s _INBOX.v 900 10\r\n' % subject,
            b'CONNECT {"headers":true}\r\nHPUB %s _INBOX.v -1 -1\r\n' % subject,
            b'CONNECT {"headers":true}\r\nPUB %s _INBOX.v 99999999999999\r\n' % subject,
            b'CONNECT {"headers":true}\r\nPUB %s %s\r\n' % (subject, b"x" * 5000),
            b"CONNECT {}\r\n" + b"SUB " + b">." * 300 + b" 1\r\n",
            b"\r\n" * 900,
            b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + random.randbytes(200),
        ]
        with suppress(OSError):
            transport, _ = await asyncio.get_running_loop().create_connection(
                asyncio.Protocol, LOOPBACK, port
            )
            try:
                transport.write(random.choice(wrong))
                await asyncio.sleep(0.02)  # the server may wait for more
            finally:
                transport.abort()
        report.broken_connections += 1


async def _watch_memory(pid: int, report: Report, requests: int) -> None:
    for tenth in range(1, 10):
        while report.requests < requests * tenth // 10:  # noqa: ASYNC110 - another process's memory
            await asyncio.sleep(0.01)
        report.memory.append(_resident(pid))


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE


async def _end(tasks: Sequence[asyncio.Future[None]]) -> None:
    for task in tasks:
        task.cancel()
    for task in tasks:
        with suppress(asyncio.CancelledError):
            await task


async def _connections(port: int) -> dict[str, int]:
    """The worker's connections by name, and the number that each has at the server."""
    found = (await monitor(port, "/connz"))["connections"]
    return {one["name"]: one["cid"] for one in found if one.get("name", "").startswith("natsblob ")}


async def _config(asking: Asking) -> Any:
    info = await asking(lambda reply: published(f"$JS.API.STREAM.INFO.OBJ_{BUCKET}", reply, b""))
    return json.loads(info.data)["config"]


async def _check(asking: Asking, report: Report, unanswered: list[str], stored: dict[str, bytes]) -> None:
    """What was stored is as it was, what must have no effect had none, and all that is there can be read."""
    for digest, data in stored.items():
        await _look(asking, digest, len(data), report, data=data)
    for some in _pages(unanswered):
        missing = json.loads((await asking.ask("has", json.dumps(some).encode())).data)["missing"]
        if missing != some:
            report.violated("a put without a reply subject that is allowed was stored")
    after, listed = None, 0
    while after is not None or not listed:
        page = json.loads((await asking.ask("list", json.dumps({"after": after}).encode())).data)
        for info in page["blobs"]:
            await _look(asking, info["digest"], info["size"], report)
        listed, after = listed + len(page["blobs"]), page["after"]
    stats = await asking(lambda reply: published(f"$SRV.STATS.{Subjects(PREFIX).service}", reply, b""))
    figures = json.loads(stats.data)["endpoints"][0]["data"]
    if figures["dropped_replies"] != report.dropped:
        report.violated(f"{figures['dropped_replies']} dropped, and {report.dropped} were to be")
    if (figures["requests_in_flight"], figures["bytes_in_flight"]) != (0, 0):
        report.violated(f"something is still in flight: {figures}")


def _pages(digests: list[str]) -> list[list[str]]:
    return [digests[start : start + 1000] for start in range(0, len(digests), 1000)]


async def _look(asking: Asking, digest: str, size: int, report: Report, data: bytes | None = None) -> None:
    """Read a blob and compare it with its digest, and with what it has to be."""
    parts = []
    for offset in range(0, max(size, 1), 512 * 1024):
        request = {"digest": digest, "offset": offset, "length": 512 * 1024}
        answer = await asking.ask("get", json.dumps(request).encode())
        if answer.is_error:
            report.violated(f"{digest} cannot be read: {answer.data!r}")
        parts.append(answer.data)
    whole = b"".join(parts)
    if hashlib.sha256(whole).hexdigest() != digest or (data is not None and whole != data):
        report.violated(f"{digest} is not what it was")
