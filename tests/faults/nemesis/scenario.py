"""A scenario: a shape, a schedule of faults, and what may follow from them; and how it is run and judged."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

import natsblob
from natsblob.broker.connection import Access, connect
from natsblob.broker.consumers import Copies
from natsblob.broker.jetstream import JetStream
from natsblob.digest import Digest
from natsblob.errors import BlobError
from natsblob.maintenance.replicas import Comparer, Comparison
from natsblob.objectstore.bucket import Bucket
from natsblob.objectstore.objects import Objects
from tests.faults.nemesis.checker import PASSING, check
from tests.faults.nemesis.history import OK, WRONG, Operation, content
from tests.faults.nemesis.isolation import Need, lacks
from tests.faults.nemesis.load import StuckError
from tests.faults.nemesis.node import server_binary
from tests.faults.nemesis.world import BUCKET, PREFIX, Shape, World

_READERS: Final = 16
_TOLD: Final = 5


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One way of going wrong. `row` is where it counts in the table of faults."""

    name: str
    row: str
    shape: Shape
    schedule: Callable[[World], Awaitable[None]]
    explained: frozenset[str] = PASSING
    """Names of errors that its faults are a reason for."""
    after: Callable[[World], Awaitable[list[str]]] | None = None
    """What else has to hold when the clients have stopped; it answers with what does not."""
    trusts_absence: bool = True
    loses: bool = False
    """It is a control: acknowledged blobs have to be lost, and the checker has to find that out."""
    is_long: bool = False

    @property
    def lacks(self) -> str:
        """Why it cannot run here; empty where it can."""
        needs: list[Need] = []
        if self.shape.disk:
            needs.append("mounts")
        if self.shape.network == "namespaces":
            needs.append("namespaces")
        if not server_binary(self.shape.server).exists():
            return f"nats-server {self.shape.server} is not there"
        return next((reason for need in needs if (reason := lacks(need))), "")


class Report(msgspec.Struct, kw_only=True):
    """How one run of a scenario went. Times are seconds."""

    scenario: str
    row: str
    seed: int
    operations: int = 0
    acknowledged: int = 0
    lost: int = 0
    wrong: int = 0
    false_missing: int = 0
    unanswered: int = 0
    outcomes: dict[str, int] = {}
    slowest: float = 0.0
    slowest_was: str = ""
    no_put: float = 0.0
    no_get: float = 0.0
    took: float = 0.0
    faults: list[str] = []
    violations: list[str] = []
    """What was promised and not kept; of a control, that nothing was."""
    kept: str = ""
    """The directory with histories and logs, where there are violations."""


async def run(scenario: Scenario, seed: int, directory: Path) -> Report:
    """Run a scenario in an empty directory, and judge it."""
    began = time.monotonic()
    report = Report(scenario=scenario.name, row=scenario.row, seed=seed)
    try:
        async with World(scenario.shape, directory, seed) as world:
            try:
                await scenario.schedule(world)
                if not scenario.loses:
                    await world.recovered()
                await _judge(scenario, world, report)
            finally:
                report.faults = world.told
    except (StuckError, TimeoutError, BlobError) as error:
        report.violations.append(f"{type(error).__name__}: {error}")
    report.took = time.monotonic() - began
    return report


async def _judge(scenario: Scenario, world: World, report: Report) -> None:
    operations = await world.load.stop()
    if scenario.shape.replicas > 1 and not scenario.loses:
        await world.settled()
    left = await read_back(world, operations)
    verdict = check(
        operations,
        left,
        world.window,
        explained=scenario.explained,
        trusts_absence=scenario.trusts_absence,
    )
    report.operations, report.acknowledged = verdict.operations, verdict.acknowledged
    report.lost, report.wrong = len(verdict.lost), len(verdict.wrong)
    report.false_missing, report.unanswered = len(verdict.false_missing), len(verdict.unanswered)
    report.outcomes = dict(Counter(one.outcome for one in operations))
    report.slowest_was = verdict.slowest_was
    report.slowest, report.no_put, report.no_get = verdict.slowest, verdict.no_put, verdict.no_get
    if scenario.loses:
        if not verdict.lost:
            report.violations.append("a control lost nothing: either the fault or the checker does not work")
        return
    for name, found in verdict.complaints().items():
        report.violations.append(f"{name}: {len(found)}, such as {'; '.join(found[:_TOLD])}")
    if scenario.after:
        report.violations += await scenario.after(world)
    comparison = await compare(world)
    if not comparison.agree:
        report.violations.append(f"the copies do not agree: {comparison}")


async def read_back(world: World, operations: Iterable[Operation]) -> dict[str, str]:
    """How each blob that anybody put can be read now: `OK`, `WRONG`, or the name of an error."""
    servers = Access(tuple(node.url for node in world.nodes))
    sizes = {one.blob: one.size for one in operations if one.kind == "put"}
    waiting = list(sizes)
    left: dict[str, str] = {}
    async with natsblob.connect(servers, prefix=PREFIX, timeout=world.shape.timeout) as blobs:

        async def read() -> None:
            while waiting:
                blob = waiting.pop()
                data = content(blob, sizes[blob])
                try:
                    left[blob] = OK if await blobs.get(Digest.of(data)) == data else WRONG
                except BlobError as error:
                    left[blob] = error.name

        await asyncio.gather(*(read() for _ in range(_READERS)))
    return left


async def compare(world: World) -> Comparison:
    """Read the copy of every server, and compare them."""
    async with await connect(Access(tuple(node.url for node in world.nodes))) as connection:
        bucket = Bucket(JetStream(connection), BUCKET, PREFIX)
        return await Comparer(Objects(bucket), Copies(connection, bucket.layout.stream)).compare()


def chosen(scenarios: Sequence[Scenario], names: Iterable[str]) -> list[Scenario]:
    """The scenarios of these names, or whose names begin so; all of them where none is given."""
    wanted = list(names)
    return [one for one in scenarios if not wanted or any(one.name.startswith(name) for name in wanted)]
