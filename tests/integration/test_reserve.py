"""Workers leave room in a bucket that only they write into: for deleting, and for what is being committed."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from natsblob.broker.connection import Access, connect
from natsblob.broker.embedded import EmbeddedServer
from natsblob.broker.jetstream import JetStream
from natsblob.errors import InsufficientStorageError
from natsblob.objectstore.bucket import Bucket, BucketConfig, UploadMode
from natsblob.objectstore.objects import Objects
from natsblob.store.jetstream import JetStreamStore
from natsblob.testing.payloads import source
from tests.integration.raw import CHUNK, service

LIMIT = 256 * 1024
RESERVE = LIMIT // 16


async def bucket_of(server: EmbeddedServer, mode: UploadMode) -> AsyncIterator[Bucket]:
    name = uuid4().hex
    async with await connect(Access((server.url,))) as connection:
        bucket = Bucket(JetStream(connection), name, prefix=f"t{name}")
        await bucket.create(BucketConfig(name, storage="memory", max_bytes=LIMIT, uploads=mode))
        yield bucket


@pytest.fixture
async def relayed(server: EmbeddedServer) -> AsyncIterator[Bucket]:
    async for bucket in bucket_of(server, "relayed"):
        yield bucket


@pytest.fixture
async def direct(server: EmbeddedServer) -> AsyncIterator[Bucket]:
    async for bucket in bucket_of(server, "direct"):
        yield bucket


async def fill(store: JetStreamStore, size: int) -> None:
    """Put blobs of this size until one is refused."""
    for _ in range(2 * LIMIT // size):
        try:
            await store.put(source(os.urandom(size)))
        except InsufficientStorageError:
            return
    pytest.fail("more was stored than there is room for")


async def left(bucket: Bucket) -> int:
    return LIMIT - (await bucket.info()).state.bytes


@pytest.mark.parametrize("size", [10_000, 500])
async def test_puts_leave_it(relayed: Bucket, size: int) -> None:
    store = JetStreamStore(Objects(relayed, chunk_size=CHUNK))
    kept = await store.put(source(b"kept"))
    await fill(store, size)
    assert await left(relayed) >= RESERVE / 2
    assert (await store.put(source(b"kept"))).digest == kept.digest
    await store.delete(kept.digest)


async def test_relayed_chunks_leave_it(server: EmbeddedServer, relayed: Bucket) -> None:
    async with service(server.url, bucket=relayed.name) as raw:
        upload = await raw.open()
        answers = [await upload.send(index, os.urandom(CHUNK)) for index in range(LIMIT // CHUNK)]
        assert answers[0].code == 0
        assert answers[-1].code == 507
        assert await left(relayed) >= RESERVE / 2
        assert (await upload.abort()).code == 0
        while (await raw.ask("put", os.urandom(CHUNK))).code == 507:
            assert await left(relayed) > LIMIT / 2  # it is about to be noticed


async def test_publishers_of_their_own_cannot_be_held_to_it(direct: Bucket) -> None:
    await fill(JetStreamStore(Objects(direct, chunk_size=1024)), 500)
    assert await left(direct) < RESERVE / 2
