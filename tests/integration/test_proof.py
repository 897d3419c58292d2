"""Whoever puts content is told "there already" only if its bytes can be read afterwards."""

from __future__ import annotations

import asyncio
import hashlib
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

import natsblob
from natsblob.broker.connection import Access, connect
from natsblob.broker.embedded import EmbeddedServer
from natsblob.broker.jetstream import JetStream
from natsblob.errors import BlobCorruptError, BlobNotFoundError
from natsblob.objectstore.bucket import Bucket
from natsblob.objectstore.info import Entry
from natsblob.objectstore.objects import Objects
from natsblob.objectstore.proof import Proofs
from natsblob.testing.payloads import pattern
from tests.integration.raw import CHUNK, Raw, Upload, pieces, service

SMALL = pattern(100)
LARGE = pattern(3 * CHUNK + 100)


@pytest.fixture
async def raw(server: EmbeddedServer) -> AsyncIterator[Raw]:
    async with service(server.url, workers=2) as client:
        yield client


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def meta(raw: Raw, data: bytes) -> str:
    return f"$O.{raw.bucket}.M.{urlsafe_b64encode(digest(data).encode()).decode()}"


async def info(raw: Raw, data: bytes) -> dict[str, Any]:
    stored = await raw.js.get_last_msg(raw.stream, meta(raw, data))
    found: dict[str, Any] = msgspec.json.decode(stored.data or b"")
    return found


async def foreign(raw: Raw, data: bytes, content: bytes, **changes: Any) -> None:
    """Another client's object with the name of the digest of `data`."""
    nuid = "foreign" + digest(content)[:10]
    await raw.js.publish(f"$O.{raw.bucket}.C.{nuid}", content)
    theirs = urlsafe_b64encode(hashlib.sha256(content).digest()).decode()
    body = {
        "name": digest(data),
        "bucket": raw.bucket,
        "nuid": nuid,
        "size": len(content),
        "chunks": 1,
        "digest": f"SHA-256={theirs}",
        **changes,
    }
    await raw.js.publish(meta(raw, data), msgspec.json.encode(body))


async def lose(raw: Raw, data: bytes) -> None:
    """Take the chunks of a blob away, as a failing disk does, unnoticed."""
    nuid = (await info(raw, data))["nuid"]
    await raw.js.purge_stream(raw.stream, subject=f"$O.{raw.bucket}.C.{nuid}")


async def messages(raw: Raw) -> int:
    return (await raw.js.stream_info(raw.stream)).state.messages


async def records(raw: Raw) -> int:
    state = (await raw.js.stream_info(raw.stream, subjects_filter=f"$O.{raw.bucket}.C.*.proof")).state
    return sum((state.subjects or {}).values())


async def tapped(raw: Raw, data: bytes) -> Upload:
    upload = await raw.upload(*pieces(data))
    assert (await upload.commit()).code == 0
    return upload


@pytest.mark.parametrize("how", ["put", "open", "commit", "sdk"])
@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
async def test_what_was_lost_is_healed_by_the_next_put(
    raw: Raw, server: EmbeddedServer, data: bytes, how: str
) -> None:
    async with natsblob.connect(server.url, prefix=raw.prefix) as blobs:
        await blobs.put(data)
        await lose(raw, data)
        with pytest.raises(BlobCorruptError):
            await blobs.get(digest(data))
        if how == "sdk" or (how == "put" and data is LARGE):
            assert (await blobs.put(data)).created
        elif how == "put":
            assert await raw.put(data) == digest(data)
        else:
            upload = await raw.open(**({"digest": digest(data)} if how == "open" else {}))
            assert "upload" in upload.opened
            for index, chunk in enumerate(pieces(data)):
                await upload.send(index, chunk)
            assert (await upload.commit()).json["created"] is True
        assert await blobs.get(digest(data)) == data
        assert not (await blobs.put(data)).created
    is_written = "natsblob.written" in (await info(raw, data))["metadata"]
    assert await records(raw) == (0 if is_written else 1)


@pytest.mark.parametrize("changes", [{}, {"digest": ""}, {"digest": None}, {"digest": "SHA-256=x"}])
@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
async def test_an_object_that_merely_has_the_name_is_no_blob(
    raw: Raw, server: EmbeddedServer, data: bytes, changes: dict[str, Any]
) -> None:
    await foreign(raw, data, b"something else", **changes)
    name = digest(data)
    async with natsblob.connect(server.url, prefix=raw.prefix) as blobs:
        for _ in range(2):
            assert not await blobs.has(name)
            assert await blobs.missing([name]) == [natsblob.Digest.parse(name)]
            for call in (blobs.get, blobs.stat, blobs.delete):
                with pytest.raises(BlobNotFoundError):
                    await call(name)
            assert [found async for found in blobs.list()] == []
        assert (await blobs.put(data)).created
        assert await blobs.get(name) == data
        assert await blobs.has(name)
        assert [found.digest.hex async for found in blobs.list()] == [name]


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
async def test_an_object_that_claims_the_digest_of_other_bytes_is_replaced(
    raw: Raw, server: EmbeddedServer, data: bytes
) -> None:
    claimed = "SHA-256=" + urlsafe_b64encode(hashlib.sha256(data).digest()).decode()
    await foreign(raw, data, bytes(len(data)), digest=claimed)
    async with natsblob.connect(server.url, prefix=raw.prefix) as blobs:
        assert (await blobs.put(data)).created
        assert await blobs.get(digest(data)) == data
    assert await records(raw) == 0


async def test_tapped_content_is_read_once_before_it_counts(raw: Raw, server: EmbeddedServer) -> None:
    await tapped(raw, LARGE)
    assert await records(raw) == 0
    for _ in range(2):
        assert (await raw.ask("put.open", {"digest": digest(LARGE)})).json["created"] is False
        assert await records(raw) == 1
    assert (await raw.ask("delete", digest(LARGE).encode())).code == 0
    assert await records(raw) == 0


async def test_tapped_content_that_was_lost_is_found_out_by_the_put(raw: Raw, server: EmbeddedServer) -> None:
    await tapped(raw, LARGE)
    await lose(raw, LARGE)
    async with natsblob.connect(server.url, prefix=raw.prefix) as blobs:
        assert (await blobs.put(LARGE)).created
        assert await blobs.get(digest(LARGE)) == LARGE


async def test_a_put_by_a_worker_counts_from_the_start_and_stores_nothing_more(raw: Raw) -> None:
    before = await messages(raw)
    assert await raw.put(SMALL) == digest(SMALL)
    assert await messages(raw) == before + 2
    assert (await raw.ask("put.open", {"digest": digest(SMALL)})).json["created"] is False
    assert await raw.put(SMALL) == digest(SMALL)
    assert await messages(raw) == before + 2
    stored = await info(raw, SMALL)
    assert stored["metadata"]["natsblob.written"] == stored["nuid"]


async def test_the_commit_of_an_upload_whose_blob_was_found_bad_has_to_begin_again(
    raw: Raw, server: EmbeddedServer
) -> None:
    upload = await tapped(raw, LARGE)
    await lose(raw, LARGE)
    async with natsblob.connect(server.url, prefix=raw.prefix) as blobs:
        with pytest.raises(BlobCorruptError):
            await blobs.get(digest(LARGE))
        assert (await upload.commit()).code == 408
        assert (await blobs.put(LARGE)).created
        assert await blobs.get(digest(LARGE)) == LARGE
    assert (await upload.commit()).json["created"] is False


async def test_many_who_put_the_same_read_it_once(raw: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    readings: list[str] = []
    original = Proofs._reads_well

    async def noted(self: Proofs, entry: Entry) -> bool:
        readings.append(entry.info.name)
        return await original(self, entry)

    monkeypatch.setattr(Proofs, "_reads_well", noted)
    await tapped(raw, LARGE)
    asked = [raw.ask("put.open", {"digest": digest(LARGE)}) for _ in range(20)]
    assert not any(answer.json["created"] for answer in await asyncio.gather(*asked))
    assert 1 <= len(readings) <= 2  # once in each worker at most


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
async def test_metadata_that_another_client_copied_vouches_for_no_bytes(
    raw: Raw, server: EmbeddedServer, data: bytes
) -> None:
    async with natsblob.connect(server.url, prefix=raw.prefix) as blobs:
        await blobs.put(data)
        original = await info(raw, data)
        await blobs.delete(digest(data))
        theirs = {key: original[key] for key in ("digest", "metadata", "options")}
        await foreign(raw, data, bytes(len(data)), **theirs)
        assert (await blobs.put(data)).created
        assert await blobs.get(digest(data)) == data


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
async def test_a_doubt_outlives_metadata_that_another_client_changes(
    raw: Raw, server: EmbeddedServer, data: bytes
) -> None:
    async with natsblob.connect(server.url, prefix=raw.prefix) as blobs:
        await blobs.put(data)
        await lose(raw, data)
        with pytest.raises(BlobCorruptError):
            await blobs.get(digest(data))
        described = {**await info(raw, data), "description": "mine"}
        await raw.js.publish(meta(raw, data), msgspec.json.encode(described))
        assert (await blobs.put(data)).created
        assert await blobs.get(digest(data)) == data


async def test_records_of_what_was_deleted_go_without_those_that_came_since(
    raw: Raw, server: EmbeddedServer
) -> None:
    async with await connect(Access((server.url,))) as connection:
        bucket = Bucket(JetStream(connection), raw.bucket, raw.prefix)
        objects = Objects(bucket, chunk_size=CHUNK)
        proofs = Proofs(objects)
        await raw.put(SMALL)
        gone = await objects.newest(digest(SMALL))
        assert gone is not None
        await raw.ask("delete", digest(SMALL).encode())
        await raw.put(SMALL)
        now = await objects.newest(digest(SMALL))
        assert now is not None
        await proofs.doubt(now)
        await proofs.forget(digest(SMALL), gone.seq)
        assert not await Proofs(objects).holds(now)
        await proofs.forget(digest(SMALL), now.seq)
    assert await records(raw) == 0


async def test_the_chunks_of_a_blob_outlast_a_copy_of_its_metadata(raw: Raw, server: EmbeddedServer) -> None:
    other = pattern(200)
    async with natsblob.connect(server.url, prefix=raw.prefix) as blobs:
        await blobs.put(SMALL)
        await raw.js.publish(meta(raw, other), msgspec.json.encode(await info(raw, SMALL)))
        assert (await blobs.put(other)).created
        assert await blobs.get(digest(other)) == other
        assert await blobs.get(digest(SMALL)) == SMALL
