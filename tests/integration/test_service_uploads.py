"""Uploads over the wire: whatever a client publishes as chunks, what is committed can be read."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest

import natsblob
from natsblob.broker.embedded import EmbeddedServer
from natsblob.objectstore.staging import Staging
from natsblob.service.tap import MAX_TAPS
from natsblob.testing.payloads import pattern
from tests.integration.raw import CHUNK, Raw, Wire, pieces, service

DATA = pattern(3 * CHUNK + 100)
CHUNKS = pieces(DATA)
DIGEST = hashlib.sha256(DATA).hexdigest()
UNKNOWN = "A" * 22


@pytest.fixture(params=["tap", "readback"])
async def raw(server: EmbeddedServer, request: pytest.FixtureRequest) -> AsyncIterator[Raw]:
    """Both ways to verify an upload: as it was watched, and by reading it back."""
    async with service(server.url, commit_check=request.param) as client:
        yield client


async def test_an_upload_becomes_visible_with_its_commit(raw: Raw) -> None:
    upload = await raw.upload(*CHUNKS)
    assert (await raw.ask("has", DIGEST.encode())).json["exists"] is False
    info = (await upload.commit()).json
    assert info == {**info, "digest": DIGEST, "size": len(DATA), "chunks": 4, "chunk_size": CHUNK}
    assert info["created"] is True
    assert (await raw.ask("get", DIGEST.encode())).data == DATA
    assert (await upload.commit()).json["digest"] == DIGEST


@pytest.mark.parametrize(
    ("bad", "headers"),
    [
        pytest.param(b"", {}, id="empty"),
        pytest.param(b"x" * (CHUNK + 1), {}, id="longer"),
        pytest.param(b"x" * (CHUNK - 1), {}, id="shorter"),
        pytest.param(b"x" * CHUNK, {"Blob-Sum": "crc32=00000000"}, id="wrong-sum"),
        pytest.param(b"x" * CHUNK, {"Blob-Sum": "md5=0"}, id="unknown-sum"),
        pytest.param(b"x" * CHUNK, {"Blob-Chunk": "4"}, id="beyond-the-count"),
        pytest.param(b"x" * CHUNK, {"Blob-Chunk": "-1"}, id="negative-index"),
        pytest.param(b"x" * CHUNK, {"Blob-Chunk": "9" * 40}, id="huge-index"),
        pytest.param(b"x" * CHUNK, {"Blob-Chunk": "one"}, id="no-number"),
    ],
)
async def test_a_bad_chunk_is_not_committed(raw: Raw, bad: bytes, headers: dict[str, str]) -> None:
    upload = await raw.open()
    for index, chunk in enumerate([CHUNKS[0], bad, CHUNKS[2], CHUNKS[3]]):
        await upload.send(index, chunk, headers if index == 1 else None)
    assert (await upload.commit()).error["name"] == "bad_request"
    assert await raw.names() == 0
    await raw.still_answers()


async def test_a_first_chunk_that_is_empty_is_not_committed(raw: Raw) -> None:
    upload = await raw.upload(b"", CHUNKS[0])
    assert (await upload.commit()).code == 400
    assert await raw.names() == 0


async def test_two_contents_for_one_chunk_are_refused(raw: Raw) -> None:
    upload = await raw.upload(*CHUNKS)
    await upload.send(1, CHUNKS[2], once=False)
    assert (await upload.commit()).code == 400
    assert await raw.names() == 0


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"digest": "0" * 64}, id="digest"),
        pytest.param({"size": len(DATA) - 1}, id="size"),
        pytest.param({"chunks": 5}, id="count"),
    ],
)
async def test_a_wrong_declaration_drops_the_upload(raw: Raw, changes: dict[str, Any]) -> None:
    upload = await raw.upload(*CHUNKS)
    assert (await upload.commit(**changes)).error["name"] == "digest_mismatch"
    assert await raw.staged() == {}
    assert (await upload.commit()).error["name"] == "upload_expired"
    assert (await raw.ask("has", DIGEST.encode())).json["exists"] is False


async def test_what_is_left_of_a_dropped_upload_is_no_other_content(raw: Raw) -> None:
    """A copy that lags may still show some chunks of an upload that somebody has aborted meanwhile."""
    upload = await raw.upload(*CHUNKS[:2])
    stage = str(upload.opened["chunk_subject"])
    await raw.js.publish(f"{stage}.decision", b'{"action":"drop"}')
    assert (await upload.commit(size=len(DATA), chunks=4)).error["name"] == "upload_expired"
    assert await raw.names() == 0


@pytest.mark.parametrize(
    "marks",
    [
        pytest.param({"every": 4, "seqs": [1_000_000]}, id="beyond-the-stream"),
        pytest.param({"every": 4, "seqs": [2]}, id="shifted"),
        pytest.param({"every": 1, "seqs": [4, 3, 2, 1]}, id="backwards"),
        pytest.param({"every": 1, "seqs": [1]}, id="too-few"),
        pytest.param({"every": 100, "seqs": []}, id="none"),
    ],
)
async def test_marks_that_are_wrong_harm_nobody(raw: Raw, marks: dict[str, Any]) -> None:
    upload = await raw.upload(*CHUNKS)
    assert (await upload.commit(marks=marks)).code == 0
    for index, chunk in enumerate(CHUNKS):
        assert await raw.window(DIGEST, index, 1) == {index: chunk}


@pytest.mark.parametrize("count", [8, 40])
async def test_each_chunk_of_interleaved_uploads_can_be_asked_for(raw: Raw, count: int) -> None:
    blobs = [pieces(pattern(count * CHUNK, seed)) for seed in ("left", "right")]
    uploads = [await raw.open(), await raw.open()]
    for index in range(count):
        for upload, chunks in zip(uploads, blobs, strict=True):
            await upload.send(index, chunks[index])
    for upload, chunks in zip(uploads, blobs, strict=True):
        every = 1 if count <= 16 else 16
        seqs = [upload.seqs[index] for index in range(0, count, every)]
        digest = (await upload.commit(marks={"every": every, "seqs": seqs})).json["digest"]
        for first in (0, 1, count // 2 - 1, count - 1):
            assert await raw.window(digest, first, 1) == {first: chunks[first]}
        assert await raw.window(digest, 0, count) == dict(enumerate(chunks))


@pytest.mark.parametrize(
    "block", [b"NATS/1.0\r\nBlob-Chunk: 0", b"Blob-Chunk: 0", b"NATS/1.0\r\n\x00\r\n\r\n"]
)
async def test_a_chunk_with_malformed_headers_is_not_committed(
    raw: Raw, server: EmbeddedServer, block: bytes
) -> None:
    upload = await raw.open()
    reply = raw.nc.new_inbox()
    acks = await raw.listen(reply)
    async with Wire(server.url) as wire:
        await wire.publish(upload.opened["chunk_subject"], reply, block, CHUNKS[0])
        await acks.next_msg(timeout=5)
    upload.sizes, upload.seqs = {0: CHUNK}, {0: 1}
    assert (await upload.commit()).code == 400
    assert await raw.names() == 0
    await raw.still_answers()


async def test_many_puts_of_one_client_take_turns_so_that_a_worker_can_watch_them_all(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_back: list[str] = []
    original = Staging._read_back

    async def noted(self: Staging, stage: str, *arguments: Any) -> Any:
        read_back.append(stage)
        return await original(self, stage, *arguments)

    monkeypatch.setattr(Staging, "_read_back", noted)
    async with service(server.url) as raw, natsblob.connect(server.url, prefix=raw.prefix) as blobs:
        await asyncio.gather(*(blobs.put(os.urandom(2_000_000)) for _ in range(3 * MAX_TAPS)))
    assert read_back == []


@pytest.mark.parametrize("endpoint", ["put.status", "put.commit"])
@pytest.mark.parametrize(
    "upload", [UNKNOWN, "", "short", "x" * 500, "../../etc/passwd", "a.b", "*", ">", "é" * 22, "\x00" * 22]
)
async def test_an_unknown_upload_is_expired(raw: Raw, endpoint: str, upload: str) -> None:
    body = {"upload": upload, "size": 10, "chunks": 1}
    assert (await raw.ask(endpoint, body)).error["name"] == "upload_expired"


@pytest.mark.parametrize("upload", ["", "short", "a.b", "*", "é" * 22])
async def test_an_abort_of_what_is_no_upload_is_expired(raw: Raw, upload: str) -> None:
    assert (await raw.ask("put.abort", {"upload": upload})).code == 408


async def test_the_stage_that_readers_see_is_not_the_upload(raw: Raw) -> None:
    """Who can read a blob learns where its chunks lie, which must not let him abort or commit."""
    upload = await raw.upload(*CHUNKS)
    stage = str(upload.opened["chunk_subject"]).rpartition(".")[2]
    assert stage != upload.id
    await raw.ask("put.abort", {"upload": stage})
    foreign = {**upload.request(), "upload": stage}
    assert (await raw.ask("put.commit", foreign)).code == 408
    assert (await upload.commit()).code == 0


async def test_too_large_is_refused_early(server: EmbeddedServer) -> None:
    async with service(server.url, max_blob=CHUNK) as raw:
        assert (await raw.ask("put", bytes(CHUNK + 1))).error["name"] == "too_large"
        assert (await raw.ask("put.open", {"size": CHUNK + 1})).error["name"] == "too_large"
        upload = await raw.upload(bytes(CHUNK), b"x")
        assert (await upload.commit()).error["name"] == "too_large"
        assert (await raw.ask("put", bytes(CHUNK))).code == 0


async def test_more_uploads_than_are_watched_are_read_back(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("natsblob.app.MAX_TAPS", 1)
    async with service(server.url) as raw:
        uploads = [await raw.upload(pattern(CHUNK, str(number))) for number in range(3)]
        for upload in uploads:
            assert (await upload.commit()).code == 0


async def test_a_published_message_cannot_pass_for_a_record_of_the_worker(raw: Raw) -> None:
    """Message ids are remembered for the whole stream, so what the worker writes has ids of its own."""
    upload = await raw.upload(*CHUNKS)
    stage = str(upload.opened["chunk_subject"]).rpartition(".")[2]
    for guess in (f"{stage}.decision.commit.{DIGEST}", f"{stage}.meta.0", f"{stage}.deleted.6"):
        await raw.nc.request(f"$O.{raw.bucket}.C.guesses", b"x", headers={"Nats-Msg-Id": guess}, timeout=5)
    assert (await upload.commit()).code == 0
    assert (await upload.abort()).error["name"] == "conflict"
    assert (await raw.ask("get", DIGEST.encode())).data == DATA
