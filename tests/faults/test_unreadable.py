"""A single server that cannot read its disk says "not found" of what it counts: nobody is to believe that."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from natsblob.broker.connection import Access, connect
from natsblob.broker.embedded import EmbeddedServer
from natsblob.broker.jetstream import JetStream
from natsblob.digest import Digest
from natsblob.errors import BlobNotFoundError, UnavailableError
from natsblob.maintenance.verify import verify
from natsblob.objectstore.bucket import Bucket, BucketConfig
from natsblob.objectstore.objects import Objects
from natsblob.store.jetstream import JetStreamStore
from natsblob.testing.servers import temporary_store_dir

DATA = b"whoever was told that this is stored"


async def once(data: bytes) -> AsyncIterator[bytes]:
    yield data


@asynccontextmanager
async def served(folder: Path) -> AsyncIterator[tuple[Bucket, JetStreamStore]]:
    """A server that keeps its data in `folder`, and the bucket on it."""
    async with EmbeddedServer(folder) as server, await connect(Access(servers=(server.url,))) as connection:
        bucket = Bucket(JetStream(connection), "blobs", "blob")
        await bucket.create(BucketConfig(name="blobs"))
        yield bucket, JetStreamStore(Objects(bucket))


async def test_what_cannot_be_read_is_not_missing() -> None:
    with temporary_store_dir() as folder:
        async with served(folder) as (_, store):
            stored = (await store.put(once(DATA))).digest
        async with served(folder) as (bucket, store):  # which has nothing in memory
            for block in folder.rglob("OBJ_blobs/msgs/*.blk"):
                block.rename(block.with_suffix(".away"))
            with pytest.raises(UnavailableError):
                await store.stat(stored)
            with pytest.raises(UnavailableError):
                await store.delete(stored)
            with pytest.raises(BlobNotFoundError):
                await store.stat(Digest.of(b"never put"))
            assert [blob.outcome async for blob in verify(Objects(bucket))] == ["corrupt"]
