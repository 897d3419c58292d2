"""A single server that cannot read what it counts: that is not missing, it is damaged, and a put heals it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest

import natsblob
from natsblob import wire
from natsblob.app import worker
from natsblob.broker.connection import Access, connect
from natsblob.broker.embedded import EmbeddedServer
from natsblob.broker.jetstream import JetStream
from natsblob.config import Settings
from natsblob.digest import Digest
from natsblob.errors import BlobCorruptError, BlobNotFoundError, ConflictError, UnavailableError
from natsblob.maintenance.collect import Collector
from natsblob.maintenance.verify import verify
from natsblob.objectstore import removals
from natsblob.objectstore.bucket import Bucket, BucketConfig
from natsblob.objectstore.info import new_nuid
from natsblob.objectstore.objects import Objects
from natsblob.objectstore.staging import Staging
from natsblob.store.jetstream import JetStreamStore
from natsblob.testing.payloads import cut, pattern
from natsblob.testing.servers import temporary_store_dir

DATA = b"whoever was told that this is stored"
CHUNK = 8192


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


def flip_a_bit(folder: Path, chunk: bytes) -> None:
    """Of the one place where these bytes are stored."""
    [(block, at)] = [
        (path, data.index(chunk))
        for path in folder.rglob("OBJ_blobs/msgs/*.blk")
        if chunk in (data := path.read_bytes())
    ]
    with block.open("r+b") as file:
        file.seek(at)
        file.write(bytes([chunk[0] ^ 1]))


@pytest.mark.parametrize(
    ("chunks", "bad"), [(1, 0), (4, 0), (4, 2), (4, 3)], ids=["only", "first", "middle", "last"]
)
@pytest.mark.parametrize("size", [CHUNK, 300])
async def test_a_rotten_chunk_makes_its_blob_corrupt_until_it_is_put_again(
    chunks: int, bad: int, size: int
) -> None:
    data = pattern((chunks - 1) * CHUNK + size)
    with temporary_store_dir() as folder:
        async with EmbeddedServer(folder) as server:
            settings = Settings(server=(server.url,), chunk_size=CHUNK)
            async with worker(settings), natsblob.connect(server.url) as blobs:
                digest = (await blobs.put(data)).digest
        flip_a_bit(folder, list(cut(data, CHUNK))[bad])
        async with EmbeddedServer(folder) as server:
            settings = Settings(server=(server.url,), chunk_size=CHUNK)
            async with worker(settings), natsblob.connect(server.url) as blobs:
                with pytest.raises(BlobCorruptError):
                    await blobs.get(digest)
                with pytest.raises(BlobCorruptError):
                    await blobs.get(digest, offset=bad * CHUNK, length=10)
                assert (await blobs.put(data)).created
                assert await blobs.get(digest) == data
                more = [(await blobs.put(pattern(size, str(number)))).digest for number in range(3)]
                assert await blobs.get(digest) == data
                assert not await blobs.missing([digest, *more])


async def test_where_the_only_copy_is_damaged_no_worker_removes_what_lies_before_the_damage() -> None:
    """The server would drop everything behind it, as soon as something is stored (ADR 0019)."""
    blobs = [pattern(CHUNK, str(number)) for number in range(6)]
    with temporary_store_dir() as folder:
        async with served(folder) as (_, store):
            digests = [(await store.put(once(data))).digest for data in blobs]
        flip_a_bit(folder, blobs[2])
        async with served(folder) as (bucket, store):
            with pytest.raises(BlobCorruptError):
                _ = [chunk async for chunk in store.chunks(digests[2])]
            objects = Objects(Bucket(bucket.jetstream, bucket.name, "blob"))
            other = JetStreamStore(objects)
            for digest in digests[:2]:
                await other.delete(digest)
            assert (await other.put(once(blobs[2]))).created
            await other.put(once(DATA))
            assert await other.missing(digests) == digests[:2]
            for digest, data in list(zip(digests, blobs, strict=True))[2:]:
                assert b"".join([chunk async for chunk in other.chunks(digest)]) == data
            collector = Collector(objects, expiry=timedelta(0), interval=60)
            for _ in range(2):
                await collector.collect()
            await other.put(once(b"another"))
        async with served(folder) as (bucket, store):
            assert await store.missing(digests) == digests[:2]
            assert await bucket.removals.are_halted()
            await bucket.jetstream.purge(bucket.layout.stream, bucket.layout.damage)
            other_bucket = Bucket(bucket.jetstream, bucket.name, "blob")
            assert not await other_bucket.removals.are_halted()


async def test_no_abort_drops_the_chunks_of_a_blob_whose_commit_cannot_be_read() -> None:
    data = pattern(3 * CHUNK)
    stage = new_nuid()
    with temporary_store_dir() as folder:
        async with served(folder) as (bucket, _):
            for index, chunk in enumerate(cut(data, CHUNK)):
                await bucket.jetstream.publish(
                    bucket.chunk_subject(stage), chunk, headers=wire.chunk_headers(stage, index, chunk)
                )
            staging = Staging(Objects(bucket, chunk_size=CHUNK), expiry=timedelta(hours=1))
            request = wire.CommitRequest(stage, len(data), 3, Digest.of(data))
            await staging.commit(stage, request, None)
            decision = await bucket.jetstream.last_at_leader(
                bucket.layout.stream, bucket.layout.decision(stage)
            )
            assert decision is not None
        flip_a_bit(folder, decision.data)
        async with served(folder) as (bucket, store):
            staging = Staging(Objects(bucket, chunk_size=CHUNK), expiry=timedelta(hours=1))
            with pytest.raises((ConflictError, UnavailableError)):
                await staging.abort(stage)
            with pytest.raises((ConflictError, UnavailableError)):
                await staging.give_up(stage, was_decided=False)
            assert b"".join([chunk async for chunk in store.chunks(Digest.of(data))]) == data
            assert await bucket.removals.are_halted()


async def test_damage_that_is_met_again_is_recorded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removals, "_BELIEVED", 0.0)
    data = pattern(CHUNK)
    with temporary_store_dir() as folder:
        async with served(folder) as (_, store):
            digest = (await store.put(once(data))).digest
        flip_a_bit(folder, data)
        async with served(folder) as (bucket, store):
            for _ in range(2):
                with pytest.raises(BlobCorruptError):
                    _ = [chunk async for chunk in store.chunks(digest)]
                other = Bucket(bucket.jetstream, bucket.name, "blob")
                assert await other.removals.are_halted()
                await bucket.jetstream.purge(bucket.layout.stream, bucket.layout.damage)
