"""Metadata that is large, as other clients may write it: answers are asked for in parts, and are complete."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from natsblob.broker import jetstream as broker_jetstream
from natsblob.broker.connection import Access, connect
from natsblob.broker.embedded import EmbeddedServer
from natsblob.broker.jetstream import JetStream
from natsblob.digest import Digest
from natsblob.objectstore.bucket import Bucket, BucketConfig
from natsblob.objectstore.info import new_nuid
from natsblob.objectstore.objects import Objects
from natsblob.store.jetstream import JetStreamStore

COUNT = 25


@pytest.fixture
async def objects(server: EmbeddedServer) -> AsyncIterator[Objects]:
    name = uuid4().hex
    async with await connect(Access((server.url,))) as connection:
        bucket = Bucket(JetStream(connection), name, prefix=f"t{name}")
        await bucket.create(BucketConfig(name, storage="memory"))
        yield Objects(bucket)
        await bucket.jetstream.delete(bucket.layout.stream)


async def described(objects: Objects, number: int, size: int) -> Digest:
    """A blob whose metadata has a long description."""
    data = str(number).encode()
    digest, nuid, layout = Digest.of(data), new_nuid(), objects.bucket.layout
    await objects.bucket.jetstream.publish(layout.chunks(nuid), data)
    body = {
        "name": digest.hex,
        "bucket": layout.bucket,
        "nuid": nuid,
        "size": len(data),
        "chunks": 1,
        "digest": digest.adr20(),
        "description": "d" * size,
    }
    await objects.bucket.jetstream.publish(layout.meta(digest.hex), json.dumps(body).encode())
    return digest


@pytest.mark.parametrize("part", [1_000, 50_000, 10_000_000])
async def test_nothing_is_left_out(objects: Objects, monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    monkeypatch.setattr(broker_jetstream, "PART_BYTES", part)
    store = JetStreamStore(objects)
    digests = [await described(objects, number, 20_000) for number in range(COUNT)]
    missing = Digest.of(b"missing")
    assert await store.missing([*digests, missing]) == [missing]
    assert {info.digest for info in (await store.list(limit=1000)).blobs} == set(digests)


async def test_more_than_a_connection_holds(objects: Objects) -> None:
    """80 MB of metadata in one page: the server would leave some out, or cut the connection off."""
    store = JetStreamStore(objects)
    digests = [await described(objects, number, 900_000) for number in range(90)]
    epoch = objects.bucket.jetstream.connection.epoch
    assert await store.missing(digests) == []
    assert len((await store.list(limit=1000)).blobs) == 90
    assert objects.bucket.jetstream.connection.epoch == epoch


async def test_a_name_that_was_replaced_between_two_parts_comes_once(objects: Objects) -> None:
    jetstream, layout = objects.bucket.jetstream, objects.bucket.layout
    subjects = [f"$O.{layout.bucket}.M.{urlsafe_b64encode(name.encode()).decode()}" for name in "abc"]
    for subject in (*subjects, *subjects):
        await jetstream.publish(subject, b"x" * 1000)
    latest = await jetstream.latest(layout.stream, subjects)
    assert sorted(stored.seq for stored in latest.messages) == [4, 5, 6]
    assert latest.up_to == 6
