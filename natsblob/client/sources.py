"""Where the bytes of a put come from: memory, a path, an open file or an asynchronous iterable."""

from __future__ import annotations

import asyncio
import io
import stat
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import aclosing
from pathlib import Path
from typing import BinaryIO, Protocol, TypeAlias, cast

from natsblob.broker.cleanup import shielded
from natsblob.chunking import Block
from natsblob.errors import BadRequestError

BlobSource: TypeAlias = bytes | bytearray | memoryview | Path | BinaryIO | AsyncIterable[bytes]
"""What can be put."""


class Source(Protocol):
    """The bytes of one put. What its owner's file or iterable raises passes through."""

    @property
    def size(self) -> int | None:
        """Bytes in all, where that is known before they are read. Files may change: it is a hint."""
        ...

    @property
    def repeatable(self) -> bool:
        """Whether `blocks` can be called again and begins at the beginning."""
        ...

    def blocks(self, block_size: int) -> AsyncGenerator[Block, None]:
        """The bytes in pieces of at most `block_size`. To be closed by whoever iterates."""
        ...


async def source_of(given: object) -> Source:
    """The source that `given` is; `BadRequestError` where it is none, `OSError` where it cannot be read."""
    match given:
        case bytes() | bytearray() | memoryview():
            return _Memory(given)
        case Path():
            found = await asyncio.to_thread(given.stat)
            return _FileAt(given, found.st_size if stat.S_ISREG(found.st_mode) else None)
        case AsyncIterable():
            return _Stream(given)
        case io.TextIOBase():
            raise BadRequestError("the file is open for text; open it with mode 'rb'")
        case _ if hasattr(given, "read"):
            return await asyncio.to_thread(_OpenFile, cast("BinaryIO", given))
        case _:
            kind = type(given).__name__
            raise BadRequestError(
                f"what is put is bytes, a Path, a binary file or an async iterable of bytes, not {kind}"
            )


class _Memory:
    repeatable = True

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._bytes = memoryview(data).cast("B")
        self._changes = not isinstance(data, bytes)
        self.size = len(self._bytes)

    async def blocks(self, block_size: int) -> AsyncGenerator[Block, None]:
        for start in range(0, self.size, block_size):
            block = self._bytes[start : start + block_size]
            yield bytes(block) if self._changes else block


class _Stream:
    size = None
    repeatable = False

    def __init__(self, stream: AsyncIterable[bytes]) -> None:
        self._stream = stream

    async def blocks(self, block_size: int) -> AsyncGenerator[bytes, None]:
        async for block in self._stream:
            if not isinstance(block, bytes | bytearray | memoryview):
                raise BadRequestError(f"the iterable yields {type(block).__name__}, not bytes")
            view = memoryview(block).cast("B")
            for start in range(0, len(view), block_size):
                yield bytes(view[start : start + block_size])


class _FileAt:
    """A file that is opened for each reading. What is no regular file, a pipe for example, is read once."""

    def __init__(self, path: Path, size: int | None) -> None:
        self._path = path
        self.size = size
        self.repeatable = size is not None

    async def blocks(self, block_size: int) -> AsyncGenerator[bytes, None]:
        file = await asyncio.to_thread(self._path.open, "rb", buffering=0)
        try:
            async with aclosing(_read_ahead(file, block_size)) as blocks:
                async for block in blocks:
                    yield block
        finally:
            file.close()


class _OpenFile:
    """A file that the caller opened and closes, read from where it stands."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.repeatable = file.seekable()
        self.size: int | None = None
        if self.repeatable:
            self._start = file.tell()
            self.size = max(0, file.seek(0, io.SEEK_END) - self._start)
            file.seek(self._start)

    async def blocks(self, block_size: int) -> AsyncGenerator[bytes, None]:
        if self.repeatable:
            await asyncio.to_thread(self._file.seek, self._start)
        async with aclosing(_read_ahead(self._file, block_size)) as blocks:
            async for block in blocks:
                yield block


async def _read_ahead(file: io.RawIOBase | BinaryIO, block_size: int) -> AsyncGenerator[bytes, None]:
    """The blocks of a file; a thread reads one while the one before it is in use."""
    reading = asyncio.ensure_future(asyncio.to_thread(file.read, block_size))
    try:
        while block := await asyncio.shield(reading):
            reading = asyncio.ensure_future(asyncio.to_thread(file.read, block_size))
            yield block
        if block is None:
            raise BadRequestError("the file is not blocking; wrap it in an async iterable")
    finally:
        # The thread cannot be interrupted, and the file must not be closed under it.
        await shielded(_settled(reading))


async def _settled(reading: asyncio.Future[bytes | None]) -> None:
    await asyncio.wait([reading])
    if not reading.cancelled():
        reading.exception()
