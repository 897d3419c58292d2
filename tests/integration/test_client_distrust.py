"""The client against a service that loses, repeats, reorders and damages what it sends."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import natsblob
from natsblob import chunking, wire
from natsblob.broker.connection import Access, Connection, connect
from natsblob.broker.embedded import EmbeddedServer
from natsblob.broker.message import Message
from natsblob.broker.retry import LONGEST_DELAY, LONGEST_HINT, delay
from natsblob.digest import Digest
from natsblob.errors import (
    BadRequestError,
    BlobCorruptError,
    BlobError,
    BlobNotFoundError,
    BusyError,
    DeadlineError,
    InternalError,
    TooLargeError,
    UnavailableError,
)
from natsblob.wire import SUM, Caps, GetRequest, Info, Page, chunk_sum

CHUNK = 1000
WINDOW = 8
DATA = random.Random("distrust").randbytes(41 * CHUNK + 77)
DIGEST = Digest.of(DATA)
PREFIX = "test.distrust"

Frame = tuple[int, bytes, dict[str, str]]
Meddle = Callable[[list[Frame], GetRequest, int], list[Frame]]
"""Changes the frames of an answer, which is the n-th of all answers."""


@dataclass
class Liar:
    """A service with one blob, which treats its frames as `meddle` says, and ends windows if told so."""

    connection: Connection
    meddle: Meddle = lambda frames, _request, _number: frames
    ends: bool = True
    small: Callable[[GetRequest], bytes] | None = None
    size: str = str(len(DATA))
    gone: bool = False
    silent: bool = False
    was_asked: asyncio.Event = field(default_factory=asyncio.Event)
    asked: list[GetRequest] = field(default_factory=list)
    info: Info = field(
        default_factory=lambda: Info(DIGEST, len(DATA), chunking.count(len(DATA), CHUNK), CHUNK)
    )

    def answer(self, reply: str, data: bytes, **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.connection._client.enqueue(reply, "", named, data)

    def refuse(self, reply: str, error: BlobError) -> None:
        body, headers = wire.encode_error(error)
        self.connection._client.enqueue(reply, "", headers, body)

    def caps(self, message: Message) -> None:
        caps = Caps(1, "none", "liar", 1, CHUNK, WINDOW, 100_000, 2**40, 1000, [])
        self.answer(message.reply, wire.encode(caps))

    def stat(self, message: Message) -> None:
        self.was_asked.set()
        if self.silent:
            return
        self.answer(message.reply, wire.encode(self.info))

    def get(self, message: Message) -> None:
        request = wire.decode(message.data, GetRequest)
        self.asked.append(request)
        if self.gone:
            self.refuse(message.reply, BlobNotFoundError("no such blob"))
        elif request.mode == "stream":
            self._stream(message.reply, request)
        elif self.small is not None:
            self.answer(message.reply, self.small(request), Blob_Size=self.size)
        else:
            self.refuse(message.reply, TooLargeError("too large for one reply"))

    def _stream(self, reply: str, request: GetRequest) -> None:
        wanted = range(request.first, min(request.first + request.count, self.info.chunks))
        frames: list[Frame] = []
        for index in wanted:
            chunk = DATA[index * CHUNK : (index + 1) * CHUNK]
            frames.append((index, chunk, {"Blob_Sum": wire.chunk_sum(chunk)}))
        for index, chunk, headers in self.meddle(frames, request, len(self.asked)):
            self.answer(reply, chunk, Blob_Chunk=str(index), **headers)
        if self.ends:
            self.answer(reply, b"", Status="204")


@asynccontextmanager
async def a_liar(server: EmbeddedServer, **how: Any) -> AsyncIterator[tuple[natsblob.Client, Liar]]:
    subjects = wire.Subjects(PREFIX)
    async with AsyncExitStack() as stack:
        connection = await stack.enter_async_context(await connect(Access((server.url,))))
        liar = Liar(connection, **how)
        for subject, handler in (
            (subjects.caps, liar.caps),
            (subjects.stat, liar.stat),
            (subjects.get, liar.get),
        ):
            await stack.enter_async_context(connection.subscribe(subject, handler))
        blobs = await stack.enter_async_context(natsblob.connect(server.url, prefix=PREFIX, timeout=5.0))
        yield blobs, liar
        assert blobs._service.connection._waiting == {}


def shuffled(frames: list[Frame], _request: GetRequest, number: int) -> list[Frame]:
    return random.Random(number).sample(frames, len(frames))


def repeated(frames: list[Frame], _request: GetRequest, _number: int) -> list[Frame]:
    return [frame for frame in frames for _ in range(2)]


def lossy(frames: list[Frame], _request: GetRequest, number: int) -> list[Frame]:
    keep = random.Random(number)
    return [frame for frame in frames if keep.random() > 0.3]


def with_strangers(frames: list[Frame], _request: GetRequest, _number: int) -> list[Frame]:
    strangers: list[Frame] = [(10_000, b"x" * CHUNK, {}), (frames[0][0], b"short", {}), (-1, b"", {})]
    return [*strangers, *frames]


@pytest.mark.parametrize("meddle", [shuffled, repeated, lossy, with_strangers])
async def test_frames_are_put_in_order_and_asked_for_again(
    server: EmbeddedServer, tmp_path: Path, meddle: Meddle
) -> None:
    async with a_liar(server, meddle=meddle) as (blobs, _):
        assert await blobs.get(DIGEST) == DATA
        async with blobs.open(DIGEST) as reader:
            assert b"".join([chunk async for chunk in reader]) == DATA
        await blobs.download(DIGEST, tmp_path / "file")
        assert (tmp_path / "file").read_bytes() == DATA


async def test_a_window_without_an_end_is_asked_for_again(server: EmbeddedServer) -> None:
    def first_is_cut(frames: list[Frame], _request: GetRequest, number: int) -> list[Frame]:
        return frames[:3] if number == 2 else frames

    async with a_liar(server, meddle=first_is_cut, ends=False) as (blobs, liar):
        assert await blobs.get(DIGEST) == DATA
        assert any(request.first == 3 for request in liar.asked)


async def test_what_no_replica_sends_comes_through_a_worker(server: EmbeddedServer) -> None:
    def relayed_only(frames: list[Frame], request: GetRequest, _number: int) -> list[Frame]:
        return frames if request.verify else []

    async with a_liar(server, meddle=relayed_only) as (blobs, _):
        assert await blobs.get(DIGEST) == DATA


async def test_a_request_does_not_outlast_its_connection(fresh_server: EmbeddedServer) -> None:
    """The answer that went with the connection is not waited for, and the request is repeated."""
    async with a_liar(fresh_server) as (blobs, liar):
        liar.silent = True
        service = blobs._service
        request = asyncio.create_task(
            service.once(service.subjects.stat, DIGEST.hex.encode(), timeout=3600.0)
        )
        repeated_request = asyncio.create_task(blobs.stat(DIGEST, timeout=60.0))
        await liar.was_asked.wait()
        liar.silent = False
        await fresh_server.restart()
        async with asyncio.timeout(60):
            with pytest.raises(UnavailableError):
                await request
            assert await repeated_request == liar.info


async def test_a_read_without_progress_ends_in_time(server: EmbeddedServer) -> None:
    async with a_liar(server, meddle=lambda *_: []) as (blobs, _):
        async with asyncio.timeout(20):
            with pytest.raises((UnavailableError, DeadlineError)):
                await blobs.get(DIGEST, timeout=1.0)


def damaged(frames: list[Frame], request: GetRequest, _number: int) -> list[Frame]:
    """One byte of chunk 30 is wrong, and its sum agrees; whoever asks for verified frames gets good ones."""
    if request.verify:
        return frames
    return _damaged(frames)


def always_damaged(frames: list[Frame], _request: GetRequest, _number: int) -> list[Frame]:
    return _damaged(frames)


def _damaged(frames: list[Frame]) -> list[Frame]:
    return [
        _with_its_sum(index, chunk[:-1] + bytes([chunk[-1] ^ 1])) if index == 30 else (index, chunk, headers)
        for index, chunk, headers in frames
    ]


def _with_its_sum(index: int, chunk: bytes) -> Frame:
    return index, chunk, {SUM: chunk_sum(chunk)}


async def test_bad_bytes_are_read_again_through_a_worker_that_checks(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with a_liar(server, meddle=damaged) as (blobs, liar):
        assert await blobs.get(DIGEST) == DATA
        assert any(request.verify for request in liar.asked)
        await blobs.download(DIGEST, tmp_path / "file")
        assert (tmp_path / "file").read_bytes() == DATA


async def test_bad_bytes_are_never_delivered_as_good(server: EmbeddedServer, tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"before")
    async with a_liar(server, meddle=always_damaged) as (blobs, _):
        with pytest.raises(BlobCorruptError):
            await blobs.get(DIGEST)
        with pytest.raises(BlobCorruptError):
            await blobs.download(DIGEST, target)
    assert target.read_bytes() == b"before"
    assert [path.name for path in target.parent.iterdir()] == ["file"]


async def test_a_reader_holds_back_the_last_bytes_of_a_bad_blob(server: EmbeddedServer) -> None:
    async with a_liar(server, meddle=always_damaged) as (blobs, _):
        async with blobs.open(DIGEST) as reader:
            with pytest.raises(BlobCorruptError):
                await reader.read()
            assert reader.tell() == 0
        async with blobs.open(DIGEST) as reader:
            while reader.tell() + 300 < len(DATA):
                assert len(await reader.read(300)) == 300
            for _ in range(2):
                with pytest.raises(BlobCorruptError):
                    await reader.read(300)
            assert reader.tell() + 300 >= len(DATA)


async def test_chunks_without_sums_are_proven_by_the_whole(server: EmbeddedServer) -> None:
    def bare(frames: list[Frame], _request: GetRequest, _number: int) -> list[Frame]:
        return [(index, chunk, {}) for index, chunk, _ in frames]

    def wrong(frames: list[Frame], request: GetRequest, number: int) -> list[Frame]:
        return bare(_damaged(frames), request, number)

    async with a_liar(server, meddle=bare) as (blobs, _):
        assert await blobs.get(DIGEST, offset=1500, length=2000) == DATA[1500:3500]
        async with blobs.open(DIGEST) as reader:
            reader.seek(1500)
            assert await reader.read(10) == DATA[1500:1510]
            assert await reader.read() == DATA[1510:]
    async with a_liar(server, meddle=wrong) as (blobs, _):
        with pytest.raises(BlobCorruptError):
            await blobs.get(DIGEST, offset=1500, length=2000)
        async with blobs.open(DIGEST) as reader:
            with pytest.raises(BlobCorruptError):
                await reader.read(10)


async def test_a_chunk_of_a_range_is_held_against_its_sum(server: EmbeddedServer) -> None:
    def damaged_once(frames: list[Frame], _request: GetRequest, number: int) -> list[Frame]:
        if number > 2:
            return frames
        return [(index, b"\0" * len(chunk), headers) for index, chunk, headers in frames]

    async with a_liar(server, meddle=damaged_once) as (blobs, _):
        assert await blobs.get(DIGEST, offset=1500, length=2000) == DATA[1500:3500]


async def test_one_reply_is_verified_too(server: EmbeddedServer) -> None:
    wrong = bytes(len(DATA))
    async with a_liar(server, small=lambda request: DATA if request.verify else wrong) as (blobs, _):
        assert await blobs.get(DIGEST) == DATA
    async with a_liar(server, small=lambda _: wrong) as (blobs, _):
        with pytest.raises(BlobCorruptError):
            await blobs.get(DIGEST)
    async with a_liar(server, small=lambda _: DATA[:-1]) as (blobs, _):
        with pytest.raises(InternalError):
            await blobs.get(DIGEST)


async def test_a_blob_that_goes_while_it_is_read_is_not_found(server: EmbeddedServer) -> None:
    async with a_liar(server) as (blobs, liar), blobs.open(DIGEST) as reader:
        assert await anext(reader) == DATA[:CHUNK]
        liar.gone = True
        with pytest.raises(BlobNotFoundError):
            await reader.read()


@pytest.mark.parametrize("size", ["", "-1", "9" * 5000])
async def test_a_size_that_is_none_is_an_error_of_the_service(server: EmbeddedServer, size: str) -> None:
    async with a_liar(server, small=lambda _: DATA, size=size) as (blobs, _):
        with pytest.raises(InternalError):
            await blobs.get(DIGEST)


async def test_chunks_of_no_bytes_are_an_error_of_the_service(server: EmbeddedServer) -> None:
    async with a_liar(server, info=Info(DIGEST, len(DATA), 1, 0)) as (blobs, _):
        with pytest.raises(InternalError):
            await blobs.get(DIGEST, offset=5, length=5)


OTHER = b"EVIL" * 10_000
ANOTHER = Info(Digest.of(OTHER), len(OTHER), 1, len(OTHER))
WRONG_SHAPES = {
    "another blob": ANOTHER,
    "fewer chunks": Info(DIGEST, len(DATA), 41, CHUNK),
    "more chunks": Info(DIGEST, len(DATA), 2**53, CHUNK),
    "one chunk": Info(DIGEST, len(DATA), 1, CHUNK),
    "a larger size": Info(DIGEST, len(DATA) + CHUNK, 42, CHUNK),
    "no chunks": Info(DIGEST, len(DATA), 0, CHUNK),
    "chunks without a size": Info(DIGEST, 0, 42, CHUNK),
    "no chunk size": Info(DIGEST, len(DATA), 42, 0),
}


@pytest.mark.parametrize("info", WRONG_SHAPES.values(), ids=WRONG_SHAPES.keys())
async def test_nothing_is_read_of_a_blob_that_is_described_wrongly(
    server: EmbeddedServer, tmp_path: Path, info: Info
) -> None:
    async def iterate(client: natsblob.Client) -> None:
        async with client.open(DIGEST) as reader:
            async for _ in reader:
                pass

    async def read(client: natsblob.Client) -> None:
        async with client.open(DIGEST) as reader:
            await reader.read()

    async with a_liar(server, info=info) as (client, _):
        for reading in (
            iterate(client),
            read(client),
            client.get(DIGEST),
            client.download(DIGEST, tmp_path / "file"),
        ):
            with pytest.raises((BlobCorruptError, InternalError)):
                await reading
        assert not (tmp_path / "file").exists()


def test_no_answer_makes_a_client_publish_to_an_api() -> None:
    opened = wire.Opened("u" * 22, "$O.blobs.C.x", "blob.commit.w", CHUNK, 8, datetime.now(UTC))
    for subject in ("$JS.API.STREAM.PURGE.OBJ_blobs", "$SYS.REQ.SERVER.PING"):
        forged = wire.encode(opened).replace(b"$O.blobs.C.x", subject.encode())
        with pytest.raises(BadRequestError):
            wire.decode(forged, wire.Opened)


@pytest.mark.parametrize("size", [0, -1, 2**30, 2**60])
def test_no_service_has_clients_hold_chunks_of_any_size(size: int) -> None:
    caps = wire.encode(Caps(1, "none", "liar", 1, CHUNK, WINDOW, 100_000, 2**40, 1000, []))
    with pytest.raises(BadRequestError):
        wire.decode(caps.replace(b'"chunk_size":1000', b'"chunk_size":%d' % size), Caps)


@pytest.mark.parametrize("hint", [1e300, -1e12, 10**400, 1e12, float("inf")])
def test_no_hint_makes_a_client_wait_for_long_or_not_at_all(hint: float) -> None:
    error = BusyError("later", retry_after_ms=hint)
    assert 0 <= delay(0, error) <= LONGEST_HINT + LONGEST_DELAY


PAGES = {
    "the same for ever": Page([ANOTHER], ANOTHER.digest),
    "not in order": Page([replace(ANOTHER, digest=Digest.parse("f" * 64)), ANOTHER]),
    "an end that does not move": Page([], Digest.parse("0" * 64)),
}


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES.keys())
async def test_a_list_ends_whatever_pages_come(server: EmbeddedServer, page: Page) -> None:
    async with a_liar(server) as (client, liar):
        subject = wire.Subjects(PREFIX).list
        async with liar.connection.subscribe(
            subject, lambda message: liar.answer(message.reply, wire.encode(page))
        ):
            with pytest.raises(InternalError):
                async for _ in client.list():
                    pass


async def test_answers_about_another_blob_are_no_answers(server: EmbeddedServer) -> None:
    subjects = wire.Subjects(PREFIX)
    async with a_liar(server) as (client, liar), AsyncExitStack() as stack:

        def answer(message: Message) -> None:
            liar.answer(message.reply, wire.encode(ANOTHER))

        for subject in (subjects.put, subjects.delete):
            await stack.enter_async_context(liar.connection.subscribe(subject, answer))
        with pytest.raises(InternalError):
            await client.put(b"small")
        with pytest.raises(InternalError):
            await client.delete(DIGEST)
