"""A header block of one byte: nats-server ends when a consumer of headers reads such a message."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
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
from tests.integration.raw import CHUNK, Raw, Wire, pieces, service

HARMFUL = b"\x00"
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


@pytest.mark.parametrize("before", [0, 3])
async def test_a_census_heals_after_a_server_has_ended(
    fresh_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    """Whoever keeps the servers running restarts one once: then the message is gone, and others like it."""
    monkeypatch.setattr(census, "PART", 2)
    ended: list[int] = []

    async def keep_running() -> None:
        while True:
            ended.append(await fresh_server.wait())
            await fresh_server.start()

    async with await connect(Access((fresh_server.url,))) as connection:
        name = uuid4().hex
        bucket = Bucket(JetStream(connection), name, prefix=f"t{name}")
        await bucket.create(BucketConfig(name))
        objects = Objects(bucket, chunk_size=1024)
        store = JetStreamStore(objects)
        digest = (await store.put(source(pattern(before * 1024 + 1)))).digest
        async with Wire(fresh_server.url) as wire:
            for _ in range(7):
                await wire.publish(f"$O.{name}.C.{new_nuid()}", "_INBOX.nobody", HARMFUL, b"body")
                await store.put(source(uuid4().bytes))
        collector = Collector(objects, expiry=timedelta(hours=1), interval=60)
        watch = asyncio.create_task(keep_running())
        for _ in range(10):
            with suppress(UnavailableError, DeadlineError):
                await collector.collect()
                break
        watch.cancel()
        assert len(ended) == 1
        found = await bucket.jetstream.subjects(bucket.layout.stream, bucket.layout.all_chunks)
        assert sum(found.values()) == before + 1 + 7
        assert Digest.of(b"".join([chunk async for chunk in store.chunks(digest)])) == digest
