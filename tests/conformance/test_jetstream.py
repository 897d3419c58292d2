"""The JetStream store against the suites that every store has to pass, on a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest_asyncio

from natsblob.broker.connection import Access, connect
from natsblob.broker.embedded import EmbeddedServer
from natsblob.broker.jetstream import JetStream
from natsblob.objectstore.bucket import Bucket, BucketConfig
from natsblob.objectstore.cache import EntryCache
from natsblob.objectstore.objects import Objects
from natsblob.store.base import Store
from natsblob.store.jetstream import JetStreamStore
from natsblob.testing.conformance import GoldenConformance, StoreConformance


class TestJetStreamStore(StoreConformance, GoldenConformance):
    @pytest_asyncio.fixture
    async def store(self, server: EmbeddedServer) -> AsyncIterator[Store]:
        name = uuid4().hex
        async with await connect(Access((server.url,))) as connection:
            bucket = Bucket(JetStream(connection), name, prefix="blob")
            await bucket.create(BucketConfig(name, storage="memory"))
            yield JetStreamStore(Objects(bucket, chunk_size=8192))
            await bucket.jetstream.delete(bucket.layout.stream)


class TestJetStreamStoreThatRemembers(StoreConformance, GoldenConformance):
    """With metadata remembered, which no caller may notice."""

    @pytest_asyncio.fixture
    async def store(self, server: EmbeddedServer) -> AsyncIterator[Store]:
        name = uuid4().hex
        async with (
            await connect(Access((server.url,))) as front,
            await connect(Access((server.url,))) as connection,
        ):
            bucket = Bucket(JetStream(connection), name, prefix="blob")
            await bucket.create(BucketConfig(name, storage="memory"))
            cache = EntryCache(bucket.layout)
            async with cache.listening(front):
                yield JetStreamStore(Objects(bucket, chunk_size=8192), cache)
            await bucket.jetstream.delete(bucket.layout.stream)
