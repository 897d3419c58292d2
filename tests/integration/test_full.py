"""A bucket without room: deleting, aborting and collecting make some, and store nothing for it first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from uuid import uuid4

import pytest

from natsblob import wire
from natsblob.broker.connection import Access, connect
from natsblob.broker.embedded import EmbeddedServer
from natsblob.broker.jetstream import JetStream, decode_ack
from natsblob.digest import Digest
from natsblob.errors import (
    BlobNotFoundError,
    ConflictError,
    DigestMismatchError,
    InsufficientStorageError,
    UploadExpiredError,
)
from natsblob.maintenance.collect import Collector
from natsblob.objectstore import writer
from natsblob.objectstore.bucket import Bucket
from natsblob.objectstore.info import new_nuid
from natsblob.objectstore.objects import Objects
from natsblob.objectstore.staging import Decision, Staging
from natsblob.store.jetstream import UPLOAD_EXPIRY, JetStreamStore
from natsblob.testing.payloads import pattern, source
from natsblob.testing.servers import temporary_server
from natsblob.wire import CommitRequest
from tests.integration.subjects import subjects_of

CHUNK = 1024
DATA = pattern(3 * CHUNK)
LIMITS = {"bytes": {"max_bytes": 64 * 1024}, "messages": {"max_msgs": 24}, "account": {}}


@pytest.fixture(params=LIMITS)
async def objects(request: pytest.FixtureRequest, server: EmbeddedServer) -> AsyncIterator[Objects]:
    """A bucket with a limit: of its own in bytes or messages, or of its account."""
    async with AsyncExitStack() as stack:
        if request.param == "account":
            server = await stack.enter_async_context(temporary_server(jetstream="max_file_store: 65536"))
        connection = await stack.enter_async_context(await connect(Access((server.url,))))
        name = uuid4().hex
        bucket = Bucket(JetStream(connection), name, prefix=f"t{name}")
        subjects = [bucket.layout.all_chunks, bucket.layout.all_meta]
        config = {"name": bucket.layout.stream, "subjects": subjects, "discard": "new", "allow_direct": True}
        await bucket.jetstream.create({**config, **LIMITS[request.param]})
        yield Objects(bucket, chunk_size=CHUNK)
        await bucket.jetstream.delete(bucket.layout.stream)


async def stage(objects: Objects, data: bytes) -> str:
    """An upload of these bytes that is all stored."""
    name = new_nuid()
    for index, at in enumerate(range(0, len(data), CHUNK)):
        chunk = data[at : at + CHUNK]
        headers = wire.chunk_headers(name, index, chunk)
        subject = objects.bucket.layout.chunks(name)
        ack = await objects.bucket.jetstream.connection.request(subject, chunk, headers=headers, timeout=5)
        decode_ack(ack)
    return name


async def fill(objects: Objects) -> None:
    """Publish chunks for no upload until not even a byte has room."""
    size = CHUNK
    while True:
        try:
            await objects.bucket.jetstream.publish(objects.bucket.layout.chunks("f"), b"x" * size)
        except InsufficientStorageError:
            if size == 0:
                return
            size //= 4


async def left(objects: Objects) -> dict[str, int]:
    found = await subjects_of(objects.bucket.jetstream, objects.bucket.layout.stream, ">")
    found.pop(objects.bucket.layout.chunks("f"), None)
    return found


async def test_a_blob_is_deleted_and_there_is_room_again(objects: Objects) -> None:
    store = JetStreamStore(objects)
    digest = (await store.put(source(DATA))).digest
    await fill(objects)
    with pytest.raises(InsufficientStorageError):
        await store.put(source(b"more"))
    await store.delete(digest)
    assert await store.missing([digest]) == [digest]
    with pytest.raises(BlobNotFoundError):
        await store.delete(digest)
    assert (await store.put(source(pattern(CHUNK, "other")))).created


async def test_every_blob_is_deleted(objects: Objects) -> None:
    store = JetStreamStore(objects)
    digests = [(await store.put(source(pattern(size, "b")))).digest for size in (0, 1, 10, 100, CHUNK + 1)]
    await fill(objects)
    for digest in digests:
        await store.delete(digest)
    assert await store.missing(digests) == digests
    assert not [subject for subject in await left(objects) if ".C." in subject]


async def test_a_commit_that_comes_late_does_not_revive_what_was_deleted(objects: Objects) -> None:
    staging, store = Staging(objects, expiry=UPLOAD_EXPIRY), JetStreamStore(objects)
    upload = await stage(objects, DATA)
    request = CommitRequest("", len(DATA), 3)
    await staging.commit(upload, request, None)
    await fill(objects)
    await store.delete(Digest.of(DATA))
    for _ in range(2):
        with pytest.raises(UploadExpiredError):
            await staging.commit(upload, request, None)
    assert await store.missing([Digest.of(DATA)]) == [Digest.of(DATA)]


async def test_a_commit_that_has_counted_does_not_name_what_was_purged(
    objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An abort purges between the moment when a commit has counted the chunks and its decision."""
    if not await objects.bucket.is_limited():
        pytest.skip("the limit of an account is not known to a worker")
    staging = Staging(objects, expiry=UPLOAD_EXPIRY)
    upload = await stage(objects, DATA)
    await fill(objects)
    decide = Staging._decide

    async def purged_before(self: Staging, stage: str, decision: Decision) -> object:
        if decision.action == "commit":
            await objects.drop(stage)
        return await decide(self, stage, decision)

    monkeypatch.setattr(Staging, "_decide", purged_before)
    with pytest.raises(UploadExpiredError):
        await staging.commit(upload, CommitRequest("", len(DATA), 3), None)
    assert await objects.find(Digest.of(DATA).hex) is None


async def test_an_upload_is_aborted(objects: Objects) -> None:
    staging = Staging(objects, expiry=UPLOAD_EXPIRY)
    uploads = [await stage(objects, pattern(2 * CHUNK, str(number))) for number in range(2)]
    await fill(objects)
    for upload in uploads:
        await staging.abort(upload)
        await staging.abort(upload)
        with pytest.raises(UploadExpiredError):
            await staging.commit(upload, CommitRequest("", 2 * CHUNK, 2), None)
    assert not [subject for subject in await left(objects) if objects.bucket.layout.nuid_of(subject)]


async def test_what_is_committed_is_not_aborted(objects: Objects) -> None:
    staging = Staging(objects, expiry=UPLOAD_EXPIRY)
    upload = await stage(objects, DATA)
    await staging.commit(upload, CommitRequest("", len(DATA), 3), None)
    await fill(objects)
    with pytest.raises(ConflictError):
        await staging.abort(upload)
    assert b"".join([chunk async for chunk in objects.get(Digest.of(DATA).hex)]) == DATA


async def test_a_commit_of_what_is_there_or_wrong_gives_its_chunks_back(objects: Objects) -> None:
    staging, store = Staging(objects, expiry=UPLOAD_EXPIRY), JetStreamStore(objects)
    await store.put(source(DATA))
    again, wrong = await stage(objects, DATA), await stage(objects, pattern(CHUNK, "wrong"))
    await fill(objects)
    assert not (await staging.commit(again, CommitRequest("", len(DATA), 3), None)).created
    assert not (await staging.commit(again, CommitRequest("", len(DATA), 3), None)).created
    await fill(objects)
    with pytest.raises(DigestMismatchError):
        await staging.commit(wrong, CommitRequest("", CHUNK, 1, Digest.of(b"right")), None)
    chunks = [subject for subject in await left(objects) if objects.bucket.layout.nuid_of(subject)]
    assert len(chunks) == 1


async def test_collection_makes_room(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "NAMING", timedelta(0))
    store = JetStreamStore(objects)
    kept = (await store.put(source(DATA))).digest
    uploads = [await stage(objects, pattern(CHUNK, str(number))) for number in range(3)]
    await Staging(objects, expiry=UPLOAD_EXPIRY)._decide(uploads[0], Decision("commit", Digest.of(b"").hex))
    await fill(objects)
    one = Collector(objects, expiry=timedelta(0), interval=60)
    for _ in range(6):
        await one.collect()
    assert len(await left(objects)) == 2  # the blob
    assert b"".join([chunk async for chunk in store.chunks(kept)]) == DATA
    assert (await store.put(source(pattern(2 * CHUNK)))).created


async def test_commits_and_collection_at_once(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "NAMING", timedelta(0))
    staging = Staging(objects, expiry=UPLOAD_EXPIRY)
    contents = [pattern(CHUNK, str(number)) for number in range(4)]
    uploads = [await stage(objects, content) for content in contents]
    await fill(objects)
    one = Collector(objects, expiry=timedelta(0), interval=60)
    await one.collect()
    commits = [staging.commit(upload, CommitRequest("", CHUNK, 1), None) for upload in uploads]
    outcomes = await asyncio.gather(one.collect(), *commits, return_exceptions=True)
    for content, outcome in zip(contents, outcomes[1:], strict=True):
        found = await objects.find(Digest.of(content).hex)
        assert (found is None) == isinstance(outcome, BaseException)
        if found:
            assert b"".join([chunk async for chunk in objects.get(found.info.name)]) == content
