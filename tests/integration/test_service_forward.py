"""Uploads that a worker relays into the stream: staged like direct ones, and headers are the worker's own."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any
from uuid import uuid4

import nats
import pytest

from natsblob.broker.embedded import EmbeddedServer
from natsblob.service import forward, forwarded
from natsblob.store.jetstream import JetStreamStore
from natsblob.testing.payloads import pattern
from tests.integration.raw import CHUNK, Raw, Upload, pieces, service

DATA = pattern(5 * CHUNK + 100)
CHUNKS = pieces(DATA)
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(params=["own bucket", "foreign bucket"])
async def raw(server: EmbeddedServer, request: pytest.FixtureRequest) -> AsyncIterator[Raw]:
    """A bucket of natsblob, of which relaying is asked; and one that another client has made."""
    async with AsyncExitStack() as stack:
        settings: dict[str, Any] = {"bucket": uuid4().hex}
        if request.param == "foreign bucket":
            nc = await stack.enter_async_context(await nats.connect(server.url))
            await nc.jetstream().create_object_store(settings["bucket"])
        yield await stack.enter_async_context(service(server.url, **settings))


@pytest.fixture
async def two(server: EmbeddedServer) -> AsyncIterator[Raw]:
    async with service(server.url, workers=2) as raw:
        yield raw


async def relayed(raw: Raw, *chunks: bytes) -> Upload:
    upload = await raw.open(relayed=True)
    assert upload.opened["relayed"] is True
    for index, chunk in enumerate(chunks):
        assert (await upload.send(index, chunk)).code == 0
    return upload


async def go_on(upload: Upload, *, elsewhere: bool = True) -> Upload:
    """The same upload at another worker, or at the same."""
    async with asyncio.timeout(20):
        while True:
            opened = (await upload.raw.ask("put.open", {"upload": upload.id, "relayed": True})).json
            assert opened["upload"] == upload.id
            if (opened["chunk_subject"] != upload.opened["chunk_subject"]) == elsewhere:
                return Upload(upload.raw, opened, dict(upload.sizes), dict(upload.seqs))


async def test_a_large_blob(raw: Raw) -> None:
    upload = await relayed(raw, *CHUNKS)
    assert upload.opened["chunk_subject"].startswith(f"{raw.prefix}.relay.{raw.ids[0]}.")
    assert (await upload.stored()).json["stored"] == [[0, 5]]
    info = (await upload.commit()).json
    assert info == {**info, "digest": DIGEST, "size": len(DATA), "chunks": 6, "created": True}
    assert (await raw.ask("get", DIGEST.encode())).data == DATA
    for verify in (False, True):
        assert await raw.window(DIGEST, 0, 6, verify=verify) == dict(enumerate(CHUNKS))
    assert (await upload.commit()).json["digest"] == DIGEST
    assert (await upload.abort()).error["name"] == "conflict"


async def test_an_ack_is_that_of_the_stream(raw: Raw) -> None:
    upload = await relayed(raw, *CHUNKS)
    last = await raw.js.get_msg(raw.stream, seq=upload.seqs[5])
    assert last.data == CHUNKS[5]
    repeated = (await upload.send(5, CHUNKS[5])).json
    assert (repeated["seq"], repeated["duplicate"]) == (last.seq, True)


async def test_chunks_in_any_order_and_more_than_once_lie_in_theirs(raw: Raw) -> None:
    upload = await relayed(raw)
    for order in ([3, 1, 5, 0, 4, 2], [2, 0, 5]):
        answers = await asyncio.gather(*(upload.send(index, CHUNKS[index]) for index in order))
        assert {answer.code for answer in answers} == {0}
    seqs = [upload.seqs[index] for index in range(6)]
    assert seqs == sorted(set(seqs))
    assert (await upload.commit()).json["digest"] == DIGEST
    assert (await raw.ask("get", DIGEST.encode())).data == DATA
    assert list((await raw.staged()).values()) == [6, 6] or sum((await raw.staged()).values()) == 6


@pytest.mark.parametrize(
    ("index", "chunk", "headers"),
    [
        pytest.param(1, b"", {}, id="empty"),
        pytest.param(1, bytes(CHUNK + 1), {}, id="longer"),
        pytest.param(1, CHUNKS[1], {"Blob-Sum": "crc32=00000000"}, id="wrong-sum"),
        pytest.param(1, CHUNKS[1], {"Blob-Chunk": "x"}, id="no-index"),
        pytest.param(10**9, CHUNKS[1], {}, id="far-beyond-the-window"),
        pytest.param(0, CHUNKS[1], {}, id="other-content"),
    ],
)
async def test_a_bad_chunk_is_refused_at_once_and_harms_nothing(
    raw: Raw, index: int, chunk: bytes, headers: dict[str, str]
) -> None:
    upload = await relayed(raw, CHUNKS[0])
    assert (await upload.send(index, chunk, headers)).error["name"] == "bad_request"
    for number, good in enumerate(CHUNKS):
        upload.sizes[number] = len(good)
        assert (await upload.send(number, good)).code == 0
    upload.sizes.pop(10**9, None)
    assert (await upload.commit()).json["digest"] == DIGEST


async def test_nothing_follows_a_short_chunk(raw: Raw) -> None:
    upload = await relayed(raw, CHUNKS[0][:-1])
    assert (await upload.send(1, CHUNKS[1])).error["name"] == "bad_request"


@pytest.mark.parametrize("changes", [{"digest": "0" * 64}, {"size": 1}, {"chunks": 5}])
async def test_a_wrong_declaration_is_refused(raw: Raw, changes: dict[str, Any]) -> None:
    upload = await relayed(raw, *CHUNKS)
    assert (await upload.commit(**changes)).code in (400, 422)
    assert (await raw.ask("has", DIGEST.encode())).json["exists"] is False
    await raw.still_answers()


async def test_an_abort_drops_the_chunks(raw: Raw) -> None:
    upload = await relayed(raw, *CHUNKS)
    assert (await upload.abort()).code == 0
    assert sum((await raw.staged()).values()) == 0
    assert (await upload.send(0, CHUNKS[0])).error["name"] == "upload_expired"
    assert (await upload.commit()).code == 408


async def test_a_stage_that_nobody_opened_here_takes_nothing(raw: Raw) -> None:
    """Who reads a blob knows the stage of its chunks, and could publish more of them."""
    upload = await relayed(raw, *CHUNKS)
    await upload.commit()
    before = await raw.staged()
    assert (await upload.send(6, CHUNKS[0])).error["name"] == "upload_expired"
    assert await raw.staged() == before


async def test_a_settled_upload_is_not_opened_again(two: Raw) -> None:
    """Its client could add chunks to what is a blob by now."""
    committed, dropped = await relayed(two, *CHUNKS), await relayed(two, *CHUNKS[:2])
    assert (await committed.commit()).code == 0
    assert (await dropped.abort()).code == 0
    for upload in (committed, dropped):
        for _ in range(4):
            for more in ({"relayed": True}, {}):
                reopened = await two.ask("put.open", {"upload": upload.id, **more})
                assert reopened.error["name"] == "upload_expired"


async def test_what_another_worker_committed_takes_no_more_chunks(two: Raw) -> None:
    upload = await relayed(two, *CHUNKS[:3])
    other = await go_on(upload)
    for index in (3, 4, 5):
        assert (await other.send(index, CHUNKS[index])).code == 0
    assert (await other.commit(marks=None)).json["digest"] == DIGEST
    async with asyncio.timeout(10):
        while (answer := await upload.send(2, CHUNKS[2])).code != 408:
            assert answer.json["duplicate"] is True


async def test_no_chunk_is_taken_while_an_upload_is_committed(
    raw: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pattern(3 * CHUNK)
    upload = await relayed(raw, *pieces(data))
    body = upload.request()
    commit = JetStreamStore.commit

    async def meanwhile(*args: Any) -> Any:
        assert (await upload.send(3, CHUNKS[5])).error["name"] == "busy"
        assert (await upload.send(2, pieces(data)[2])).json["duplicate"] is True
        return await commit(*args)

    monkeypatch.setattr(JetStreamStore, "commit", meanwhile)
    at = str(upload.opened["commit_subject"]).removeprefix(f"{raw.prefix}.")
    assert (await raw.ask(at, body)).json["digest"] == hashlib.sha256(data).hexdigest()
    stage = upload.opened["chunk_subject"].rpartition(".")[2]
    assert (await raw.staged())[f"$O.{raw.bucket}.C.{stage}"] == 3


async def test_a_commit_needs_no_second_look(raw: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = await relayed(raw, *CHUNKS)

    async def never(*_: object, **__: object) -> None:
        raise AssertionError("chunks are read back")

    monkeypatch.setattr("natsblob.objectstore.staging.Staging._read_back", never)
    monkeypatch.setattr("natsblob.objectstore.staging.places_as_seen", never)
    assert (await upload.commit()).json["digest"] == DIGEST


async def test_any_worker_tells_commits_and_aborts(two: Raw) -> None:
    for number in range(4):
        data = pattern(3 * CHUNK, f"any {number}")
        upload = await relayed(two, *pieces(data))
        assert (await upload.stored()).json["stored"] == [[0, 2]]
        assert (await upload.commit(elsewhere=True)).json["digest"] == hashlib.sha256(data).hexdigest()
        assert (await two.ask("get", hashlib.sha256(data).hexdigest().encode())).data == data
        assert (await (await relayed(two, *pieces(data))).abort()).code == 0


async def test_an_upload_goes_on_at_another_worker(two: Raw) -> None:
    upload = await relayed(two, *CHUNKS[:3])
    other = await go_on(upload)
    for index in (2, 3, 4, 5):
        assert (await other.send(index, CHUNKS[index])).code == 0
    assert (await other.stored()).json["stored"] == [[0, 5]]
    assert (await other.commit()).json["digest"] == DIGEST
    assert (await two.ask("get", DIGEST.encode())).data == DATA


async def test_one_upload_at_two_workers_at_once(two: Raw) -> None:
    upload = await relayed(two)
    other = await go_on(upload)
    sent = ((upload, other)[index % 2].send(index, CHUNKS[index]) for index in range(6))
    assert {answer.code for answer in await asyncio.gather(*sent)} == {0}
    other.sizes = {index: len(chunk) for index, chunk in enumerate(CHUNKS)}
    assert (await other.commit(marks=None)).json["digest"] == DIGEST
    assert (await two.ask("get", DIGEST.encode())).data == DATA


async def test_two_contents_at_two_workers_never_become_a_blob(two: Raw) -> None:
    """The second worker's chunks pass for duplicates: it has not stored what it was given."""
    upload = await relayed(two, *CHUNKS)
    other = await go_on(upload)
    lies = pieces(pattern(len(DATA), "a lie"))
    for index, lie in enumerate(lies):
        assert (await other.send(index, lie)).json["duplicate"] is True
    digest = hashlib.sha256(b"".join(lies)).hexdigest()
    assert (await other.commit(digest=digest)).error["name"] == "digest_mismatch"
    assert (await two.ask("has", digest.encode())).json["exists"] is False


async def test_a_direct_upload_goes_on_relayed(server: EmbeddedServer) -> None:
    async with service(server.url) as raw:
        upload = await raw.upload(*CHUNKS[:3])
        assert upload.opened["chunk_subject"].startswith(f"$O.{raw.bucket}.C.")
        other = await go_on(upload)
        for index in (3, 4, 5):
            assert (await other.send(index, CHUNKS[index])).code == 0
        assert (await other.commit()).json["digest"] == DIGEST


async def test_a_forgotten_upload_goes_on(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "MAX_KNOWN", 2)
    async with service(server.url) as raw:
        upload = await relayed(raw, *CHUNKS[:2])
        idle = [await relayed(raw) for _ in range(5)]
        assert (await upload.send(2, CHUNKS[2])).code == 0, "those without a chunk are forgotten first"
        others = [await relayed(raw, CHUNKS[0]) for _ in range(2)]
        assert (await upload.send(3, CHUNKS[3])).error["name"] == "upload_expired"
        upload = await go_on(upload, elsewhere=False)
        for index in (3, 4, 5):
            assert (await upload.send(index, CHUNKS[index])).code == 0
        assert (await upload.commit()).json["digest"] == DIGEST
        assert len(idle) + len(others) == 7


async def test_what_is_beyond_the_budget_is_refused_for_now(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "MAX_EARLY", CHUNK)
    async with service(server.url) as raw:
        upload = await relayed(raw)
        answers = [await upload.send(0, CHUNKS[0])]
        waiting = asyncio.create_task(upload.send(2, CHUNKS[2]))
        await raw.still_answers()
        refused = await upload.send(3, CHUNKS[3])
        assert (refused.error["name"], refused.error["retryable"]) == ("busy", True)
        answers += [await upload.send(1, CHUNKS[1]), await waiting, await upload.send(3, CHUNKS[3])]
        assert {answer.code for answer in answers} == {0}


async def test_many_uploads_at_once_share_a_worker(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "MAX_HELD", 4 * CHUNK)
    async with service(server.url) as raw:

        async def put(number: int) -> None:
            data = pattern(8 * CHUNK, f"one of many {number}")
            upload = await relayed(raw)
            for index, chunk in enumerate(pieces(data)):
                while (answer := await upload.send(index, chunk)).code:
                    assert answer.error["name"] == "busy"
                    await asyncio.sleep(0.01)
            assert (await upload.commit()).json["digest"] == hashlib.sha256(data).hexdigest()

        await asyncio.gather(*(put(number) for number in range(16)))


@pytest.mark.parametrize("changes", [{"chunks": 2}, {"size": 1}, {"digest": "0" * 64}], ids=str)
async def test_an_upload_whose_commit_was_refused_takes_no_more_chunks(
    two: Raw, changes: dict[str, Any]
) -> None:
    upload = await relayed(two, *CHUNKS)
    assert (await upload.commit(**changes)).code in (400, 409, 422)
    assert (await upload.send(len(CHUNKS), b"late")).code == 408
    assert await two.staged() == {}


@pytest.mark.parametrize("fresh", [60.0, 0.0])
async def test_what_passed_long_ago_is_read_back(
    two: Raw, monkeypatch: pytest.MonkeyPatch, fresh: float
) -> None:
    monkeypatch.setattr(forwarded, "FRESH", fresh)
    passed: list[bool] = []
    original = JetStreamStore.commit

    async def noted(store: JetStreamStore, stage: str, request: Any, seen: Any) -> Any:
        passed.append(seen is not None)
        return await original(store, stage, request, seen)

    monkeypatch.setattr(JetStreamStore, "commit", noted)
    upload = await relayed(two, *CHUNKS)
    assert (await upload.commit()).json["digest"] == DIGEST
    assert passed == [fresh > 0]
