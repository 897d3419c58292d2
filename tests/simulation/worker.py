"""A worker of the simulation: everything real, from the endpoints to the collector, but the connections."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Final, TypeVar, cast

from natsblob import telemetry, wire
from natsblob.broker.connection import Connection
from natsblob.broker.jetstream import JetStream
from natsblob.errors import DeadlineError, NoRespondersError
from natsblob.maintenance.collect import Collector
from natsblob.metrics import Metrics
from natsblob.objectstore.bucket import Bucket
from natsblob.objectstore.cache import EntryCache
from natsblob.objectstore.objects import Objects
from natsblob.service.forward import Forwarder
from natsblob.service.handlers import Handlers
from natsblob.service.limits import Limits
from natsblob.service.replies import Replies
from natsblob.service.tap import Taps
from natsblob.service.uploads import StagedUploads
from natsblob.service.worker import Worker as Service
from natsblob.store.jetstream import UPLOAD_EXPIRY, JetStreamStore
from natsblob.telemetry import Telemetry
from tests.simulation.history import REQUEST_TIMEOUT
from tests.simulation.network import Network, SimulatedClient

T = TypeVar("T")

BUCKET: Final = "blobs"
CHUNK: Final = 16
WINDOW: Final = 4
"""Chunks in a window, so that a few chunks fill several."""
SUBJECTS: Final = wire.Subjects("blob")
CAPS: Final = wire.Caps(
    version=wire.PROTOCOL_VERSION,
    bucket=BUCKET,
    backend="jetstream",
    replicas=3,
    chunk_size=CHUNK,
    window=WINDOW,
    max_inline=2 * CHUNK,
    max_blob=1024 * 1024,
    max_batch=wire.MAX_BATCH,
    features=["stream", "range", "batch", "staged", "resume"],
)
_METRICS: Final = Metrics()


class _Untold:
    """Telemetry that nobody reads. What is no `BlobError` is not made one: it ends the schedule."""

    @contextmanager
    def request(self, verb: str, headers: object = None) -> Iterator[telemetry.Request]:
        yield telemetry.Request(verb)


@dataclass(eq=False)
class Worker:
    """A process: when it crashes, its calls end where they are and its connection is silent."""

    connection: Connection
    """To the storage; requests come in on another one."""
    client: SimulatedClient
    front: SimulatedClient
    store: JetStreamStore
    uploads: StagedUploads
    collector: Collector
    _lifetime: AsyncExitStack
    crash_at: int | None = None
    crashed: asyncio.Event = field(default_factory=asyncio.Event)
    _calls: dict[asyncio.Task[object], int | None] = field(default_factory=dict)

    @classmethod
    async def start(cls, network: Network, *, crash_at: int | None = None) -> Worker:
        connection, client = await network.connect()
        answering, front = await network.connect()
        bucket = Bucket(JetStream(connection), BUCKET, "blob")
        objects = Objects(bucket, chunk_size=CHUNK, window_bytes=CHUNK * WINDOW)
        lifetime = AsyncExitStack()
        cache = EntryCache(bucket.layout, clock=asyncio.get_running_loop().time)
        await lifetime.enter_async_context(cache.listening(answering))
        store = JetStreamStore(objects, cache)
        taps = await lifetime.enter_async_context(Taps(connection))
        name = secrets.token_hex(8)
        commit_at = SUBJECTS.commit_at(name)
        replies = Replies(answering, _METRICS, ("_INBOX.",))
        forwarder = Forwarder(
            answering,
            connection,
            replies,
            chunk_subject=store.chunk_subject,
            beneath=SUBJECTS.relay(name),
            metadata=bucket.layout.all_meta,
            window=WINDOW,
        )
        await lifetime.enter_async_context(forwarder.taking())
        uploads = StagedUploads(
            store,
            taps,
            forwarder,
            commit_subject=commit_at,
            chunk_size=lambda: CHUNK,
            window=WINDOW,
            expiry=UPLOAD_EXPIRY,
        )
        limits = Limits(_METRICS, max_requests=64, max_bytes=1024 * 1024)
        replies = Replies(answering, _METRICS, ("_INBOX.",))
        service = Service(
            answering,
            replies,
            limits,
            cast("Telemetry", _Untold()),
            handlers=Handlers(store, uploads, limits, CAPS, replies).by_subject(SUBJECTS),
            prefix="blob",
            queue="natsblob",
            request_timeout=REQUEST_TIMEOUT,
        )
        await lifetime.enter_async_context(service.serving((commit_at, SUBJECTS.commit), storage=connection))
        collector = Collector(objects, expiry=UPLOAD_EXPIRY, interval=3600)
        worker = cls(connection, client, front, store, uploads, collector, lifetime, crash_at)
        client.on_step = worker._step
        return worker

    async def answer(self, work: Callable[[Worker], Awaitable[T]], *, cancel_after: int | None = None) -> T:
        """Do `work` as a worker does a request; the caller hears nothing useful of one that crashes.

        `cancel_after` ends it after so many of the worker's messages.
        """
        if self.client.is_dead:
            raise NoRespondersError("the worker is gone")

        async def bounded() -> T:
            try:
                async with asyncio.timeout(REQUEST_TIMEOUT):
                    return await work(self)
            except TimeoutError:
                raise DeadlineError("the worker could not finish in time") from None

        task = asyncio.create_task(bounded())
        self._calls[task] = None if cancel_after is None else self.client.steps + cancel_after
        try:
            await asyncio.wait({task})
        finally:
            del self._calls[task]
        if task.cancelled():
            raise DeadlineError("the worker did not answer")
        return task.result()

    def _step(self, steps: int) -> None:
        if self.crash_at is not None and steps >= self.crash_at and not self.client.is_dead:
            self.client.is_dead = self.front.is_dead = True
            self.crashed.set()
            for task in self._calls:
                asyncio.get_running_loop().call_soon(task.cancel)
        for task, cancel_at in self._calls.items():
            if cancel_at is not None and steps >= cancel_at:
                self._calls[task] = None
                asyncio.get_running_loop().call_soon(task.cancel)

    async def stop(self) -> None:
        """Answer what has been taken, and end."""
        await self._lifetime.aclose()
