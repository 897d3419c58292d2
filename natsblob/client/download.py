"""Downloading a blob into a file: verified before it has its name, resumed where it was interrupted."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from natsblob import chunking
from natsblob.broker.cleanup import shielded
from natsblob.client.fetch import Fetch, corrupt
from natsblob.client.progress import Gauge
from natsblob.digest import Digest, Hasher
from natsblob.errors import ConflictError
from natsblob.wire import Info

_BLOCK: Final = 4 * 1024 * 1024
"""Bytes read at a time of what is there already."""


async def download(fetch: Fetch, path: Path, gauge: Gauge) -> Info:
    """Fetch the blob into `path`, by way of `part_path`; see `Client.download`."""
    info = fetch.info
    if await asyncio.to_thread(path.is_dir):
        raise IsADirectoryError(f"{path} is a directory; name the file to download to")
    async with _part_file(part_path(path, info.digest)) as part:
        await part.resume(info)
        if not await _fill(fetch, part, gauge, verify=False):
            # Bad bytes may be those of an earlier download: all of them, once, through a worker that checks.
            await part.begin_again()
            if not await _fill(fetch, part, gauge, verify=True):
                await asyncio.to_thread(part.path.unlink)
                raise corrupt(info.digest)
        await part.become(path)
    return info


def part_path(path: Path, digest: Digest) -> Path:
    """Where the bytes are collected: beside the target, under a name that later attempts find again."""
    return path.with_name(f".{path.name}.{digest.short}.part")


async def _fill(fetch: Fetch, part: _PartFile, gauge: Gauge, *, verify: bool) -> bool:
    """Append what is missing, and whether the whole is what it should be."""
    size = part.size
    gauge.at(size)
    first = chunking.count(size, max(1, fetch.info.chunk_size))
    async with aclosing(fetch.chunks(first, verify=verify)) as chunks:
        async for chunk in chunks:
            await part.append(chunk)
            size += len(chunk)
            gauge.at(size)
    return await part.digest() == fetch.info.digest


@asynccontextmanager
async def _part_file(path: Path) -> AsyncIterator[_PartFile]:
    file = await asyncio.to_thread(_open_locked, path)
    part = _PartFile(path, file)
    try:
        yield part
    finally:
        await shielded(part.close())


def _open_locked(path: Path) -> BinaryIO:
    """The file, new or as it was left; `ConflictError` where another download is writing it."""
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                # Whoever held the lock before may have given the file its final name meanwhile.
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    return file
        except BlockingIOError as error:
            file.close()
            raise ConflictError(f"another download of this blob to {path.parent} is running") from error
        except BaseException:
            file.close()
            raise
        file.close()


class _PartFile:
    """The beginning of a blob in a file. Hashing and writing run in a thread beside the network."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self._file = file
        self._hasher = Hasher()
        self._running: asyncio.Future[int] | None = None

    async def resume(self, info: Info) -> None:
        """Hash what is there already, up to the last whole chunk, and cut off what is behind it."""
        kept = os.fstat(self._file.fileno()).st_size
        if kept != info.size:
            kept = min(kept, info.size) // max(1, info.chunk_size) * info.chunk_size
        while self.size < kept and await self._done(self._hash_block, kept - self.size):
            pass
        await self._done(self._file.truncate, self.size)
        await self._done(self._file.seek, self.size)

    async def begin_again(self) -> None:
        """Forget everything."""
        await self._settle()
        self._hasher = Hasher()
        await self._done(self._file.truncate, 0)
        await self._done(self._file.seek, 0)

    @property
    def size(self) -> int:
        """Bytes that are there, hashed and written."""
        return self._hasher.size

    async def append(self, chunk: bytes) -> None:
        """Take the next chunk. Returns once the chunk before it is written."""
        await self._settle()
        self._start(self._hash_and_write, chunk)

    async def digest(self) -> Digest:
        """The digest of everything that was appended."""
        await self._settle()
        return self._hasher.digest()

    async def become(self, path: Path) -> None:
        """Make the bytes durable, and then give the file its name in place of whatever had it."""
        await self._done(self._become, path)

    async def close(self) -> None:
        try:
            await self._settle()
        finally:
            await asyncio.to_thread(self._file.close)

    def _hash_block(self, most: int) -> int:
        block = self._file.read(min(most, _BLOCK))
        self._hasher.update(block)
        return len(block)

    def _hash_and_write(self, chunk: bytes) -> int:
        self._hasher.update(chunk)
        return self._file.write(chunk)

    def _become(self, path: Path) -> int:
        self._file.flush()
        os.fsync(self._file.fileno())
        self.path.replace(path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        return 0

    async def _done(self, step: Callable[..., int], *args: object) -> int:
        """The result of a step in a thread; a cancelled one is waited for before the next."""
        await self._settle()
        self._start(step, *args)
        return await self._settle()

    def _start(self, step: Callable[..., int], *args: object) -> None:
        self._running = asyncio.get_running_loop().run_in_executor(None, step, *args)

    async def _settle(self) -> int:
        if self._running is None:
            return 0
        try:
            return await asyncio.shield(self._running)
        finally:
            if self._running.done():
                self._running = None
