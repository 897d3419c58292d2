"""The composition root of a worker: settings become connections, a store and a service on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from importlib.metadata import version
from secrets import token_hex
from typing import Final, NamedTuple

import msgspec

from natsblob import wire
from natsblob.broker.connection import Access, Connection, connect
from natsblob.broker.jetstream import JetStream
from natsblob.chunking import LEAST_PAYLOAD, MESSAGE_RESERVE
from natsblob.config import Settings
from natsblob.errors import SetupError, UnavailableError
from natsblob.logs import get_logger
from natsblob.maintenance.collect import Collector
from natsblob.metrics import Metrics, exposed
from natsblob.objectstore.bucket import Bucket, BucketConfig
from natsblob.objectstore.cache import EntryCache
from natsblob.objectstore.info import Layout
from natsblob.objectstore.objects import Objects
from natsblob.objectstore.requirements import largest_chunk, refuse_unfit
from natsblob.service.discovery import Discovery
from natsblob.service.forward import Forwarder
from natsblob.service.handlers import Handlers
from natsblob.service.limits import Limits
from natsblob.service.relay import RelayUploads
from natsblob.service.replies import Replies
from natsblob.service.tap import MAX_TAPS, Taps
from natsblob.service.uploads import StagedUploads, Uploads
from natsblob.service.worker import Worker
from natsblob.store.base import Store
from natsblob.store.disk import DiskStore
from natsblob.store.jetstream import JetStreamStore
from natsblob.store.memory import MemoryStore
from natsblob.telemetry import Telemetry

log = get_logger("natsblob")

Ready = Callable[[str], None]
"""Told once, in one line, that requests are answered from now on."""

_FEATURES: Final = ("stream", "range", "batch", "staged", "resume")


class Backend(NamedTuple):
    """A store, and what the service has to know of it."""

    store: Store
    replicas: int
    window: int
    """Chunks in one window."""
    storage: Connection | None
    """To where chunks are staged, on a backend that can do that."""


async def run_worker(settings: Settings, stop: asyncio.Event, *, ready: Ready) -> None:
    """Serve until `stop` is set, then finish what is in flight.

    `UnavailableError` if a connection to NATS has ended for good, or if the worker cannot take requests any
    more; only a defect brings that about.
    """
    async with worker(settings) as serving:
        ready(ready_line(settings, serving.url, serving.replicas))
        ends = [stop, serving.broken, *(connection.closed for connection in serving.connections)]
        ended = {asyncio.ensure_future(event.wait()) for event in ends}
        await asyncio.wait(ended, return_when=asyncio.FIRST_COMPLETED)
        for waiting in ended:
            waiting.cancel()
        if serving.broken.is_set():
            raise UnavailableError("this worker takes no more requests, because of a defect: see its log")
        if not stop.is_set():
            causes = [one.trouble or "no cause" for one in serving.connections if one.closed.is_set()]
            raise UnavailableError(f"a connection of this worker to NATS has ended: {'; '.join(causes)}")


class Serving(NamedTuple):
    """A worker that answers requests."""

    id: str
    url: str
    replicas: int
    connections: list[Connection]
    """To the clients and, if that is another one, to the storage."""
    broken: asyncio.Event
    """Set if a defect keeps it from that."""


def ready_line(settings: Settings, url: str, replicas: int) -> str:
    of_bucket = f"bucket={settings.bucket} replicas={replicas}"
    stored = of_bucket if settings.backend == "jetstream" else f"storage={settings.backend}"
    return f"natsblob ready url={url} {stored} workers={settings.workers}"


@asynccontextmanager
async def worker(settings: Settings) -> AsyncIterator[Serving]:
    """A worker that serves while the context lasts, and finishes what is in flight on leaving it."""
    worker_id = token_hex(8)
    subjects = wire.Subjects(settings.prefix)
    metrics = Metrics()
    telemetry = Telemetry(metrics, worker_id)
    limits = Limits(metrics, max_requests=settings.max_requests, max_bytes=settings.max_bytes)
    async with AsyncExitStack() as stack:
        if settings.metrics is not None:
            await stack.enter_async_context(exposed(metrics, settings.metrics))
        front = await stack.enter_async_context(await connect(Access.of(settings, f"natsblob {worker_id}")))
        _check_payload(front)
        replies = Replies(front, metrics, settings.reply_prefixes)
        backend = await _backend(settings, front, stack, worker_id)
        commit_at = subjects.commit_at(worker_id)
        at = At(commit_at, subjects.relay(worker_id))
        uploads = await _uploads(settings, backend, front, replies, at, stack)
        caps = _caps(settings, backend, front)
        handlers = Handlers(backend.store, uploads, limits, caps, replies).by_subject(subjects)
        service = Worker(
            front,
            replies,
            limits,
            telemetry,
            handlers=handlers,
            prefix=settings.prefix,
            queue=settings.queue,
            request_timeout=settings.request_timeout,
        )
        discovery = Discovery(
            subjects.service,
            worker_id,
            version("natsblob"),
            f"content-addressed blobs on {settings.prefix}.>, {_kept_in(settings)}",
            list(service.endpoints.values()),
            metrics.figures,
            {
                "prefix": settings.prefix,
                "bucket": settings.bucket,
                "backend": settings.backend,
                "protocol": str(wire.PROTOCOL_VERSION),
                wire.RELAYS: wire.STAGED,
            },
        )
        await stack.enter_async_context(
            service.serving((commit_at, subjects.commit), storage=backend.storage)
        )
        await stack.enter_async_context(discovery.answering(front, replies))
        log.info("worker.ready", worker=worker_id, url=front.url, bucket=settings.bucket)
        connections = [front, *([backend.storage] if backend.storage else [])]
        yield Serving(worker_id, front.url, backend.replicas, connections, service.broken)
        log.info("worker.draining", worker=worker_id)


def _kept_in(settings: Settings) -> str:
    return f"bucket {settings.bucket}" if settings.backend == "jetstream" else f"on {settings.backend}"


async def on_volume(settings: Settings) -> Settings:
    """These settings with the volume that is in their directory now, made if they say so.

    A worker that is started anew then neither makes a volume in place of a lost disk, nor serves another.
    """
    if settings.backend != "disk":
        return settings
    disk = await asyncio.to_thread(_disk, settings)
    disk.close()
    log.info("volume.found", directory=str(settings.disk), volume=str(disk.volume))
    return msgspec.structs.replace(settings, disk_volume=disk.volume, create_disk=False)


def _disk(settings: Settings) -> DiskStore:
    if settings.disk is None:
        raise SetupError("the disk backend needs a directory: --disk DIR")
    return DiskStore(
        settings.disk,
        chunk_size=settings.chunk_size,
        create=settings.create_disk,
        volume=settings.disk_volume,
    )


async def _backend(settings: Settings, front: Connection, stack: AsyncExitStack, worker_id: str) -> Backend:
    chunks = max(1, settings.window_bytes // settings.chunk_size)
    match settings.backend:
        case "memory":
            return Backend(MemoryStore(chunk_size=settings.chunk_size), 1, chunks, None)
        case "disk":
            disk = await asyncio.to_thread(_disk, settings)
            stack.callback(disk.close)
            return Backend(disk, 1, max(1, settings.window_bytes // disk.chunk_size), None)
        case "jetstream":
            access = Access.of(settings.for_storage(), f"natsblob {worker_id} storage")
            storage = await stack.enter_async_context(await connect(access))
            _check_payload(storage)
            return await _bucket_backend(settings, storage, front, stack)


async def _bucket_backend(
    settings: Settings, storage: Connection, front: Connection, stack: AsyncExitStack
) -> Backend:
    bucket = Bucket(JetStream(storage, domain=settings.js_domain), settings.bucket, settings.prefix)
    stream = await bucket.create(
        BucketConfig(settings.bucket, replicas=settings.replicas, storage=settings.storage)
    )
    refuse_unfit(bucket.layout, stream.config)
    replicas = int(stream.config.get("num_replicas", 1))
    chunk_size = largest_chunk(stream.config, settings.chunk_size)
    objects = Objects(bucket, chunk_size=chunk_size, window_bytes=settings.window_bytes)
    expiry = timedelta(seconds=settings.upload_expiry)
    cache = EntryCache(bucket.layout)
    await stack.enter_async_context(cache.listening(front))
    store = JetStreamStore(objects, cache, upload_expiry=expiry)
    await stack.enter_async_context(
        Collector(objects, expiry=expiry, interval=settings.collect_interval).running()
    )
    if bucket.uploads(stream.config) == "relayed":
        log.info("bucket.relayed", bucket=settings.bucket)
    return Backend(store, replicas, objects.window, storage)


class At(NamedTuple):
    """The subjects of one worker alone."""

    commit: str
    relay: str
    """Beneath which chunks come."""


def _check_payload(connection: Connection) -> None:
    """`SetupError` if the server takes messages that are too small to carry chunks."""
    if connection.max_payload < LEAST_PAYLOAD:
        raise SetupError(
            f"max_payload of the server at {connection.url} is {connection.max_payload} bytes, and natsblob "
            f"needs {LEAST_PAYLOAD} at least, since headers take some of it; 1 MiB is usual and fast. Set "
            "max_payload in the server's configuration. What is stored is untouched"
        )


async def _uploads(
    settings: Settings, backend: Backend, front: Connection, replies: Replies, at: At, stack: AsyncExitStack
) -> Uploads:
    expiry = timedelta(seconds=settings.upload_expiry)

    def chunk_size() -> int:
        return min(backend.store.chunk_size, max(1, front.max_payload - MESSAGE_RESERVE))

    if backend.storage is None or not isinstance(backend.store, JetStreamStore):
        relay = RelayUploads(
            backend.store,
            front,
            replies,
            chunk_subjects=at.relay,
            commit_subject=at.commit,
            chunk_size=chunk_size,
            window=backend.window,
            expiry=expiry,
        )
        return await stack.enter_async_context(relay)
    watched = MAX_TAPS if settings.commit_check == "tap" else 0
    taps = await stack.enter_async_context(Taps(backend.storage, most=watched))
    forwarder = Forwarder(
        front,
        backend.storage,
        replies,
        chunk_subject=backend.store.chunk_subject,
        beneath=at.relay,
        metadata=Layout(settings.bucket).all_meta,
        window=backend.window,
        admit=backend.store.reserve.take,
    )
    await stack.enter_async_context(forwarder.taking())
    return StagedUploads(
        backend.store,
        taps,
        forwarder,
        commit_subject=at.commit,
        chunk_size=chunk_size,
        window=backend.window,
        expiry=expiry,
    )


def _caps(settings: Settings, backend: Backend, front: Connection) -> wire.Caps:
    return wire.Caps(
        version=wire.PROTOCOL_VERSION,
        bucket=settings.bucket,
        backend=settings.backend,
        replicas=backend.replicas,
        chunk_size=backend.store.chunk_size,
        window=backend.window,
        max_inline=front.max_payload - MESSAGE_RESERVE,
        max_blob=settings.max_blob,
        max_batch=wire.MAX_BATCH,
        features=list(_FEATURES),
    )
