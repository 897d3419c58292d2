"""The client against real workers on a real server: everything it promises, through faults too."""

from __future__ import annotations

import asyncio
import io
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO, cast

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import natsblob
from natsblob.broker.connection import Access, connect
from natsblob.broker.embedded import EmbeddedServer
from natsblob.broker.jetstream import JetStream
from natsblob.client.part import part_name
from natsblob.client.service import UPLOADS_AT_ONCE
from natsblob.digest import Digest
from natsblob.errors import (
    BadRangeError,
    BadRequestError,
    BlobNotFoundError,
    ConflictError,
    DigestMismatchError,
    NoRespondersError,
    UploadExpiredError,
)
from natsblob.testing.payloads import HangingSource, cut, source
from natsblob.testing.services import running_service, running_worker
from tests.integration.subjects import subjects_of

CHUNK = 64 * 1024
WINDOW = 8 * CHUNK
INLINE = 1024 * 1024 - 4096
LARGE = 5 * WINDOW + CHUNK // 3
"""Several windows, more than is asked for ahead, and a short chunk at the end."""
BUCKET = "client"
PREFIX = "test.client"

SIZES = {
    "empty": 0,
    "one-byte": 1,
    "chunk-1": CHUNK - 1,
    "chunk": CHUNK,
    "chunk+1": CHUNK + 1,
    "inline": INLINE,
    "inline+1": INLINE + 1,
    "two-windows": 2 * WINDOW,
    "large": LARGE,
}


def data_of(size: int, seed: str) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def service(server: EmbeddedServer) -> AsyncIterator[str]:
    """The address of a server on which two workers with small chunks answer."""
    options = {"bucket": BUCKET, "prefix": PREFIX, "chunk_size": CHUNK, "window_bytes": WINDOW}
    async with running_service(server.url, workers=2, **options):
        yield server.url


@pytest_asyncio.fixture
async def blobs(service: str) -> AsyncIterator[natsblob.Client]:
    async with natsblob.connect(service, prefix=PREFIX) as client:
        yield client
        assert_nothing_leaked(client)


def assert_nothing_leaked(client: natsblob.Client) -> None:
    service = client._service
    assert service.connection._waiting == {}
    assert service.windows._heard_at == {}
    assert service.uploads._heard_at == {}


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def staged_chunks(url: str, bucket: str = BUCKET) -> int:
    """Chunks in the bucket that belong to no blob; decisions about uploads are none."""
    async with await connect(Access((url,))) as connection:
        jetstream = JetStream(connection)
        chunks = await subjects_of(jetstream, f"OBJ_{bucket}", f"$O.{bucket}.C.*")
        named = 0
        async with natsblob.connect(url, prefix=PREFIX) as client:
            async for info in client.list():
                named += info.chunks
    return sum(chunks.values()) - named


# Every kind of source, every way to read


class Unseekable(io.RawIOBase):
    """A pipe, as far as a reader can tell, which gives less than is asked for."""

    def __init__(self, data: bytes) -> None:
        self._inner = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._inner.read(min(size, 40_000))


def _path(data: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(data)
    return path


SOURCES: dict[str, Callable[[bytes, Path], natsblob.BlobSource]] = {
    "bytes": lambda data, _: data,
    "bytearray": lambda data, _: bytearray(data),
    "memoryview": lambda data, _: memoryview(data),
    "path": _path,
    "file": lambda data, tmp_path: _path(data, tmp_path).open("rb"),
    "pipe": lambda data, _: cast("BinaryIO", Unseekable(data)),
    "iterable": lambda data, _: source(*cut(data, 50_001)),
}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("kind", SOURCES)
async def test_what_was_put_is_got_back(blobs: natsblob.Client, tmp_path: Path, kind: str, size: int) -> None:
    data = data_of(size, f"{kind}/{size}")
    given_source = SOURCES[kind](data, tmp_path)

    info = await blobs.put(given_source)

    assert (info.digest, info.size) == (Digest.of(data), size)
    assert await blobs.get(info.digest) == data
    if isinstance(given_source, io.IOBase):
        assert not given_source.closed
        given_source.close()


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
async def test_every_way_to_read_gives_the_same_bytes(
    blobs: natsblob.Client, tmp_path: Path, size: int
) -> None:
    data = data_of(size, f"read/{size}")
    digest = (await blobs.put(data)).digest

    async with blobs.open(digest) as reader:
        assert (reader.size, reader.tell()) == (size, 0)
        assert await reader.read() == data
        assert await reader.read() == b""
        assert reader.seek(0) == 0
        assert b"".join([chunk async for chunk in reader]) == data
        reader.seek(-size // 2, io.SEEK_END)
        assert await reader.read() == data[size - -(-size // 2) :]
    async with blobs.open(digest) as reader:
        pieces = []
        while piece := await reader.read(30_011):
            pieces.append(piece)
        assert b"".join(pieces) == data
    target = tmp_path / "target"
    assert (await blobs.download(digest, target)).size == size
    assert target.read_bytes() == data
    assert names_in(tmp_path) == [target.name]


@pytest.fixture(scope="module")
def large() -> bytes:
    return data_of(LARGE, "ranges")


edges = st.sampled_from([0, 1, CHUNK - 1, CHUNK, CHUNK + 1, WINDOW, WINDOW + 1, INLINE, LARGE - 1, LARGE])
numbers = edges | st.integers(0, LARGE)
anywhere = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@anywhere
@given(offset=numbers, length=st.none() | numbers | st.integers(0, 2**40))
async def test_a_range_is_a_slice(
    blobs: natsblob.Client, large: bytes, offset: int, length: int | None
) -> None:
    digest = (await blobs.put(large, digest=Digest.of(large))).digest
    stop = LARGE if length is None else offset + length
    assert await blobs.get(digest, offset=offset, length=length) == large[offset:stop]


@settings(anywhere, max_examples=30)
@given(steps=st.lists(st.tuples(st.none() | numbers, st.integers(-1, 3 * CHUNK)), max_size=8))
async def test_a_reader_reads_as_a_file_does(
    blobs: natsblob.Client, large: bytes, steps: list[tuple[int | None, int]]
) -> None:
    digest = (await blobs.put(large, digest=Digest.of(large))).digest
    file = io.BytesIO(large)
    async with blobs.open(digest) as reader:
        for position, count in steps:
            if position is not None:
                assert reader.seek(position) == file.seek(position)
            assert await reader.read(count) == file.read(count)
            assert reader.tell() == file.tell()


# Answers


async def test_putting_twice_creates_once(blobs: natsblob.Client) -> None:
    for size in (100, LARGE):
        data = data_of(size, "twice")
        first = await blobs.put(data)
        second = await blobs.put(data, digest=str(first.digest))
        assert (first.created, second.created) == (True, False)
        assert first.digest == second.digest


async def test_known_content_is_not_sent_again(blobs: natsblob.Client) -> None:
    data = data_of(LARGE, "known")
    info = await blobs.put(data)
    unfinished = HangingSource(data[: INLINE + 1])  # would never end
    assert (await blobs.put(unfinished, digest=info.digest)).size == LARGE


async def test_a_wrong_digest_stores_nothing(blobs: natsblob.Client, service: str) -> None:
    wrong = Digest.of(b"something else")
    for size in (100, LARGE):
        data = data_of(size, "wrong digest")
        with pytest.raises(DigestMismatchError):
            await blobs.put(data, digest=wrong)
        assert not await blobs.has(wrong)
        assert not await blobs.has(Digest.of(data))
    assert await staged_chunks(service) == 0


async def test_an_unknown_blob_is_not_found(blobs: natsblob.Client, tmp_path: Path) -> None:
    unknown = Digest.of(b"never put")

    async def read() -> None:
        async with blobs.open(unknown):
            pass

    assert not await blobs.has(unknown)
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: blobs.get(unknown),
        lambda: blobs.get(unknown, offset=5),
        lambda: blobs.stat(unknown),
        lambda: blobs.delete(unknown),
        lambda: blobs.download(unknown, tmp_path / "target"),
        read,
    ]
    for call in calls:
        with pytest.raises(BlobNotFoundError):
            await call()
    assert names_in(tmp_path) == []


async def test_a_range_past_the_end_is_cut_and_beyond_it_refused(blobs: natsblob.Client) -> None:
    for size in (100, LARGE):
        digest = (await blobs.put(data_of(size, "past"))).digest
        assert await blobs.get(digest, offset=size) == b""
        assert len(await blobs.get(digest, offset=size - 1, length=50)) == 1
        with pytest.raises(BadRangeError):
            await blobs.get(digest, offset=size + 1)


async def test_bad_arguments_are_refused_before_anything_is_sent(blobs: natsblob.Client) -> None:
    digest = Digest.of(b"")
    refused: list[Callable[[], Awaitable[object]]] = [
        lambda: blobs.get("0" * 63),
        lambda: blobs.get(digest, offset=-1),
        lambda: blobs.get(digest, length=-1),
        lambda: blobs.missing([digest, digest.hex.upper()]),
        lambda: blobs.put(cast("bytes", "text")),
        lambda: blobs.put(cast("BinaryIO", io.StringIO("text"))),
        lambda: blobs.put(source(cast("bytes", "text"))),
    ]
    for call in refused:
        with pytest.raises(BadRequestError):
            await call()


async def test_missing_answers_in_order_and_any_number(blobs: natsblob.Client) -> None:
    stored = [(await blobs.put(f"stored {number}".encode())).digest for number in range(3)]
    unknown = [Digest.of(f"unknown {number}".encode()) for number in range(1_500)]
    asked: list[Digest | str] = [unknown[0], *stored, *unknown, str(unknown[0])]
    assert await blobs.missing(asked) == [unknown[0], *unknown, unknown[0]]
    assert await blobs.missing([]) == []


async def test_list_goes_through_all_pages_in_order(server: EmbeddedServer) -> None:
    options = {"bucket": "client-list", "prefix": "test.client.list"}
    async with (
        running_worker(server.url, **options),
        natsblob.connect(server.url, prefix=options["prefix"]) as blobs,
    ):
        assert [info async for info in blobs.list()] == []
        batches = [[f"{number}".encode() for number in range(start, 1_100, 50)] for start in range(50)]
        for batch in batches:
            await asyncio.gather(*(blobs.put(data) for data in batch))
        expected = sorted(Digest.of(data) for batch in batches for data in batch)
        assert [info.digest async for info in blobs.list()] == expected
        some = expected[0].hex[:1]
        listed = [info.digest async for info in blobs.list(some)]
        assert listed == [digest for digest in expected if digest.hex.startswith(some)]
        with pytest.raises(BadRequestError):
            await anext(blobs.list("not hex"))


async def test_delete_removes(blobs: natsblob.Client) -> None:
    info = await blobs.put(data_of(LARGE, "delete"))
    assert (await blobs.delete(info.digest)).size == LARGE
    assert not await blobs.has(info.digest)
    with pytest.raises(BlobNotFoundError):
        await blobs.get(info.digest)


async def test_stat_and_caps_tell_what_there_is(blobs: natsblob.Client) -> None:
    digest = (await blobs.put(data_of(LARGE, "stat"))).digest
    info = await blobs.stat(str(digest))
    assert (info.size, info.chunk_size, info.chunks) == (LARGE, CHUNK, -(-LARGE // CHUNK))
    caps = await blobs.caps()
    assert (caps.bucket, caps.chunk_size, caps.window) == (BUCKET, CHUNK, WINDOW // CHUNK)


async def test_where_nobody_answers_that_is_said_in_time(server: EmbeddedServer) -> None:
    async with natsblob.connect(server.url, prefix="nobody", timeout=0.3) as blobs:
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: blobs.put(b"data"),
            lambda: blobs.get(Digest.of(b"data")),
            lambda: blobs.has(Digest.of(b"data")),
        ]
        for call in calls:
            async with asyncio.timeout(5):
                with pytest.raises(NoRespondersError):
                    await call()


async def test_a_prefix_that_is_no_subject_is_refused() -> None:
    with pytest.raises(BadRequestError):
        async with natsblob.connect(prefix="a subject"):
            pass


# Progress


async def test_progress_only_grows_and_ends_at_the_size(blobs: natsblob.Client, tmp_path: Path) -> None:
    for size in (0, 100, LARGE):
        data = data_of(size, "progress")
        digest = Digest.of(data)
        for call in (
            lambda report, data=data: blobs.put(data, progress=report),
            lambda report, data=data: blobs.put(source(data), progress=report),
            lambda report, digest=digest: blobs.get(digest, progress=report),
            lambda report, digest=digest: blobs.download(digest, tmp_path / "file", progress=report),
        ):
            seen: list[tuple[int, int | None]] = []
            await call(lambda done, total, seen=seen: seen.append((done, total)))
            assert seen[-1] == (size, size)
            assert [done for done, _ in seen] == sorted(done for done, _ in seen)
            assert {total for _, total in seen} <= {None, size}
            if size == LARGE:
                assert len(seen) > 3


class Stop(Exception):  # noqa: N818 - raised by a caller's callback, not by natsblob
    pass


def stop_at(size: int) -> natsblob.Progress:
    def report(done: int, _: int | None) -> None:
        if done >= size:
            raise Stop

    return report


# Downloads that go on


async def test_a_download_goes_on_where_it_was_interrupted(blobs: natsblob.Client, tmp_path: Path) -> None:
    data = data_of(LARGE, "resume")
    digest = (await blobs.put(data)).digest
    target = tmp_path / "file"
    target.write_bytes(b"what was there before")

    with pytest.raises(Stop):
        await blobs.download(digest, target, progress=stop_at(LARGE // 2))

    assert target.read_bytes() == b"what was there before"
    part = target.with_name(part_name(target.name, digest, 255))
    kept = part.stat().st_size // CHUNK * CHUNK
    assert kept >= LARGE // 2 - CHUNK
    seen: list[int] = []
    await blobs.download(digest, target, progress=lambda done, _: seen.append(done))
    assert seen[0] == kept
    assert target.read_bytes() == data
    assert not part.exists()


@pytest.mark.parametrize("damage", ["flipped", "too-long", "complete", "complete-flipped"])
async def test_what_an_earlier_download_left_is_not_trusted(
    blobs: natsblob.Client, tmp_path: Path, damage: str
) -> None:
    data = data_of(LARGE, "damage")
    digest = (await blobs.put(data)).digest
    target = tmp_path / "file"
    flipped = bytes([data[0] ^ 1]) + data[1:]
    left = {
        "flipped": flipped[: 3 * CHUNK + 5],
        "too-long": data + b"more",
        "complete": data,
        "complete-flipped": flipped,
    }
    target.with_name(part_name(target.name, digest, 255)).write_bytes(left[damage])

    await blobs.download(digest, target)

    assert target.read_bytes() == data
    assert names_in(tmp_path) == [target.name]


async def test_two_downloads_to_one_path_do_not_meet(blobs: natsblob.Client, tmp_path: Path) -> None:
    data = data_of(LARGE, "meet")
    digest = (await blobs.put(data)).digest
    target = tmp_path / "file"
    results = await asyncio.gather(
        *(blobs.download(digest, target) for _ in range(4)), return_exceptions=True
    )
    refused = [result for result in results if isinstance(result, BaseException)]
    assert len(refused) < 4
    assert all(isinstance(error, ConflictError) for error in refused)
    assert target.read_bytes() == data
    assert names_in(tmp_path) == [target.name]


async def test_a_file_that_cannot_be_written_is_an_error_of_the_system(
    blobs: natsblob.Client, tmp_path: Path
) -> None:
    digest = (await blobs.put(b"data")).digest
    with pytest.raises(FileNotFoundError):
        await blobs.download(digest, tmp_path / "no" / "such" / "folder")
    with pytest.raises(IsADirectoryError):
        await blobs.download(digest, tmp_path)
    with pytest.raises(FileNotFoundError):
        await blobs.put(tmp_path / "nothing")


# Cancellation


@pytest.mark.parametrize("pieces", [0, 1, 4, 40])
async def test_a_cancelled_put_leaves_nothing(blobs: natsblob.Client, service: str, pieces: int) -> None:
    data = data_of(LARGE, f"cancelled/{pieces}")
    hanging = HangingSource(*list(cut(data, CHUNK))[:pieces])
    task = asyncio.create_task(blobs.put(hanging))
    await hanging.reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await staged_chunks(service) == 0
    assert_nothing_leaked(blobs)


async def test_a_put_may_be_cancelled_at_any_step(blobs: natsblob.Client, service: str) -> None:
    outcomes = set[bool]()
    for turn in range(0, 120, 7):
        data = data_of(INLINE + 3 * CHUNK, f"any step/{turn}")
        task = asyncio.create_task(blobs.put(data))
        for _ in range(turn):
            await asyncio.sleep(0.0003)
        task.cancel()
        await asyncio.wait([task])
        assert_nothing_leaked(blobs)
        if not task.cancelled() or await blobs.has(Digest.of(data)):
            assert await blobs.get(Digest.of(data)) == data
        outcomes.add(task.cancelled())
        assert (await blobs.put(data)).digest == Digest.of(data)
        assert await blobs.get(Digest.of(data)) == data
    assert True in outcomes
    assert await staged_chunks(service) == 0


async def test_a_read_may_be_cancelled_at_any_step(blobs: natsblob.Client) -> None:
    data = data_of(LARGE, "cancelled read")
    digest = (await blobs.put(data)).digest
    outcomes = set[bool]()
    for turn in range(0, 60, 3):
        task = asyncio.create_task(blobs.get(digest))
        for _ in range(turn):
            await asyncio.sleep(0.0003)
        task.cancel()
        await asyncio.wait([task])
        assert_nothing_leaked(blobs)
        assert await blobs.get(digest) == data
        assert task.cancelled() or task.result() == data
        outcomes.add(task.cancelled())
    assert True in outcomes


async def test_a_cancelled_read_has_not_moved(blobs: natsblob.Client) -> None:
    data = data_of(LARGE, "not moved")
    digest = (await blobs.put(data)).digest
    async with blobs.open(digest) as reader:
        collected = b""
        while len(collected) < LARGE:
            task = asyncio.create_task(reader.read(3 * CHUNK))
            await asyncio.sleep(0.001)
            task.cancel()
            await asyncio.wait([task])
            collected += b"" if task.cancelled() else task.result()
            assert reader.tell() == len(collected)
            collected += await reader.read(CHUNK + 1)
    assert collected == data


# Loss of what it was talking to


@asynccontextmanager
async def two_workers(server: EmbeddedServer, name: str) -> AsyncIterator[tuple[natsblob.Client, list[int]]]:
    options = {"bucket": f"client-{name}", "prefix": f"test.{name}", "chunk_size": CHUNK}
    async with (
        running_service(server.url, workers=2, window_bytes=WINDOW, **options) as workers,
        natsblob.connect(server.url, prefix=f"test.{name}") as blobs,
    ):
        yield blobs, [worker.pid for worker in workers]


async def test_uploads_whose_source_is_slow_keep_nobody_waiting(blobs: natsblob.Client) -> None:
    end = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield os.urandom(2_000_000)
        await end.wait()

    waiting = [asyncio.create_task(blobs.put(slow())) for _ in range(UPLOADS_AT_ONCE)]
    async with asyncio.timeout(60):
        assert (await blobs.put(os.urandom(2_000_000))).created
        end.set()
        await asyncio.gather(*waiting)


@pytest.mark.parametrize("victim", [0, 1])
async def test_a_put_goes_on_when_a_worker_dies(server: EmbeddedServer, victim: int) -> None:
    data = data_of(16 * WINDOW, "put through a death")
    async with two_workers(server, f"put{victim}") as (blobs, pids):

        async def pieces() -> AsyncIterator[bytes]:
            for number, piece in enumerate(cut(data, CHUNK)):
                if number == 50:
                    os.kill(pids[victim], 9)
                yield piece

        info = await blobs.put(pieces())
        assert info.digest == Digest.of(data)
        assert await blobs.get(info.digest) == data
        assert_nothing_leaked(blobs)


@pytest.mark.parametrize("victim", [0, 1])
async def test_a_read_goes_on_when_a_worker_dies(server: EmbeddedServer, victim: int) -> None:
    data = data_of(16 * WINDOW, "read through a death")
    async with two_workers(server, f"get{victim}") as (blobs, pids):
        digest = (await blobs.put(data)).digest
        collected = []
        async with blobs.open(digest) as reader:
            async for chunk in reader:
                collected.append(chunk)
                if len(collected) == 50:
                    os.kill(pids[victim], 9)
        assert b"".join(collected) == data
        assert_nothing_leaked(blobs)


async def test_a_busy_worker_is_asked_again_later(server: EmbeddedServer) -> None:
    options = {"bucket": "client-busy", "prefix": "test.busy", "max_requests": 1}
    async with (
        running_worker(server.url, **options),
        natsblob.connect(server.url, prefix="test.busy") as blobs,
    ):
        data = [f"{number}".encode() for number in range(40)]
        infos = await asyncio.gather(*(blobs.put(one) for one in data))
        assert await asyncio.gather(*(blobs.get(info.digest) for info in infos)) == data


async def test_an_upload_that_was_lost_begins_again(server: EmbeddedServer, tmp_path: Path) -> None:
    """On a directory chunks go through one worker, and an upload is lost with it."""
    options = {
        "prefix": "test.lost",
        "backend": "disk",
        "create_disk": True,
        "disk": tmp_path / "store",
        "chunk_size": CHUNK,
    }
    data = data_of(8 * WINDOW, "lost")
    file = _path(data, tmp_path)
    async with (
        running_worker(server.url, window_bytes=WINDOW, **options) as first,
        natsblob.connect(server.url, prefix="test.lost") as blobs,
    ):
        reached = asyncio.Event()
        seen: list[int] = []

        def kill_in_the_middle(done: int, _: int | None) -> None:
            seen.append(done)
            if done > 4 * WINDOW and not reached.is_set():
                os.kill(first.pid, 9)
                reached.set()

        put = asyncio.create_task(blobs.put(file, progress=kill_in_the_middle))
        await reached.wait()
        async with running_worker(server.url, window_bytes=WINDOW, **options):
            assert (await put).digest == Digest.of(data)
            assert seen == sorted(seen)
            assert await blobs.get(Digest.of(data)) == data


async def test_a_lost_upload_of_what_cannot_be_read_again_is_an_error(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    options = {
        "prefix": "test.gone",
        "backend": "disk",
        "create_disk": True,
        "disk": tmp_path / "store",
        "chunk_size": CHUNK,
    }
    async with (
        running_worker(server.url, window_bytes=WINDOW, **options) as worker,
        natsblob.connect(server.url, prefix="test.gone") as blobs,
    ):

        async def pieces() -> AsyncIterator[bytes]:
            for number, piece in enumerate(cut(data_of(4 * WINDOW, "gone"), CHUNK)):
                if number == 24:
                    os.kill(worker.pid, 9)
                yield piece

        with pytest.raises(UploadExpiredError):
            await blobs.put(pieces())
