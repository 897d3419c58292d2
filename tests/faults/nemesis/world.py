"""Servers, disks, workers and clients of one scenario, and what can be done to them."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar

from natsblob.broker.connection import Access, connect
from natsblob.broker.jetstream import JetStream, StreamInfo
from natsblob.errors import BlobError, UnavailableError
from natsblob.objectstore.bucket import Bucket, BucketConfig
from natsblob.testing.services import WorkerProcess, running_worker
from tests.faults.nemesis.checker import Window
from tests.faults.nemesis.disk import Disk
from tests.faults.nemesis.load import Load, StuckError
from tests.faults.nemesis.namespaces import NamespaceNetwork
from tests.faults.nemesis.network import Network, ProxyNetwork
from tests.faults.nemesis.node import Node, server_binary

T = TypeVar("T")

BUCKET: Final = "blobs"
PREFIX: Final = "blob"
SETTLE: Final = 90.0
"""Seconds in which a healed cluster has to agree on a leader and have all copies current."""
WARM: Final = 20
"""Acknowledged puts before the first fault."""
AGAIN: Final = 10
"""Acknowledged puts by which one knows that puts work again."""
_LOOK_AGAIN: Final = 0.1

_NETWORKS: Final[dict[str, type[Network]]] = {
    "loopback": Network,
    "proxies": ProxyNetwork,
    "namespaces": NamespaceNetwork,
}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a scenario needs. `disk` is the MiB of each server's own disk, 0 where a directory will do."""

    nodes: int = 3
    replicas: int = 3
    workers: int = 2
    clients: int = 3
    network: Literal["loopback", "proxies", "namespaces"] = "loopback"
    disk: int = 0
    sync: str = "always"
    server: str = ""
    """The version of nats-server to begin with; by default the one that is installed."""
    max_bytes: int = 0
    timeout: float = 30.0
    """Seconds that clients give each request."""
    orders: dict[str, Any] = field(default_factory=dict)
    """What is unusual about the clients."""


class World:
    """Everything of one scenario, started on entering and gone on leaving."""

    def __init__(self, shape: Shape, directory: Path, seed: int) -> None:
        self.shape = shape
        self.directory = directory
        self.seed = seed
        self.rng = random.Random(seed)
        self.network = _NETWORKS[shape.network](shape.nodes)
        self.disks: dict[int, Disk] = {}
        self.nodes: list[Node] = []
        self.workers: list[WorkerProcess] = []
        self.told: list[str] = []
        self.memory = {"worker": 0, "server": 0}
        """The most bytes that a process was seen to take."""
        self._binary = server_binary(shape.server)
        self._began = time.monotonic()
        self._faults: list[list[float]] = []
        self._stack = AsyncExitStack()
        self.load: Load

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _start(self) -> None:
        shape = self.shape
        await self._stack.enter_async_context(self.network)
        for number in self.network.nodes:
            await self._add_node(number)
        await asyncio.gather(*(node.start() for node in self.nodes))
        await self._create_bucket()
        for _ in range(shape.workers):
            await self.add_worker()
        self.load = await self._stack.enter_async_context(Load(self.directory, self.seed, shape.timeout))
        for _ in range(shape.clients):
            await self.load.start(self.addresses, **shape.orders)
        await self.load.until_acknowledged(WARM, within=60)

    async def _add_node(self, number: int) -> None:
        home = self.directory / f"n{number}"
        data = home / "data"
        if self.shape.disk:
            self.disks[number] = Disk(self.directory / f"n{number}.img", data, self.shape.disk)
            await self.disks[number].make()
            self._stack.push_async_callback(self._remove_disk, number)
        node = Node(number, home, data, self.network, sync=self.shape.sync, binary=self._binary)
        self.nodes.append(node)
        self._stack.push_async_callback(node.kill)

    async def _remove_disk(self, number: int) -> None:
        with suppress(OSError):
            await self.disks[number].unmount()

    @property
    def addresses(self) -> list[str]:
        """Where workers and clients find the servers."""
        return [f"nats://{self.network.address(number)}" for number in self.network.nodes]

    async def add_worker(self, **settings: Any) -> WorkerProcess:
        worker = await self._stack.enter_async_context(
            running_worker(
                ",".join(self.addresses),
                replicas=self.shape.replicas,
                bucket=BUCKET,
                prefix=PREFIX,
                log_level="error",
                **settings,
            )
        )
        self.workers.append(worker)
        return worker

    async def _create_bucket(self) -> None:
        config = BucketConfig(name=BUCKET, replicas=self.shape.replicas, max_bytes=self.shape.max_bytes)
        async with self.bucket() as bucket:
            await self._once_possible(lambda: bucket.create(config))

    async def enter(self, context: AbstractAsyncContextManager[T]) -> T:
        """Have something that lasts until the scenario ends."""
        return await self._stack.enter_async_context(context)

    def weigh(self) -> None:
        """Keep in mind what memory processes take."""
        for kind, processes in (("worker", self.workers), ("server", self.nodes)):
            for process in processes:
                status = Path(f"/proc/{process.pid}/status").read_text()
                resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
                self.memory[kind] = max(self.memory[kind], 1024 * int(resident.split()[1]))

    async def remove_worker(self, worker: WorkerProcess) -> None:
        """Let a worker finish what it has begun, and end; `StuckError` where it does not end well."""
        self.workers.remove(worker)
        if status := await worker.stop():
            raise StuckError(f"a worker that was to end left with status {status}")

    async def kill_worker(self, worker: WorkerProcess) -> None:
        self.workers.remove(worker)
        await worker.kill()

    # What is seen from outside, whatever is cut between others.

    @asynccontextmanager
    async def bucket(self, node: Node | None = None) -> AsyncIterator[Bucket]:
        """The bucket as an administrator has it, through `node` or any server that runs."""
        urls = [node.url] if node else [one.url for one in self.nodes if one.running]
        if not urls:
            raise StuckError("no server runs")
        async with await connect(Access(tuple(urls))) as connection:
            yield Bucket(JetStream(connection, patience=5.0), BUCKET, PREFIX)

    async def info(self) -> StreamInfo:
        """The bucket's stream, as soon as it has a leader."""

        async def info() -> StreamInfo:
            async with self.bucket() as bucket:
                found = await bucket.info()
            if len(self.nodes) > 1 and not (found.cluster and found.cluster.leader):
                raise UnavailableError("the bucket has no leader")
            return found

        return await self._once_possible(info)

    async def _once_possible(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """The result of an attempt that is made until it succeeds; `StuckError` after `SETTLE` seconds."""
        give_up_at = time.monotonic() + SETTLE
        while True:
            try:
                return await attempt()
            except BlobError as error:
                if time.monotonic() > give_up_at:
                    raise StuckError(f"not possible within {SETTLE:g} s: {error}") from error
            await asyncio.sleep(_LOOK_AGAIN)

    async def leader(self) -> Node:
        """The server that leads the bucket; with one server that one."""
        if len(self.nodes) == 1:
            return self.nodes[0]
        info = await self.info()
        assert info.cluster is not None
        return self.named(info.cluster.leader)

    async def followers(self) -> list[Node]:
        """The other servers that hold the bucket."""
        info = await self.info()
        assert info.cluster is not None
        return [self.named(replica.name) for replica in info.cluster.replicas]

    def named(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    def others(self, *nodes: Node) -> list[Node]:
        return [node for node in self.nodes if node not in nodes]

    async def settled(self, replicas: int | None = None) -> None:
        """Wait until the bucket has its leader and as many current copies as it should."""
        wanted = self.shape.replicas if replicas is None else replicas

        async def current() -> None:
            cluster = (await self.info()).cluster
            peers = cluster.replicas if cluster else []
            if len(peers) != wanted - 1 or not all(one.current and not one.offline for one in peers):
                raise UnavailableError(f"the copies are not current: {cluster}")

        await self._once_possible(current)

    # Faults.

    @contextmanager
    def fault(self, what: str) -> Iterator[None]:
        """The time in which a fault lasts."""
        span = [time.monotonic(), 0.0]
        self._faults.append(span)
        try:
            yield
        finally:
            span[1] = time.monotonic()
            begins, ends = (at - self._began for at in span)
            self.told.append(f"{begins:.1f}-{ends:.1f} s {what}")

    @property
    def window(self) -> Window:
        return Window(min(span[0] for span in self._faults), max(span[1] for span in self._faults))

    async def lasting(self, seconds: float) -> None:
        """Let time pass: a fault has a length."""
        await asyncio.sleep(seconds)

    async def recovered(self) -> None:
        """Wait until the copies are current and puts are acknowledged again."""
        if self.shape.replicas > 1:
            await self.settled()
        await self.load.until_acknowledged(AGAIN, within=SETTLE)
