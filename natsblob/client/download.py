"""Downloading a blob into a file: verified before it has its name, resumed where it was interrupted."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Final

from natsblob import chunking
from natsblob.broker.cleanup import acquired, shielded
from natsblob.client.fetch import Fetch, corrupt
from natsblob.client.part import PartFile
from natsblob.client.progress import Gauge
from natsblob.client.reader import BlobReader
from natsblob.client.target import FileTarget, StreamTarget, target_of
from natsblob.digest import Digest, Hasher
from natsblob.wire import Info

_BLOCK: Final = 4 * 1024 * 1024
"""Bytes read at a time of what is there already."""


async def download(fetch: Fetch, path: str | os.PathLike[str], gauge: Gauge) -> Info:
    """Fetch the blob into what `path` names; see `Client.download`."""
    with await _resolved(path) as target:
        if isinstance(target, StreamTarget):
            await _flow(_verified(fetch), target, gauge)
        else:
            await _collect(fetch, target, gauge)
    return fetch.info


async def save(blocks: AsyncGenerator[bytes, None], path: str | os.PathLike[str]) -> int:
    """Write the blocks to what `path` names, to a file when they are complete; how many bytes they had."""
    async with aclosing(blocks):
        with await _resolved(path) as target:
            if isinstance(target, StreamTarget):
                return await _flow(blocks, target, Gauge(None, None))
            async with _part_file(target, None) as part:
                async for block in blocks:
                    await part.append(block)
                await part.become()
                return part.size


async def _resolved(path: str | os.PathLike[str]) -> FileTarget | StreamTarget:
    return await acquired(lambda: target_of(path), lambda target: target.__exit__())


async def _flow(blocks: AsyncGenerator[bytes, None], target: StreamTarget, gauge: Gauge) -> int:
    size = 0
    await target.open()
    async with aclosing(blocks):
        async for block in blocks:
            await target.write(block)
            size += len(block)
            gauge.at(size)
    await target.finish()
    return size


async def _verified(fetch: Fetch) -> AsyncGenerator[bytes, None]:
    """The chunks of the blob, of which the last comes when all are verified."""
    reader = BlobReader(fetch)
    try:
        async for chunk in reader:
            yield chunk
    finally:
        await reader.close()


async def _collect(fetch: Fetch, target: FileTarget, gauge: Gauge) -> None:
    info = fetch.info
    async with _part_file(target, info.digest) as part:
        await part.resume(info)
        if not await _fill(fetch, part, gauge, verify=False):
            # Bad bytes may be those of an earlier download: all of them, once, through a worker that checks.
            await part.begin_again()
            if not await _fill(fetch, part, gauge, verify=True):
                await part.remove()
                raise corrupt(info.digest)
        await part.become()


async def _fill(fetch: Fetch, part: _Part, gauge: Gauge, *, verify: bool) -> bool:
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
async def _part_file(target: FileTarget, digest: Digest | None) -> AsyncIterator[_Part]:
    part = _Part(await acquired(lambda: PartFile(target, digest), PartFile.close))
    try:
        yield part
    finally:
        await shielded(part.close())


class _Part:
    """The beginning of a blob in a file. Hashing and writing run in a thread beside the network."""

    def __init__(self, file: PartFile) -> None:
        self._file = file
        self._hasher = Hasher()
        self._running: asyncio.Future[None] | None = None

    async def resume(self, info: Info) -> None:
        """Hash what is there already, up to the last whole chunk, and cut off what is behind it."""
        kept = self._file.length
        if kept != info.size:
            kept = min(kept, info.size) // max(1, info.chunk_size) * info.chunk_size
        before = -1
        while before < self.size < kept:
            before = self.size
            await self._done(self._hash_block, kept - self.size)
        await self._done(self._file.truncate, self.size)

    async def begin_again(self) -> None:
        """Forget everything."""
        await self._settle()
        self._hasher = Hasher()
        await self._done(self._file.truncate, 0)

    @property
    def size(self) -> int:
        """Bytes that are there, hashed and written."""
        return self._hasher.size

    async def append(self, chunk: bytes) -> None:
        """Take the next chunk. Returns once the chunk before it is written."""
        await self._settle()
        self._start(self._write_and_hash, chunk)

    async def digest(self) -> Digest:
        """The digest of everything that was appended."""
        await self._settle()
        return self._hasher.digest()

    async def become(self) -> None:
        """Make the bytes durable, and then give the file its name in place of whatever had it."""
        await self._done(self._file.become)

    async def remove(self) -> None:
        await self._done(self._file.remove)

    async def close(self) -> None:
        """Let go of the file, and take it away if no later download would find it."""
        try:
            await self._settle()
        finally:
            if not self._file.kept:
                await asyncio.to_thread(self._file.remove)
            await asyncio.to_thread(self._file.close)

    def _hash_block(self, most: int) -> None:
        self._hasher.update(self._file.read(min(most, _BLOCK), self._hasher.size))

    def _write_and_hash(self, chunk: bytes) -> None:
        self._file.write(chunk, self._hasher.size)
        self._hasher.update(chunk)

    async def _done(self, step: Callable[..., None], *args: object) -> None:
        """Take a step in a thread; a cancelled one is waited for before the next."""
        await self._settle()
        self._start(step, *args)
        await self._settle()

    def _start(self, step: Callable[..., None], *args: object) -> None:
        self._running = asyncio.get_running_loop().run_in_executor(None, step, *args)

    async def _settle(self) -> None:
        if self._running is None:
            return
        try:
            await asyncio.shield(self._running)
        finally:
            if self._running.done():
                self._running = None
