"""Collection: what nobody needs goes, and nothing else, also while uploads are being committed."""

from __future__ import annotations

import asyncio
import json
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import nats
import pytest

from natsblob import wire
from natsblob.broker.connection import Access, connect
from natsblob.broker.embedded import EmbeddedServer
from natsblob.broker.jetstream import JetStream
from natsblob.digest import Digest
from natsblob.errors import UnavailableError, UploadExpiredError
from natsblob.maintenance.collect import Collected, Collector
from natsblob.objectstore import writer
from natsblob.objectstore.bucket import Bucket, BucketConfig
from natsblob.objectstore.info import Entry, new_nuid
from natsblob.objectstore.objects import Objects
from natsblob.objectstore.staging import Decision, Staging
from natsblob.store.jetstream import UPLOAD_EXPIRY, JetStreamStore
from natsblob.testing.payloads import pattern, source
from natsblob.wire import CommitRequest
from tests.integration.subjects import subjects_of

OLD = timedelta(0)
"""An expiry after which everything that is stored is old, once `NAMING` is none."""
DATA = pattern(100)


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is unnamed is due at once."""
    monkeypatch.setattr(writer, "NAMING", timedelta(0))


@pytest.fixture
async def objects(server: EmbeddedServer) -> AsyncIterator[Objects]:
    name = uuid4().hex
    async with await connect(Access((server.url,))) as connection:
        bucket = Bucket(JetStream(connection), name, prefix=f"t{name}")
        await bucket.create(BucketConfig(name, storage="memory", rollups=True))
        yield Objects(bucket, chunk_size=1024)
        await bucket.jetstream.delete(bucket.layout.stream)


def collector(objects: Objects, expiry: timedelta = OLD) -> Collector:
    return Collector(objects, expiry=expiry, interval=60)


async def collect(objects: Objects, expiry: timedelta = OLD) -> Collected:
    """What a worker removes that looks twice."""
    one = collector(objects, expiry)
    assert await one.collect() == Collected(0, 0)
    return await one.collect()


async def staged(objects: Objects, data: bytes = DATA, stage: str = "") -> str:
    index, stage = (1, stage) if stage else (0, new_nuid())
    await objects.bucket.jetstream.connection.request(
        objects.bucket.chunk_subject(stage), data, headers=wire.chunk_headers(stage, index, data), timeout=5
    )
    return stage


async def left(objects: Objects) -> int:
    """Messages in the stream."""
    return (await objects.bucket.info()).state.messages


async def test_orphans_go_and_blobs_stay(objects: Objects) -> None:
    store = JetStreamStore(objects)
    put = await store.put(source(pattern(3000)))
    committed = await store.commit(await staged(objects), CommitRequest("", len(DATA), 1), None)
    before = await left(objects)
    for _ in range(3):
        await staged(objects, pattern(50))
    assert await collect(objects) == Collected(uploads=3, decisions=0)
    assert await collect(objects) == Collected(uploads=0, decisions=3)
    assert await left(objects) == before
    for info in (put, committed):
        content = b"".join([chunk async for chunk in store.chunks(info.digest)])
        assert Digest.of(content) == info.digest


async def test_what_is_young_stays(objects: Objects) -> None:
    await staged(objects)
    before = await left(objects)
    assert await collect(objects, timedelta(minutes=1)) == Collected(0, 0)
    assert await left(objects) == before


async def test_objects_of_other_clients_stay(objects: Objects, server: EmbeddedServer) -> None:
    async with await nats.connect(server.url) as nc:
        theirs = await nc.jetstream().object_store(objects.bucket.name)
        await theirs.put("a name / of ours", DATA)
        await theirs.put("link target", DATA)
        await theirs.delete("link target")
        await collect(objects)
        assert (await theirs.get("a name / of ours")).data == DATA


async def test_an_object_whose_name_is_encoded_in_another_way_stays(
    objects: Objects, server: EmbeddedServer
) -> None:
    """As `@nats-io/obj` does with names beyond ASCII."""
    layout = objects.bucket.layout
    async with await nats.connect(server.url) as nc:
        await nc.jetstream().publish(layout.chunks("nuid"), DATA)
        body = {"name": "é", "bucket": layout.bucket, "nuid": "nuid", "size": len(DATA), "chunks": 1}
        subject = f"$O.{layout.bucket}.M.{urlsafe_b64encode('é'.encode('latin1')).decode()}"
        await nc.jetstream().publish(subject, json.dumps(body).encode())
    before = await left(objects)
    assert await collect(objects) == Collected(0, 0)
    assert await left(objects) == before


async def test_a_deleted_blob_leaves_nothing_to_collect(objects: Objects) -> None:
    store = JetStreamStore(objects)
    await store.commit(await staged(objects), CommitRequest("", len(DATA), 1), None)
    await store.delete(Digest.of(DATA))
    await collect(objects)
    subjects = await subjects_of(objects.bucket.jetstream, objects.bucket.layout.stream, "$O.*.C.>")
    assert subjects == {}


class CommitsMeanwhile(Collector):
    """Somebody commits between the moment when collection has listed what is named and its first purge."""

    def __init__(self, objects: Objects, staging: Staging, stage: str) -> None:
        super().__init__(objects, expiry=OLD, interval=60)
        self._commit = (staging, stage)

    async def _drop(self, *given: Any) -> bool:
        staging, stage = self._commit
        await staging.commit(stage, CommitRequest("", len(DATA), 1), None)
        return await super()._drop(*given)


async def test_a_commit_during_collection_keeps_its_chunks(objects: Objects) -> None:
    stage = await staged(objects)
    staging = Staging(objects, expiry=timedelta(hours=1))
    one = CommitsMeanwhile(objects, staging, stage)
    for _ in range(2):
        assert (await one.collect()).uploads == 0
    assert b"".join([chunk async for chunk in objects.get(Digest.of(DATA).hex)]) == DATA


async def test_what_changes_is_left_alone_for_another_grace_time(
    objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = await staged(objects)
    one = collector(objects)
    monkeypatch.setattr(one, "_grace", 0.2)
    assert (await one.collect()).uploads == 0
    await asyncio.sleep(0.2)
    assert await staged(objects, b"more", stage) == stage
    assert (await one.collect()).uploads == 0
    await asyncio.sleep(0.2)
    assert (await one.collect()).uploads == 1


async def test_chunks_that_waited_too_long_for_their_name_do_not_get_it(objects: Objects) -> None:
    """They may have been collected, whatever the servers' clocks say."""
    store = JetStreamStore(objects)
    written = await objects.write_one(DATA, Digest.of(DATA))
    with pytest.raises(UnavailableError):
        await store._name(replace(written, since=written.since - 2 * UPLOAD_EXPIRY.total_seconds()))
    assert await store.missing([Digest.of(DATA)]) == [Digest.of(DATA)]
    await collect(objects)
    assert (await store.put(source(DATA))).created


async def test_a_commit_that_died_half_way_is_collected_in_two_steps(objects: Objects) -> None:
    """Whoever has read that it is decided may still name the chunks: they stay until that is too late."""
    stage = await staged(objects)
    staging = Staging(objects, expiry=UPLOAD_EXPIRY)
    await staging._decide(stage, Decision("commit", Digest.of(DATA).hex))
    assert (await collect(objects)).uploads == 0
    with pytest.raises(UploadExpiredError):
        await staging.commit(stage, CommitRequest("", len(DATA), 1), None)
    assert (await collect(objects)).uploads == 1
    await collect(objects)
    assert await left(objects) == 0


async def test_many_collectors_at_once_do_no_harm(objects: Objects) -> None:
    store = JetStreamStore(objects)
    kept = [await store.put(source(pattern(2000, str(number)))) for number in range(4)]
    for number in range(10):
        await staged(objects, pattern(10, str(number)))
    await asyncio.gather(*(collect(objects) for _ in range(4)))
    await collect(objects)
    subjects = await subjects_of(objects.bucket.jetstream, objects.bucket.layout.stream, "$O.*.C.>")
    assert len(subjects) == len(kept)
    for info in kept:
        assert Digest.of(b"".join([c async for c in store.chunks(info.digest)])) == info.digest


async def test_what_superseded_metadata_names_is_collected(
    objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A delete whose purges both got lost."""
    store = JetStreamStore(objects)
    await store.put(source(DATA))

    async def lost(*_: object, **__: object) -> int:
        return 0

    with monkeypatch.context() as losing:
        losing.setattr(JetStream, "purge", lost)
        await store.delete(Digest.of(DATA))
    assert await left(objects) == 3  # the chunk, its metadata, and the marker
    one = collector(objects)
    assert [(await one.collect()).uploads for _ in range(2)] == [0, 1]


async def test_a_bucket_that_has_not_changed_is_not_read_again(
    objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    await JetStreamStore(objects).put(source(DATA))
    one = collector(objects)
    await one.collect()
    with monkeypatch.context() as broken:
        broken.delattr(Objects, "metadata")
        assert await one.collect() == Collected(0, 0)
    await staged(objects)
    assert [(await one.collect()).uploads for _ in range(2)] == [0, 1]


async def test_what_only_seems_to_be_unnamed_stays(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a copy has lost the metadata, and was asked for it each time."""
    await JetStreamStore(objects).commit(await staged(objects), CommitRequest("", len(DATA), 1), None)
    before = await left(objects)

    async def nothing(*_: object, **__: object) -> AsyncIterator[Entry]:
        return
        yield

    monkeypatch.setattr(Objects, "metadata", nothing)
    with pytest.raises(UnavailableError):
        await collect(objects)
    assert await left(objects) == before
