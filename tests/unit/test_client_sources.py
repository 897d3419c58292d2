"""Where the bytes of a put come from, without a server."""

from __future__ import annotations

import asyncio
import io
import mmap
import os
import socket
import tempfile
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natsblob.client.sources import Source, read_descriptor, source_of
from natsblob.errors import BadRequestError
from natsblob.testing.payloads import cut, pattern, source

DATA = pattern(10_000)


async def read_all(given_source: Source, block_size: int = 999) -> bytes:
    async with aclosing(given_source.blocks(block_size)) as blocks:
        pieces = [block async for block in blocks]
    assert all(0 < len(piece) <= block_size for piece in pieces)
    return b"".join(pieces)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_memory_is_read_as_often_as_asked(kind: type) -> None:
    found = await source_of(kind(DATA))
    assert (found.size, found.repeatable) == (len(DATA), True)
    assert [await read_all(found) for _ in range(2)] == [DATA, DATA]


async def test_a_memoryview_counts_in_bytes() -> None:
    found = await source_of(memoryview(DATA).cast("I"))
    assert found.size == len(DATA)
    assert await read_all(found) == DATA


async def test_a_path_is_opened_for_each_reading(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    found = await source_of(path)
    assert (found.size, found.repeatable) == (len(DATA), True)
    assert [await read_all(found) for _ in range(2)] == [DATA, DATA]


async def test_a_named_pipe_is_read_once_and_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(DATA,))
    writer.start()
    found = await source_of(path)
    assert (found.size, found.repeatable) == (None, False)
    assert await read_all(found) == DATA
    writer.join()


async def test_an_open_file_is_read_from_where_it_stands() -> None:
    file = io.BytesIO(DATA)
    file.seek(123)
    found = await source_of(file)
    assert (found.size, found.repeatable) == (len(DATA) - 123, True)
    assert [await read_all(found) for _ in range(2)] == [DATA[123:], DATA[123:]]
    assert not file.closed


async def test_a_file_that_has_nothing_for_now_is_refused_not_cut_short() -> None:
    class NotBlocking(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: object) -> None:
            return None

    with pytest.raises(BadRequestError):
        await read_all(await source_of(NotBlocking()))


async def test_reading_ahead_is_one_block_and_errors_pass_through() -> None:
    class DiskError(OSError):
        pass

    class Failing(io.RawIOBase):
        reads = 0

        def readable(self) -> bool:
            return True

        def read(self, size: int = -1) -> bytes:
            self.reads += 1
            if self.reads == 4:
                raise DiskError
            return b"x" * size

    file = Failing()
    found = await source_of(file)
    async with aclosing(found.blocks(10)) as blocks:
        await anext(blocks)
        assert file.reads <= 2
        await anext(blocks)
        await anext(blocks)
        with pytest.raises(DiskError):
            await anext(blocks)


async def test_a_cancelled_read_waits_for_its_thread(tmp_path: Path) -> None:
    """The file is closed by whoever opened it: not while a thread still reads from it."""
    release = threading.Event()
    entered = threading.Event()

    class Slow(io.RawIOBase):
        inside = False

        def readable(self) -> bool:
            return True

        def read(self, size: int = -1) -> bytes:
            self.inside = True
            entered.set()
            release.wait(10)
            self.inside = False
            return b""

    file: BinaryIO = Slow()  # type: ignore[assignment]
    reading = asyncio.create_task(read_all(await source_of(file)))
    await asyncio.to_thread(entered.wait)
    reading.cancel()
    asyncio.get_running_loop().call_later(0.05, release.set)
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert not file.inside  # type: ignore[attr-defined]


@given(data=st.binary(max_size=5_000), cut_at=st.integers(1, 2_000), block_size=st.integers(1, 2_000))
async def test_an_iterable_is_cut_into_blocks(data: bytes, cut_at: int, block_size: int) -> None:
    found = await source_of(source(b"", *cut(data, cut_at)))
    assert (found.size, found.repeatable) == (None, False)
    assert await read_all(found, block_size) == data


def closed(file: io.IOBase) -> io.IOBase:
    file.close()
    return file


async def agen(*pieces: Any) -> Any:
    for piece in pieces:
        yield piece


NO_SOURCES: list[object] = [
    "text",
    5,
    None,
    io.StringIO("text"),
    [b"bytes"],
    (b"bytes" for _ in range(2)),
    {b"bytes"},
    io.BytesIO,
    Path,
    agen,
    len,
    closed(io.BytesIO(b"bytes")),
    closed(tempfile.TemporaryFile()),  # noqa: SIM115
    tempfile.TemporaryFile("w+"),  # noqa: SIM115
    io.BufferedWriter(io.BytesIO()),
]


# By number: some are shown with an address, which differs between processes.
@pytest.mark.parametrize("wrong", NO_SOURCES, ids=[str(number) for number in range(len(NO_SOURCES))])
async def test_what_is_no_source_is_refused(wrong: object) -> None:
    with pytest.raises(BadRequestError):
        await source_of(wrong)


async def test_a_coroutine_is_refused() -> None:
    async def fetch() -> bytes:
        return b"bytes"

    coroutine = fetch()
    with pytest.raises(BadRequestError):
        await source_of(coroutine)
    coroutine.close()


@pytest.mark.parametrize("wrong", ["text", None, 5, [1], Path("x")], ids=repr)
async def test_what_yields_no_bytes_is_refused_and_closed(wrong: object) -> None:
    class Reads:
        def __init__(self) -> None:
            self.pieces = [b"bytes", wrong]

        def read(self, size: int = -1) -> object:
            return self.pieces.pop(0)

    class ReadsAsync(Reads):
        async def read(self, size: int = -1) -> object:
            return self.pieces.pop(0)

    yielding = agen(b"bytes", wrong)
    given: list[object] = [yielding, ReadsAsync()]
    if wrong is not None:  # which says that there is nothing for now
        given.append(Reads())
    for one in given:
        with pytest.raises(BadRequestError):
            await read_all(await source_of(one))
    assert yielding.ag_frame is None


async def test_a_reader_that_has_nothing_and_no_descriptor_is_refused() -> None:
    class Nothing:
        def read(self, size: int) -> None:
            return None

    with pytest.raises(BadRequestError):
        await read_all(await source_of(Nothing()))


async def test_text_behind_a_wrapper_is_refused() -> None:
    with tempfile.NamedTemporaryFile("w+") as file:
        file.write("text")
        file.seek(0)
        with pytest.raises(BadRequestError):
            await read_all(await source_of(file))


@pytest.mark.parametrize("shape", [memoryview(DATA)[::3], memoryview(DATA)[::-1], memoryview(b"").cast("I")])
async def test_a_memoryview_of_any_shape_is_its_bytes(shape: memoryview) -> None:
    assert await read_all(await source_of(shape)) == shape.tobytes()
    assert await read_all(await source_of(agen(shape, b"", shape))) == 2 * shape.tobytes()


async def test_memory_of_several_dimensions_is_its_bytes() -> None:
    square = memoryview(DATA).cast("B", shape=[100, 100])
    assert await read_all(await source_of(square)) == DATA


async def test_a_memoryview_that_was_released_is_refused() -> None:
    view = memoryview(DATA)
    view.release()
    with pytest.raises(BadRequestError):
        await source_of(view)


async def test_what_is_changed_after_it_was_yielded_is_stored_as_it_was() -> None:
    memory = bytearray(10)

    async def reused() -> AsyncIterator[bytearray]:
        for number in range(5):
            memory[:] = bytes([number]) * 10
            yield memory

    class Reused:
        number = 0

        def read(self, size: int) -> memoryview | bytes:
            self.number += 1
            memory[:] = bytes([self.number]) * 10
            return memoryview(memory) if self.number <= 5 else b""

    blocks = [block async for block in (await source_of(reused())).blocks(10)]
    assert blocks == [bytes([number]) * 10 for number in range(5)]
    blocks = [block async for block in (await source_of(Reused())).blocks(10)]
    assert blocks == [bytes([number]) * 10 for number in range(1, 6)]


async def test_a_reader_of_its_own_mind_is_cut_to_size() -> None:
    class Generous:
        left = 3

        def read(self, size: int = -1) -> bytes:
            self.left -= 1
            return DATA if self.left >= 0 else b""

    assert await read_all(await source_of(Generous())) == 3 * DATA


class Unseekable(io.BytesIO):
    """Says that it can seek, and cannot."""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        raise io.UnsupportedOperation("seek")


@pytest.mark.parametrize("file", [Unseekable(DATA)])
async def test_a_file_that_cannot_seek_is_read_once(file: BinaryIO) -> None:
    found = await source_of(file)
    assert (found.size, found.repeatable) == (None, False)
    assert await read_all(found) == DATA


async def test_mapped_memory_is_read_like_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        found = await source_of(mapped)
        assert await read_all(found) == DATA


async def test_a_stream_of_the_loop_is_read_in_blocks_not_in_lines() -> None:
    reader = asyncio.StreamReader(limit=100)
    reader.feed_data(DATA)
    reader.feed_eof()
    assert await read_all(await source_of(reader)) == DATA


class Name(os.PathLike[str]):
    def __init__(self, path: Path) -> None:
        self._path = path

    def __fspath__(self) -> str:
        return str(self._path)


async def test_whatever_names_a_path_is_one(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"n\xffme")
    path.write_bytes(DATA)
    assert await read_all(await source_of(Name(path))) == DATA


async def test_a_file_whose_size_says_nothing_is_read_to_its_end() -> None:
    found = await source_of(Path("/proc/self/status"))
    assert b"VmRSS" in await read_all(found)


@pytest.mark.parametrize("change", [-5_000, 5_000])
async def test_a_file_that_changes_while_it_is_read_is_read_to_its_end(tmp_path: Path, change: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    found = await source_of(path)
    async with aclosing(found.blocks(1000)) as blocks:
        begin = bytes(await anext(blocks))
        os.truncate(path, len(DATA) + change)
        rest = b"".join([block async for block in blocks])
    assert len(begin + rest) == len(DATA) + change


async def test_what_cannot_be_read_names_its_path(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        with pytest.raises(BadRequestError):
            await source_of(tmp_path / "socket")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("missing", "loop", "x" * 300):
        with pytest.raises(OSError) as caught:
            await source_of(tmp_path / name)
        assert caught.value.filename == str(tmp_path / name)
    with pytest.raises(IsADirectoryError) as caught_directory:
        await read_all(await source_of(tmp_path))
    assert caught_directory.value.filename == str(tmp_path)


# Pipes


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("buffering", [0, -1])
async def test_a_pipe_is_read_to_its_end_whether_it_blocks_or_not(blocking: bool, buffering: int) -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, blocking)
    turn = asyncio.Event()

    async def write() -> None:
        for piece in cut(DATA, 1500):
            await turn.wait()
            await asyncio.to_thread(os.write, writing, piece)
        os.close(writing)

    with os.fdopen(reading, "rb", buffering=buffering) as file:
        task = asyncio.create_task(write())
        found = await source_of(file)
        asyncio.get_running_loop().call_later(0.05, turn.set)
        assert await read_all(found) == DATA
        await task


async def test_a_descriptor_is_read_to_its_end() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb"), os.fdopen(writing, "wb") as file:
        task = asyncio.create_task(collected(read_descriptor(reading, 999)))
        for piece in cut(DATA, 1500):
            file.write(piece)
            file.flush()
            await asyncio.sleep(0)
        file.close()
        assert await task == DATA


async def collected(blocks: AsyncGenerator[bytes, None]) -> bytes:
    async with aclosing(blocks):
        return b"".join([block async for block in blocks])


def open_descriptors() -> int:
    return len(list(Path("/dev/fd").iterdir()))


async def test_a_named_pipe_that_nobody_writes_to_can_be_given_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    threads, descriptors = threading.active_count(), open_descriptors()
    found = await source_of(tmp_path / "pipe")
    reading = asyncio.create_task(read_all(found))
    async with asyncio.timeout(10):
        while open_descriptors() == descriptors:
            await asyncio.to_thread(os.sched_yield)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert open_descriptors() == descriptors
    await asyncio.wait_for(asyncio.get_running_loop().shutdown_default_executor(), 5)
    assert threading.active_count() <= threads


async def test_a_named_pipe_that_was_closed_without_a_byte_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reading = asyncio.create_task(read_all(await source_of(path)))
    await asyncio.to_thread(lambda: path.open("wb").close())
    assert await reading == b""


async def test_the_end_of_a_pipe_is_final_although_somebody_writes_again(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(reading, "rb"):
        with path.open("wb") as first:
            first.write(b"first")
        async with aclosing(read_descriptor(reading, 999)) as blocks:
            assert await anext(blocks) == b"first"
            with path.open("wb") as second:
                second.write(b"second")
            assert [block async for block in blocks] == []


# Generators


async def test_a_generator_that_has_ended_is_refused_not_stored_as_nothing() -> None:
    generator = agen(b"bytes")
    assert await read_all(await source_of(generator)) == b"bytes"
    with pytest.raises(BadRequestError):
        await source_of(generator)


@pytest.mark.parametrize("how", ["left", "cancelled", "raised"])
async def test_a_generator_is_closed_however_the_put_ends(how: str) -> None:
    closed_now = asyncio.Event()
    reached = asyncio.Event()

    async def generator() -> AsyncGenerator[bytes, None]:
        try:
            yield b"bytes"
            if how == "raised":
                raise LookupError
            reached.set()
            await asyncio.Event().wait()
        finally:
            closed_now.set()

    found = await source_of(generator())
    if how == "left":
        async with aclosing(found.blocks(10)) as blocks:
            await anext(blocks)
    elif how == "raised":
        with pytest.raises(LookupError):
            await read_all(found)
    else:
        task = asyncio.create_task(read_all(found))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert closed_now.is_set()
