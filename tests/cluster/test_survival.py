"""What a three-node cluster at R3 has to survive, with real servers and real worker processes.

The size of the large blobs is `--blob-mib`: small enough for every run by default, 1024 for a full one.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import nats
import pytest
import pytest_asyncio

import natsblob
from natsblob.broker.connection import Access, connect
from natsblob.broker.embedded import EmbeddedServer
from natsblob.broker.jetstream import JetStream
from natsblob.digest import Digest, Hasher
from natsblob.objectstore.bucket import Bucket
from natsblob.testing.payloads import pattern
from natsblob.testing.servers import EmbeddedCluster
from natsblob.testing.services import WorkerProcess, running_service, running_worker

MIB = 1024 * 1024
pytestmark = pytest.mark.cluster


@pytest.fixture
def blob_size(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--blob-mib")) * MIB


@pytest.fixture
def block() -> bytes:
    return pattern(MIB)


async def stream_of(block: bytes, size: int) -> AsyncIterator[bytes]:
    """A blob that needs no memory: one block over and over, with its position in front."""
    for position in range(0, size, len(block)):
        yield position.to_bytes(8) + block[8 : min(len(block), size - position)]


async def digest_of(block: bytes, size: int) -> Digest:
    hasher = Hasher()
    async for piece in stream_of(block, size):
        hasher.update(piece)
    return hasher.digest()


async def verified_size(blobs: natsblob.Client, digest: Digest) -> int:
    """Read a blob to its end, where its digest is checked."""
    async with blobs.open(digest) as reader:
        return sum([len(piece) async for piece in reader])


async def leader_of(cluster: EmbeddedCluster) -> EmbeddedServer:
    async with await connect(Access(tuple(cluster.urls))) as connection:
        info = await Bucket(JetStream(connection), "blobs", "blob").info()
        assert info.cluster is not None
        return cluster.named(info.cluster.leader)


class Halfway:
    """Does something once, when half of a transfer is done."""

    def __init__(self, size: int, deed: Callable[[], Any]) -> None:
        self._size = size
        self._deed = deed
        self._task: asyncio.Task[Any] | None = None

    def __call__(self, done: int, _: int | None) -> None:
        if self._task is None and done >= self._size // 2:
            self._task = asyncio.ensure_future(self._deed())

    async def done(self) -> None:
        assert self._task is not None, "the transfer ended before it was half done"
        await self._task


async def test_what_was_put_is_there_at_once_through_another_worker_and_server(
    cluster: EmbeddedCluster,
) -> None:
    """The workers have a prefix each, so that the second one answers what the first one has not seen."""
    first, second, _ = cluster.urls
    async with (
        running_worker(first, replicas=3, bucket="raw", prefix="one"),
        running_worker(second, replicas=3, bucket="raw", prefix="two"),
        await nats.connect(first) as writer,
        await nats.connect(second) as reader,
    ):
        for number in range(200):
            data = pattern(4096, seed=str(number))
            put = json.loads((await writer.request("one.put", data, timeout=30)).data)
            has = await reader.request("two.has", put["digest"].encode(), timeout=30)
            got = await reader.request("two.get", put["digest"].encode(), timeout=30)
            assert json.loads(has.data)["exists"] is True
            assert got.data == data


class TestServerKilled:
    @pytest_asyncio.fixture
    async def blobs(self, fresh_cluster: EmbeddedCluster) -> AsyncIterator[natsblob.Client]:
        urls = ",".join(fresh_cluster.urls)
        async with (
            running_service(urls, workers=2, replicas=3),
            natsblob.connect(Access(tuple(fresh_cluster.urls))) as blobs,
        ):
            yield blobs

    async def test_put(
        self, fresh_cluster: EmbeddedCluster, blobs: natsblob.Client, block: bytes, blob_size: int
    ) -> None:
        leader = await leader_of(fresh_cluster)
        halfway = Halfway(blob_size, leader.kill)
        info = await blobs.put(stream_of(block, blob_size), progress=halfway)
        await halfway.done()
        assert info.digest == await digest_of(block, blob_size)
        assert await verified_size(blobs, info.digest) == blob_size

    async def test_get(
        self, fresh_cluster: EmbeddedCluster, blobs: natsblob.Client, block: bytes, blob_size: int
    ) -> None:
        info = await blobs.put(stream_of(block, blob_size))
        leader = await leader_of(fresh_cluster)
        got = 0
        async with blobs.open(info.digest) as reader:
            async for piece in reader:
                got += len(piece)
                if leader.running and got >= blob_size // 2:
                    await leader.kill()
        assert not leader.running
        assert got == blob_size


class TestWorkerKilled:
    async def test_put(self, server: EmbeddedServer, block: bytes, blob_size: int) -> None:
        settings = {"bucket": "killed-put", "prefix": "killed-put"}
        async with AsyncExitStack() as stack:
            doomed = await stack.enter_async_context(running_worker(server.url, **settings))
            blobs = await stack.enter_async_context(natsblob.connect(server.url, prefix="killed-put"))

            async def replace() -> None:
                await doomed.kill()
                await stack.enter_async_context(running_worker(server.url, **settings))

            halfway = Halfway(blob_size, replace)
            info = await blobs.put(stream_of(block, blob_size), progress=halfway)
            await halfway.done()
            assert info.digest == await digest_of(block, blob_size)
            assert await verified_size(blobs, info.digest) == blob_size

    async def test_get(self, server: EmbeddedServer, block: bytes, blob_size: int) -> None:
        settings = {"bucket": "killed-get", "prefix": "killed-get"}
        async with AsyncExitStack() as stack:
            doomed = await stack.enter_async_context(running_worker(server.url, **settings))
            blobs = await stack.enter_async_context(natsblob.connect(server.url, prefix="killed-get"))
            info = await blobs.put(stream_of(block, blob_size))
            got = 0
            async with blobs.open(info.digest) as reader:
                async for piece in reader:
                    got += len(piece)
                    if doomed.running and got >= blob_size // 2:
                        await doomed.kill()
                        await stack.enter_async_context(running_worker(server.url, **settings))
            assert not doomed.running
            assert got == blob_size


async def busy(blobs: natsblob.Client, lane: int, stop: asyncio.Event) -> list[Digest]:
    """Put, get, ask and now and then move something larger, until told to stop; any error fails the test."""
    kept = []
    number = 0
    while not stop.is_set():
        size = 3 * MIB if number % 10 == 9 else 4096
        data = pattern(64, seed=f"{lane}/{number}") * (size // 64)
        info = await blobs.put(data)
        assert await blobs.has(info.digest)
        assert await blobs.get(info.digest) == data
        kept.append(info.digest)
        number += 1
    return kept


async def test_rolling_restart_of_workers_fails_no_request(server: EmbeddedServer) -> None:
    settings = {"bucket": "rolling", "prefix": "rolling"}
    stop = asyncio.Event()
    async with AsyncExitStack() as stack:
        workers: list[WorkerProcess] = [
            await stack.enter_async_context(running_worker(server.url, **settings)) for _ in range(4)
        ]
        blobs = await stack.enter_async_context(natsblob.connect(server.url, prefix="rolling"))
        lanes = [asyncio.ensure_future(busy(blobs, lane, stop)) for lane in range(8)]
        for worker in workers:
            await stack.enter_async_context(running_worker(server.url, **settings))
            assert await worker.stop() == 0
        stop.set()
        kept = [digest for digests in await asyncio.gather(*lanes) for digest in digests]
        assert len(kept) > len(lanes)
        assert await blobs.missing(kept) == []


async def test_replicas_change_under_load_and_nothing_is_lost(cluster: EmbeddedCluster) -> None:
    settings = {"bucket": "scaled", "prefix": "scaled"}
    stop = asyncio.Event()
    urls = ",".join(cluster.urls)
    async with (
        running_worker(urls, **settings),
        natsblob.connect(Access(tuple(cluster.urls)), prefix="scaled") as blobs,
        await connect(Access(tuple(cluster.urls))) as connection,
    ):
        bucket = Bucket(JetStream(connection), "scaled", "scaled")
        lanes = [asyncio.ensure_future(busy(blobs, lane, stop)) for lane in range(4)]
        for replicas in (3, 1):
            await bucket.change(replicas=replicas)
            await until_replicated(bucket, replicas)
        stop.set()
        kept = [digest for digests in await asyncio.gather(*lanes) for digest in digests]
        assert kept
        assert await blobs.missing(kept) == []
        for digest in kept[:: max(1, len(kept) // 50)]:
            assert Digest.of(await blobs.get(digest)) == digest


async def until_replicated(bucket: Bucket, replicas: int) -> None:
    """Wait until as many servers as asked for hold the bucket and have caught up."""
    async with asyncio.timeout(60):
        while True:
            info = await bucket.info()
            peers = info.cluster.replicas if info.cluster else []
            if len(peers) == replicas - 1 and all(peer.current for peer in peers):
                return
            await asyncio.sleep(0.05)
