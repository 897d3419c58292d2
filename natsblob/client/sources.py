"""Where the bytes of a put come from: memory, a path, an open file, a reader or an asynchronous iterable."""

from __future__ import annotations

import asyncio
import inspect
import io
import os
import select
import stat
import types
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol, TypeAlias, cast

from natsblob.broker.cleanup import acquired, shielded
from natsblob.chunking import Block
from natsblob.errors import BadRequestError


class AsyncReader(Protocol):
    """What reads bytes without blocking: an `asyncio.StreamReader`, a `BlobReader`, a file of aiofiles."""

    def read(self, n: int, /) -> Awaitable[bytes]: ...


BlobSource: TypeAlias = (
    bytes | bytearray | memoryview | os.PathLike[str] | BinaryIO | AsyncReader | AsyncIterable[bytes]
)
"""What can be put."""

_LOOK_UP_MS: Final = 200
"""Milliseconds after which a thread that waits for somebody to write looks whether it is still wanted."""


class Source(Protocol):
    """The bytes of one put. What its owner's file or iterable raises passes through."""

    @property
    def size(self) -> int | None:
        """Bytes in all, if that is known before they are read. Files may change: it is a hint."""
        ...

    @property
    def repeatable(self) -> bool:
        """Whether `blocks` can be called again and begins at the beginning."""
        ...

    def blocks(self, block_size: int) -> AsyncGenerator[Block, None]:
        """The bytes in pieces of at most `block_size`. To be closed by whoever iterates."""
        ...


async def source_of(given: object) -> Source:
    """The source that `given` is; `BadRequestError` if it is none, `OSError` if it cannot be read."""
    if isinstance(given, bytes | bytearray | memoryview):
        return _Memory(given)
    if isinstance(given, os.PathLike):
        return await asyncio.to_thread(_at_path, Path(os.fsdecode(given)))
    read = None if isinstance(given, type) else getattr(given, "read", None)
    if inspect.iscoroutinefunction(read):
        return _AsyncReader(read)
    if isinstance(given, AsyncIterable) and not isinstance(given, type):
        return _stream(given)
    if callable(read):
        return await asyncio.to_thread(_open_file, given)
    raise BadRequestError(_refusal(given))


def _refusal(given: object) -> str:
    """Why this cannot be put, and what can be put instead."""
    kind = type(given).__name__
    if isinstance(given, str):
        return "text cannot be put: give Path(name) for a file, text.encode() for the text itself"
    if inspect.iscoroutine(given):
        return "a coroutine cannot be put: await it, and put what it returns"
    if callable(given):
        return f"a {kind} cannot be put: call it, and put what it returns"
    if isinstance(given, Iterator | list | tuple):
        return f"a {kind} cannot be put: join its pieces, or yield them from an async generator"
    return f"what is put is bytes, a Path, a binary file or an async iterable of bytes, not {kind}"


def _view(data: Any, whose: str) -> Block:
    """The bytes of what a caller handed over, of whatever shape; `BadRequestError` if it has none."""
    if not isinstance(data, bytes | bytearray | memoryview):
        raise BadRequestError(f"{whose} yields {type(data).__name__}, not bytes")
    try:
        view = memoryview(data)
        # Only what lies in one piece, in units of this machine, can be looked at as bytes without a copy.
        with suppress(TypeError):
            return view.cast("B")
        return view.tobytes()
    except ValueError as error:
        raise BadRequestError(f"{whose} yields a memoryview that was released") from error


class _Memory:
    repeatable = True

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._bytes = memoryview(_view(data, "the source"))
        self._changes = not isinstance(data, bytes)
        self.size = len(self._bytes)

    async def blocks(self, block_size: int) -> AsyncGenerator[Block, None]:
        for start in range(0, self.size, block_size):
            block = self._bytes[start : start + block_size]
            yield bytes(block) if self._changes else block


def _stream(given: AsyncIterable[bytes]) -> _Stream:
    if isinstance(given, types.AsyncGeneratorType) and given.ag_frame is None:
        raise BadRequestError("the async generator has ended already: make a new one for each put")
    return _Stream(given)


class _Stream:
    """What an asynchronous iterable yields. A generator is closed at the end, however the put ends."""

    size = None
    repeatable = False

    def __init__(self, stream: AsyncIterable[bytes]) -> None:
        self._stream = stream

    async def blocks(self, block_size: int) -> AsyncGenerator[bytes, None]:
        pieces = aiter(self._stream)
        try:
            async for piece in pieces:
                for block in _cut(piece, block_size, "the iterable"):
                    yield block
        finally:
            if isinstance(pieces, AsyncGenerator):
                await pieces.aclose()


class _AsyncReader:
    """A reader whose `read` is awaited, until it returns no bytes."""

    size = None
    repeatable = False

    def __init__(self, read: Callable[[int], Awaitable[bytes]]) -> None:
        self._read = read

    async def blocks(self, block_size: int) -> AsyncGenerator[bytes, None]:
        while piece := await self._read(block_size):
            for block in _cut(piece, block_size, "the reader"):
                yield block
        _view(piece, "the reader")  # None is no end


def _cut(piece: object, block_size: int, whose: str) -> Iterator[bytes]:
    """Copies of the bytes, which their owner may change later, in blocks of at most `block_size`."""
    if isinstance(piece, bytes) and 0 < len(piece) <= block_size:
        yield piece
        return
    view = _view(piece, whose)
    for start in range(0, len(view), block_size):
        yield bytes(view[start : start + block_size])


def _at_path(path: Path) -> Source:
    """The source at a path, which is looked at by a thread."""
    found = path.stat()
    if stat.S_ISFIFO(found.st_mode) or stat.S_ISCHR(found.st_mode):
        return _Pipe(path)
    if stat.S_ISSOCK(found.st_mode):
        raise BadRequestError(f"{path} is a socket, which cannot be read as a file")
    return _FileAt(path, found.st_size if stat.S_ISREG(found.st_mode) else None)


class _FileAt:
    """A file that is opened for each reading. What is no regular file, a device for example, is read once."""

    def __init__(self, path: Path, size: int | None) -> None:
        self._path = path
        self.size = size
        self.repeatable = size is not None

    async def blocks(self, block_size: int) -> AsyncGenerator[bytes, None]:
        file = await acquired(lambda: self._path.open("rb", buffering=0), io.RawIOBase.close)
        try:
            async with aclosing(_read_ahead(file, block_size)) as blocks:
                async for block in blocks:
                    yield block
        finally:
            file.close()


class _Pipe:
    """A FIFO, from the moment in which somebody opens it to write, or a device; read once, to its end."""

    size = None
    repeatable = False

    def __init__(self, path: Path) -> None:
        self._path = path

    async def blocks(self, block_size: int) -> AsyncGenerator[bytes, None]:
        # Opening it otherwise would wait, in a thread that nobody can stop, for whoever writes.
        pipe = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            async with aclosing(read_descriptor(pipe, block_size)) as blocks:
                async for block in blocks:
                    yield block
        finally:
            os.close(pipe)


def _open_file(file: Any) -> _OpenFile:
    """A file that the caller has opened; `BadRequestError` if it cannot be read as bytes."""
    if isinstance(file, io.TextIOBase):
        raise BadRequestError("the file is open for text; open it with mode 'rb'")
    if getattr(file, "closed", False) is True:
        raise BadRequestError("the file is closed")
    readable = getattr(file, "readable", None)
    if callable(readable) and not readable():
        raise BadRequestError("the file is not open for reading; open it with mode 'rb'")
    return _OpenFile(cast("BinaryIO", file))


class _OpenFile:
    """A file that the caller opened and closes, read from where it stands."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._start = 0
        self.size: int | None = None
        self.repeatable = False
        # Not every reader can say where it stands, and some say that they can and cannot.
        with suppress(AttributeError, OSError):
            if file.seekable():
                self._start = file.tell()
                file.seek(0, io.SEEK_END)
                self.size = max(0, file.tell() - self._start)
                file.seek(self._start)
                self.repeatable = True

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
        while True:
            piece = await asyncio.shield(reading)
            if piece is None:
                await _until_readable(file)
            elif not piece:
                _view(piece, "the file")
                return
            # Copied before the next read, for which the reader may use the same memory.
            blocks = [] if piece is None else list(_cut(piece, block_size, "the file"))
            reading = asyncio.ensure_future(asyncio.to_thread(file.read, block_size))
            for block in blocks:
                yield block
    finally:
        # The thread cannot be interrupted, and the file must not be closed under it.
        await shielded(_settled(reading))


async def _settled(reading: asyncio.Future[Any]) -> None:
    await asyncio.wait([reading])
    if not reading.cancelled():
        reading.exception()


async def _until_readable(file: io.RawIOBase | BinaryIO) -> None:
    """Wait until a file that does not block, and has nothing for now, has more or ends."""
    try:
        descriptor = file.fileno()
    except (AttributeError, OSError) as error:
        raise BadRequestError(
            "read() returns None, and there is no descriptor to wait for more at"
        ) from error
    while not await asyncio.to_thread(_readable, descriptor, _LOOK_UP_MS):
        pass


async def read_descriptor(descriptor: int, block_size: int) -> AsyncGenerator[bytes, None]:
    """What can be read from a pipe, a terminal or a socket, to its end, whether it blocks or not.

    No thread waits for longer than `_LOOK_UP_MS`, so that whoever is cancelled leaves none behind. The end
    is final, although a terminal, or another writer of a FIFO, may have more afterwards.
    """
    ended = False
    while not ended:
        reading = asyncio.ensure_future(asyncio.to_thread(_read_some, descriptor, block_size))
        try:
            block, ended = await asyncio.shield(reading)
        finally:
            await shielded(_settled(reading))
        if block:
            yield block


def _read_some(descriptor: int, most: int) -> tuple[bytes, bool]:
    """What is there, up to `most` bytes or none after a while, and whether that is the end."""
    pieces: list[bytes] = []
    timeout = _LOOK_UP_MS
    while most > 0 and _readable(descriptor, timeout):
        timeout = 0
        try:
            piece = os.read(descriptor, most)
        except BlockingIOError:  # somebody else who has it open was faster
            break
        if not piece:
            return b"".join(pieces), True
        pieces.append(piece)
        most -= len(piece)
    return b"".join(pieces), False


def _readable(descriptor: int, timeout_ms: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(timeout_ms))
