"""A worker of the simulation: the real store, staging, taps and collector on a simulated connection."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Final, TypeVar

from natsblob.broker.connection import Connection
from natsblob.broker.jetstream import JetStream
from natsblob.errors import DeadlineError, NoRespondersError
from natsblob.maintenance.collect import Collector
from natsblob.objectstore.bucket import Bucket
from natsblob.objectstore.cache import EntryCache
from natsblob.objectstore.objects import Objects
from natsblob.service.tap import Taps
from natsblob.service.uploads import DirectUploads
from natsblob.store.jetstream import UPLOAD_EXPIRY, JetStreamStore
from tests.simulation.history import REQUEST_TIMEOUT
from tests.simulation.network import Network, SimulatedClient

T = TypeVar("T")

BUCKET: Final = "blobs"
CHUNK: Final = 16
WINDOW: Final = 4
"""Chunks in a window, so that a few chunks fill several."""


@dataclass(eq=False)
class Worker:
    """A process: when it crashes, its calls end where they are and its connection is silent."""

    connection: Connection
    client: SimulatedClient
    store: JetStreamStore
    uploads: DirectUploads
    collector: Collector
    _lifetime: AsyncExitStack
    crash_at: int | None = None
    crashed: asyncio.Event = field(default_factory=asyncio.Event)
    _calls: dict[asyncio.Task[object], int | None] = field(default_factory=dict)

    @classmethod
    async def start(cls, network: Network, *, crash_at: int | None = None) -> Worker:
        connection, client = await network.connect()
        bucket = Bucket(JetStream(connection), BUCKET, "blob")
        objects = Objects(bucket, chunk_size=CHUNK, window_bytes=CHUNK * WINDOW)
        lifetime = AsyncExitStack()
        cache = EntryCache(bucket.layout, clock=asyncio.get_running_loop().time)
        await lifetime.enter_async_context(cache.listening(connection))
        store = JetStreamStore(objects, cache)
        taps = await lifetime.enter_async_context(Taps(connection))
        uploads = DirectUploads(
            store, taps, commit_subject="", chunk_size=CHUNK, window=WINDOW, expiry=UPLOAD_EXPIRY
        )
        collector = Collector(objects, expiry=UPLOAD_EXPIRY, interval=3600)
        worker = cls(connection, client, store, uploads, collector, lifetime, crash_at)
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
            self.client.is_dead = True
            self.crashed.set()
            for task in self._calls:
                asyncio.get_running_loop().call_soon(task.cancel)
        for task, cancel_at in self._calls.items():
            if cancel_at is not None and steps >= cancel_at:
                self._calls[task] = None
                asyncio.get_running_loop().call_soon(task.cancel)

    async def stop(self) -> None:
        await self._lifetime.aclose()
