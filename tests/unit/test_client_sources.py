"""Where the bytes of a put come from, without a server."""

from __future__ import annotations

import asyncio
import io
import os
import threading
from contextlib import aclosing
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natsblob.client.sources import Source, source_of
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


@pytest.mark.parametrize("wrong", ["text", 5, None, io.StringIO("text"), [b"bytes"]])
async def test_what_is_no_source_is_refused(wrong: object) -> None:
    with pytest.raises(BadRequestError):
        await source_of(wrong)
