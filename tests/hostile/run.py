"""All cells against one service, in four steps: hostile uploads, reads, honest puts, reads.

An upload that is refused is as good as one that everybody can read. After the honest put everybody reads. A
message that comes after the commit is stored below a blob that is named already, where other clients take it
for a part of it: that blob is asked of natsblob alone.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import nats
from nats.js.errors import NotFoundError

import natsblob
from natsblob.digest import Digest
from tests.hostile import readers
from tests.hostile.cells import CHUNK, Cell
from tests.integration.raw import TIMEOUT, Raw, Wire, service

LANES: Final = 8
"""Cells at a time."""
FOR_NODE: Final = 200
"""Blobs that JavaScript reads at a time: it leaves consumers behind, and their number has a limit."""
ACK: Final = 1.0
"""Seconds for the answer to a chunk; some messages get none."""


@dataclass
class Result:
    cell: Cell
    digest: str = ""
    outcome: str = ""
    """What the commit answered: `committed`, or the name of an error."""
    relayed: bool = False
    problems: list[str] = field(default_factory=list)


@dataclass
class Report:
    results: list[Result] = field(default_factory=list)
    readers: set[str] = field(default_factory=set)

    @property
    def bad(self) -> list[Result]:
        return [result for result in self.results if result.problems]

    def lines(self) -> Iterable[str]:
        outcomes = Counter(result.outcome for result in self.results)
        yield f"{len(self.results)} cells: " + ", ".join(f"{n} {name}" for name, n in outcomes.most_common())
        relayed = sum(result.relayed for result in self.results)
        yield f"{relayed} relayed; read by {', '.join(sorted(self.readers))}"
        for result in self.bad:
            yield f"BAD {result.cell.name} ({result.outcome}): {'; '.join(result.problems)}"


class Hostile:
    """One service, its attackers and its honest clients."""

    def __init__(self, raw: Raw, url: str, client: natsblob.Client, node: Path | None) -> None:
        self.raw = raw
        self.url = url
        self.client = client
        self.node = node
        self.report = Report()

    async def run(self, cells: Sequence[Cell]) -> Report:
        results = [Result(cell, Digest.of(cell.data).hex) for cell in cells]
        self.report.results = results
        wires: asyncio.Queue[Wire] = asyncio.Queue()
        async with AsyncExitStack() as stack:
            for _ in range(LANES):
                wires.put_nowait(await stack.enter_async_context(Wire(self.url)))

            async def upload(result: Result) -> None:
                wire = await wires.get()
                try:
                    await self._upload(result, wire)
                finally:
                    wires.put_nowait(wire)

            await self._each(results, upload)
        committed = [result for result in results if result.outcome == "committed"]
        await self._read(committed, "before")
        await self._each(results, self._honest_put)
        await self._read(results, "after an honest put")
        return self.report

    @staticmethod
    async def _each(results: Sequence[Result], step: Callable[[Result], Awaitable[None]]) -> None:
        gate = asyncio.Semaphore(LANES)

        async def one(result: Result) -> None:
            async with gate:
                try:
                    await step(result)
                except (TimeoutError, nats.errors.Error) as error:
                    result.problems.append(f"{step.__name__}: {type(error).__name__}")

        await asyncio.gather(*map(one, results))

    async def _upload(self, result: Result, wire: Wire) -> None:
        cell = result.cell
        wanted = {"relayed": True} if cell.mode == "relayed" else {}
        opened = (await self.raw.ask("put.open", wanted)).json
        result.relayed = bool(opened.get("relayed"))
        subject = opened["chunk_subject"]
        stage = subject.rpartition(".")[2]
        seqs: dict[int, int] = {}
        for index, message in cell.messages(stage):
            seq = await self._publish(wire, subject, message.block, message.data)
            if seq and index >= 0:
                seqs.setdefault(index, seq)
        body: dict[str, Any] = {"upload": opened["upload"], "size": len(cell.data), "chunks": cell.chunks}
        if len(seqs) == cell.chunks and cell.chunks <= 4_096:
            body["marks"] = {"every": 1, "seqs": [seqs[index] for index in sorted(seqs)]}
        at = "put.commit" if cell.mode == "elsewhere" else opened["commit_subject"]
        answer = await self.raw.ask(at.removeprefix(f"{self.raw.prefix}."), {**body, "digest": result.digest})
        result.outcome = answer.error["name"] if answer.code else "committed"
        late = cell.late(stage)
        if late:
            await self._publish(wire, subject, late.block, late.data)
        if cell.is_right and result.outcome != "committed":
            result.problems.append("an honest upload was refused")
        if answer.code >= 500:
            result.problems.append(f"{answer.code} {answer.error['message']}")

    async def _publish(self, wire: Wire, subject: str, block: bytes, data: bytes) -> int:
        """The sequence that is acknowledged, 0 if the message is refused or not answered."""
        inbox = self.raw.nc.new_inbox()
        answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        async def take(message: Any) -> None:
            if not answered.done():
                answered.set_result(message.data)

        subscription = await self.raw.nc.subscribe(inbox, cb=take)
        await self.raw.nc.flush()
        await wire.publish(subject, inbox, block, data)
        try:
            async with asyncio.timeout(ACK):
                answer = json.loads(await answered or b"{}")
                return int(answer.get("seq") or 0) if not answer.get("error") else 0
        except TimeoutError:
            return 0
        finally:
            await subscription.unsubscribe()

    async def _honest_put(self, result: Result) -> None:
        """In one message, or as an upload, in turns."""
        data = result.cell.data
        if result.cell.number % 2:
            try:
                info = await self.client.put(data, timeout=readers.PATIENCE)
            except natsblob.BlobError as error:
                result.problems.append(f"an honest put failed: {type(error).__name__}: {error}")
                return
            if str(info.digest) != result.digest:
                result.problems.append("an honest put was answered with another digest")
            return
        upload = await self.raw.open(digest=result.digest, size=len(data))
        if "upload" not in upload.opened:
            return
        stage = upload.opened["chunk_subject"].rpartition(".")[2]
        for index in range(
            result.cell.chunks if result.cell.kind != "chunk size" else -(-len(data) // CHUNK)
        ):
            part = data[index * CHUNK : (index + 1) * CHUNK]
            await upload.send(index, part, {"Nats-Msg-Id": f"{stage}.{index}"})
        answer = await upload.commit(digest=result.digest)
        if answer.code:
            result.problems.append(f"an honest upload failed: {answer.error['name']}")

    async def _read(self, results: Sequence[Result], when: str) -> None:
        async def one(result: Result) -> None:
            found = {
                **await readers.by_sdk(self.client, result.digest),
                **await readers.by_frames(self.raw.nc, self.raw.prefix, result.digest),
            }
            if not result.cell.is_late:
                found |= await readers.by_nats_py(self.raw.nc, self.raw.bucket, result.digest)
            self._note(result, found, when)

        await self._each(results, one)
        others = {result.digest: result for result in results if not result.cell.is_late}
        for start in range(0, len(others) if self.node else 0, FOR_NODE):
            some = list(others)[start : start + FOR_NODE]
            if self.node:
                read = await readers.by_javascript(self.node, self.url, self.raw.bucket, some)
                for digest, problem in read.items():
                    self._note(others[digest], {"@nats-io/obj": problem}, when)
            for consumer in await self.raw.js.consumers_info(self.raw.stream):
                with suppress(NotFoundError):  # it has ended by itself
                    await self.raw.js.delete_consumer(self.raw.stream, consumer.name)

    def _note(self, result: Result, found: dict[str, readers.Problem], when: str) -> None:
        self.report.readers |= found.keys()
        result.problems += [f"{when}, {reader}: {problem}" for reader, problem in found.items() if problem]


@asynccontextmanager
async def hostile(url: str, replicas: int, check: str, node: Path | None) -> AsyncIterator[Hostile]:
    """A service of two workers with a bucket of its own, and its clients."""
    settings: dict[str, Any] = {"chunk_size": CHUNK, "replicas": replicas, "commit_check": check}
    async with AsyncExitStack() as stack:
        raw = await stack.enter_async_context(service(url, workers=2, **settings))
        client = await stack.enter_async_context(natsblob.connect(url, prefix=raw.prefix, timeout=TIMEOUT))
        yield Hostile(raw, url, client, node)


async def run_cells(url: str, replicas: int, cells: Sequence[Cell], node: Path | None) -> Report:
    """All of these, each with the service of its mode."""
    total = Report()
    for check, modes in (("tap", {"tap", "elsewhere", "relayed"}), ("readback", {"readback"})):
        chosen = [cell for cell in cells if cell.mode in modes]
        async with hostile(url, replicas, check, node) as lab:
            report = await lab.run(chosen)
        total.results += report.results
        total.readers |= report.readers
    return total
