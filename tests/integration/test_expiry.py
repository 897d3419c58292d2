"""Buckets that keep messages for a time: what is acknowledged lasts, and what expires is gone cleanly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from uuid import uuid4

import pytest

from natsblob import wire
from natsblob.broker.connection import Access, connect
from natsblob.broker.embedded import EmbeddedServer
from natsblob.broker.jetstream import JetStream
from natsblob.digest import Digest
from natsblob.errors import BlobNotFoundError
from natsblob.objectstore.bucket import Bucket, BucketConfig
from natsblob.objectstore.info import new_nuid
from natsblob.objectstore.objects import Objects
from natsblob.store.jetstream import JetStreamStore
from natsblob.testing.payloads import pattern, source
from natsblob.wire import CommitRequest

MAX_AGE = 2.0
CHUNK = 1024


@pytest.fixture
async def objects(server: EmbeddedServer) -> AsyncIterator[Objects]:
    name = uuid4().hex
    async with await connect(Access((server.url,))) as connection:
        bucket = Bucket(JetStream(connection), name, prefix=f"t{name}")
        await bucket.create(BucketConfig(name, storage="memory", max_age=MAX_AGE))
        yield Objects(bucket, chunk_size=CHUNK)
        await bucket.jetstream.delete(bucket.layout.stream)


async def read(store: JetStreamStore, digest: Digest) -> bytes:
    return b"".join([chunk async for chunk in store.chunks(digest)])


async def half_expired(store: JetStreamStore, digest: Digest) -> None:
    while await store.held(digest) is not None:  # noqa: ASYNC110 - only time passes
        await asyncio.sleep(0.02)


async def first_chunk_gone(objects: Objects, seq: int) -> None:
    while await objects.bucket.jetstream.at_leader(objects.bucket.layout.stream, seq) is not None:  # noqa: ASYNC110
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("size", [0, 100, 3 * CHUNK])
async def test_a_put_of_what_is_about_to_expire_stores_it_anew(objects: Objects, size: int) -> None:
    store = JetStreamStore(objects)
    data = pattern(size)
    digest = (await store.put(source(data))).digest
    assert not (await store.put(source(data))).created
    entry = await objects.find(digest.hex)
    assert entry is not None
    await half_expired(store, digest)
    assert await read(store, digest) == data
    assert (await store.put(source(data), expected=digest)).created
    assert not (await store.put(source(data))).created
    await first_chunk_gone(objects, entry.seq)
    assert await read(store, digest) == data


async def test_a_commit_of_what_is_about_to_expire_names_its_own_chunks(objects: Objects) -> None:
    store = JetStreamStore(objects)
    data = pattern(100)
    digest = (await store.put(source(data))).digest
    entry = await objects.find(digest.hex)
    assert entry is not None
    await half_expired(store, digest)
    assert await read(store, digest) == data
    stage = new_nuid()
    await objects.bucket.jetstream.connection.request(
        objects.bucket.chunk_subject(stage), data, headers=wire.chunk_headers(stage, 0, data), timeout=5
    )
    request = CommitRequest("", len(data), 1)
    assert (await store.commit(stage, request, None)).created
    assert not (await store.commit(stage, request, None)).created
    await first_chunk_gone(objects, entry.seq)
    assert await read(store, digest) == data


async def test_chunks_that_expire_before_their_metadata_are_no_corruption(objects: Objects) -> None:
    store = JetStreamStore(objects)
    data = pattern(3 * CHUNK)

    async def slowly() -> AsyncIterator[bytes]:
        yield data[: 2 * CHUNK]
        await asyncio.sleep(MAX_AGE / 2)
        yield data[2 * CHUNK :]

    digest = (await store.put(slowly())).digest
    with suppress(BlobNotFoundError):
        while True:
            assert await read(store, digest) == data
    assert await store.missing([digest]) == []
    with suppress(BlobNotFoundError):
        while (await store.stat(digest)).size == len(data):
            with pytest.raises(BlobNotFoundError):
                await read(store, digest)
    assert await store.missing([digest]) == [digest]
