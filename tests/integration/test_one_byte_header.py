"""A header block of one byte: nats-server ends when a consumer of headers reads such a message."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from uuid import uuid4

import pytest

from natsblob.broker import census
from natsblob.broker.connection import Access, connect
from natsblob.broker.embedded import EmbeddedServer
from natsblob.broker.jetstream import JetStream
from natsblob.digest import Digest
from natsblob.errors import DeadlineError, UnavailableError
from natsblob.maintenance.collect import Collector
from natsblob.objectstore.bucket import Bucket, BucketConfig
from natsblob.objectstore.info import new_nuid
from natsblob.objectstore.objects import Objects
from natsblob.store.jetstream import JetStreamStore
from natsblob.testing.payloads import pattern, source
from natsblob.testing.servers import temporary_cluster
from tests.integration.raw import CHUNK, Raw, Wire, pieces, service
from tests.integration.subjects import subjects_of

HARMFUL = b"\x00"
_HARMFUL_ONES = 7
CHUNKS = pieces(pattern(3 * CHUNK + 100))


@pytest.fixture
async def raw(fresh_server: EmbeddedServer) -> AsyncIterator[Raw]:
    async with service(fresh_server.url, commit_check="tap") as client:
        yield client
        assert fresh_server.running


async def plant(raw: Raw, url: str, stage: str) -> None:
    async with Wire(url) as wire:
        await wire.publish(f"$O.{raw.bucket}.C.{stage}", "_INBOX.nobody", HARMFUL, b"body")
    await stored(raw, stage)


async def stored(raw: Raw, stage: str) -> None:
    """Wait until it is stored: what was published so is not acknowledged."""
    for _ in range(1000):
        if f"$O.{raw.bucket}.C.{stage}" in await raw.staged():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it is not stored")


async def test_a_commit_reads_no_headers_of_others(raw: Raw, fresh_server: EmbeddedServer) -> None:
    upload = await raw.upload(*CHUNKS[:2])
    await plant(raw, fresh_server.url, new_nuid())
    for index in (2, 3):
        await upload.send(index, CHUNKS[index])
    assert (await upload.commit()).code == 0


@pytest.mark.parametrize("place", range(5))
async def test_a_commit_reads_whole_what_was_not_seen_to_be_canonical(
    raw: Raw, fresh_server: EmbeddedServer, place: int
) -> None:
    upload = await raw.open()
    stage = str(upload.opened["chunk_subject"]).rpartition(".")[2]
    for index in range(place):
        await upload.send(index, CHUNKS[index])
    await plant(raw, fresh_server.url, stage)
    for index in range(place, len(CHUNKS)):
        await upload.send(index, CHUNKS[index])
    assert (await upload.commit()).code == 400


@asynccontextmanager
async def kept_running(servers: Sequence[EmbeddedServer]) -> AsyncIterator[list[str]]:
    """Start each server again that ends: their names, as they do."""
    ended: list[str] = []

    async def keep(server: EmbeddedServer) -> None:
        while True:
            await server.wait()
            ended.append(server.name)
            await server.start()

    tasks = [asyncio.create_task(keep(server)) for server in servers]
    try:
        yield ended
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def collected(collector: Collector) -> None:
    """One pass that ends well: those before it fail while servers are away."""
    for _ in range(10):
        with suppress(UnavailableError, DeadlineError):
            await collector.collect()
            return
    pytest.fail("no pass ends well")


@asynccontextmanager
async def planted(url: str, *, replicas: int = 1) -> AsyncIterator[tuple[Objects, Digest]]:
    """A bucket with harmful messages among blobs, and one of these."""
    name = uuid4().hex
    async with await connect(Access((url,))) as connection:
        bucket = Bucket(JetStream(connection), name, prefix=f"t{name}")
        await bucket.create(BucketConfig(name, replicas=replicas))
        objects = Objects(bucket, chunk_size=1024)
        store = JetStreamStore(objects)
        digest = (await store.put(source(pattern(3000)))).digest
        await plant_among_blobs(objects, url)
        yield objects, digest


async def plant_among_blobs(objects: Objects, url: str) -> None:
    async with Wire(url) as wire:
        for _ in range(_HARMFUL_ONES):
            subject = f"$O.{objects.bucket.name}.C.{new_nuid()}"
            await wire.publish(subject, "_INBOX.nobody", HARMFUL, b"body")
            await JetStreamStore(objects).put(source(uuid4().bytes))


def collecting(objects: Objects) -> Collector:
    return Collector(objects, expiry=timedelta(hours=1), interval=60)


async def is_healed(objects: Objects, digest: Digest, *, times: int = 1) -> bool:
    """Whether nothing but the harmful messages is gone, which were planted so many times."""
    bucket, store = objects.bucket, JetStreamStore(objects)
    found = await subjects_of(bucket.jetstream, bucket.layout.stream, bucket.layout.all_chunks)
    read = b"".join([chunk async for chunk in store.chunks(digest)])
    return sum(found.values()) == 3 + times * _HARMFUL_ONES and Digest.of(read) == digest


async def test_collection_heals_after_one_server_has_ended(
    fresh_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(census, "PART", 2)
    async with planted(fresh_server.url) as (objects, digest), kept_running([fresh_server]) as ended:
        collector = collecting(objects)
        await collected(collector)
        assert await is_healed(objects, digest)
        await plant_among_blobs(objects, fresh_server.url)
        await collected(collector)
        assert await is_healed(objects, digest, times=2)
        assert ended == [fresh_server.name]


async def test_collection_in_a_cluster_heals_after_one_server_has_ended() -> None:
    async with (
        temporary_cluster() as cluster,
        planted(cluster.servers[0].url, replicas=3) as (objects, digest),
        kept_running(cluster.servers) as ended,
    ):
        await collected(collecting(objects))
        assert len(ended) == 1
        assert await is_healed(objects, digest)
