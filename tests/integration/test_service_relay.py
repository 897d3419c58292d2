"""Uploads into a store that only workers reach: the wire looks the same as where publishers do."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from natsblob.broker.embedded import EmbeddedServer
from natsblob.service import relay
from natsblob.testing.payloads import pattern
from tests.integration.raw import CHUNK, Raw, Upload, pieces, service

DATA = pattern(5 * CHUNK + 100)
CHUNKS = pieces(DATA)
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(params=["memory", "disk"])
async def raw(server: EmbeddedServer, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Raw]:
    """Stores to which publishers cannot reach."""
    async with service(server.url, backend=request.param, disk=tmp_path, create_disk=True) as raw:
        yield raw


async def test_small_and_large_blobs(raw: Raw) -> None:
    assert await raw.put(b"small") == hashlib.sha256(b"small").hexdigest()
    assert "direct" not in (await raw.ask("caps")).json["features"]
    upload = await raw.upload(*CHUNKS)
    assert (await upload.stored()).json["stored"] == [[0, 5]]
    info = (await upload.commit()).json
    assert info == {**info, "digest": DIGEST, "size": len(DATA), "chunks": 6, "created": True}
    assert (await raw.ask("get", DIGEST.encode())).data == DATA
    for verify in (False, True):
        assert await raw.window(DIGEST, 0, 6, verify=verify) == dict(enumerate(CHUNKS))
        assert await raw.window(DIGEST, 4, 6, verify=verify) == {4: CHUNKS[4], 5: CHUNKS[5]}
    assert (await raw.frames(DIGEST, 6, 1))[0].error["name"] == "bad_range"
    assert (await raw.ask("delete", DIGEST.encode())).code == 0
    assert (await raw.ask("get", DIGEST.encode())).code == 404


async def test_a_commit_may_be_repeated_and_an_abort_comes_too_late(raw: Raw) -> None:
    upload = await raw.upload(*CHUNKS)
    for answer in await asyncio.gather(upload.commit(), upload.commit()):
        assert answer.json["digest"] == DIGEST
    assert (await upload.commit()).json["digest"] == DIGEST
    assert (await upload.abort()).error["name"] == "conflict"
    assert (await raw.ask("get", DIGEST.encode())).data == DATA


async def test_chunks_in_any_order_and_more_than_once(raw: Raw) -> None:
    upload = await raw.open()
    for order in ([3, 1, 5, 0, 4, 2], [2, 0, 5]):
        answers = await asyncio.gather(*(upload.send(index, CHUNKS[index]) for index in order))
        assert {answer.code for answer in answers} == {0}
    assert {index: upload.seqs[index] for index in range(6)} == {index: index + 1 for index in range(6)}
    assert (await upload.commit()).json["digest"] == DIGEST
    assert (await raw.ask("get", DIGEST.encode())).data == DATA


@pytest.mark.parametrize(
    ("index", "chunk", "headers"),
    [
        pytest.param(1, b"", {}, id="empty"),
        pytest.param(1, bytes(CHUNK + 1), {}, id="longer"),
        pytest.param(1, CHUNKS[1], {"Blob-Sum": "crc32=00000000"}, id="wrong-sum"),
        pytest.param(1, CHUNKS[1], {"Blob-Chunk": "x"}, id="no-index"),
        pytest.param(10**9, CHUNKS[1], {}, id="far-beyond-the-window"),
    ],
)
async def test_a_bad_chunk_is_refused_at_once(
    raw: Raw, index: int, chunk: bytes, headers: dict[str, str]
) -> None:
    upload = await raw.open()
    await upload.send(0, CHUNKS[0])
    assert (await upload.send(index, chunk, headers)).error["name"] == "bad_request"
    await raw.still_answers()


async def refused(upload: Upload, code: int) -> None:
    """The upload is refused now and later, and nothing is visible."""
    assert (await upload.commit()).code == code
    assert (await upload.commit()).code in (code, 408)
    assert (await upload.raw.ask("has", DIGEST.encode())).json["exists"] is False
    await upload.raw.still_answers()


async def test_a_short_chunk_in_the_middle_ends_the_upload(raw: Raw) -> None:
    upload = await raw.open()
    await upload.send(0, CHUNKS[0][:-1])
    assert (await upload.send(1, CHUNKS[1])).error["name"] == "bad_request"
    await refused(upload, 400)


async def test_two_contents_for_one_chunk_end_the_upload(raw: Raw) -> None:
    upload = await raw.upload(*CHUNKS)
    assert (await upload.send(2, CHUNKS[3])).error["name"] == "bad_request"
    await refused(upload, 400)


@pytest.mark.parametrize("changes", [{"digest": "0" * 64}, {"size": 1}, {"chunks": 5}])
async def test_a_wrong_declaration_ends_the_upload(raw: Raw, changes: dict[str, Any]) -> None:
    upload = await raw.upload(*CHUNKS)
    assert (await upload.commit(**changes)).error["name"] == "digest_mismatch"
    await refused(upload, 422)


async def test_an_abort_drops_the_upload(raw: Raw) -> None:
    upload = await raw.upload(*CHUNKS)
    assert (await upload.abort()).code == 0
    assert (await upload.abort()).code == 0
    assert (await upload.stored()).code == 408
    await refused(upload, 408)


async def test_a_commit_and_an_abort_race(raw: Raw) -> None:
    for number in range(10):
        data = pattern(CHUNK + 1, f"race {number}")
        upload = await raw.upload(*pieces(data))
        commit, abort = await asyncio.gather(upload.commit(), upload.abort())
        assert (commit.code, abort.code) in {(0, 409), (408, 0), (0, 0)}
        if commit.code == 0:
            assert (await raw.ask("get", commit.json["digest"].encode())).data == data


async def test_an_upload_belongs_to_its_worker(server: EmbeddedServer) -> None:
    async with service(server.url, backend="memory", workers=2) as raw:
        upload = await raw.upload(*CHUNKS)
        codes = {(await upload.commit(elsewhere=True, size=0)).code for _ in range(3)}
        assert codes <= {408, 422}
        assert (await raw.ask("caps")).json["backend"] == "memory"


async def test_a_relayed_upload_that_nobody_continues_expires(server: EmbeddedServer) -> None:
    async with service(server.url, backend="memory", upload_expiry=1.0) as raw:
        upload = await raw.upload(CHUNKS[0])
        async with asyncio.timeout(10):
            while (await upload.stored()).code != 408:  # noqa: ASYNC110 - a worker decides
                await asyncio.sleep(0.1)
        assert (await upload.commit()).code == 408


async def test_an_idle_upload_makes_room_for_another(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "MAX_UPLOADS", 2)
    async with service(server.url, backend="memory") as raw:
        first = await raw.upload(CHUNKS[0])
        second = await raw.upload(CHUNKS[0])
        assert (await raw.ask("put.open")).error["name"] == "busy"
        monkeypatch.setattr(relay, "IDLE", 0.0)
        third = await raw.upload(CHUNKS[0])
        assert (await first.stored()).code == 408
        assert (await second.stored()).code == (await third.stored()).code == 0


async def test_an_upload_is_opened_again_where_it_lives(server: EmbeddedServer) -> None:
    async with service(server.url, backend="memory", workers=2) as raw:
        upload = await raw.upload(*CHUNKS[:2])
        answers = [await raw.ask("put.open", {"upload": upload.id, "relayed": True}) for _ in range(10)]
        assert {answer.code for answer in answers} <= {0, 408}
        for answer in answers:
            if not answer.code:
                assert answer.json["chunk_subject"] == upload.opened["chunk_subject"]
