"""Reading a blob as a file: in any order, with what comes next asked for ahead."""

from __future__ import annotations

import asyncio
import io
from typing import Self

from natsblob.client.fetch import Fetch, corrupt
from natsblob.client.progress import SILENT
from natsblob.errors import BadRequestError
from natsblob.hashing import ConcurrentHasher
from natsblob.wire import Info


class BlobReader:
    """A blob that is open for reading; made by `Client.open`, which also closes it.

    Reading on from where the last read ended streams ahead, up to 16 MiB. A read elsewhere asks for the
    chunks that it touches and no more.

    What is verified: every chunk against the CRC-32 stored beside it, if the blob was put through
    natsblob, which guards against accidents. Once all bytes were read in order from the first to the
    last, in reads of any size, the SHA-256 of the whole is compared with the address, and if it
    differs the read that would return the last bytes raises `BlobCorruptError` instead. After a `seek`
    over bytes that were never read the whole is not verified: use `Client.get` or `Client.download`
    if that matters.

    Reads raise the errors of `Client.get`. A read that was cancelled or failed has not moved the
    position. Several tasks may read; their reads take turns.
    """

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._position = 0
        self._ended = -1
        self._ahead: _Ahead | None = None
        self._hasher = ConcurrentHasher()
        self._hashed = 0
        self._turn = asyncio.Lock()
        self._closed = False

    @property
    def info(self) -> Info:
        """What is known of the blob."""
        return self._fetch.info

    @property
    def size(self) -> int:
        """Bytes in the blob."""
        return self._fetch.info.size

    def tell(self) -> int:
        """The position of the next read, in bytes from the beginning."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the position and return it; `whence` as for a file. It may lie beyond the end."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}.get(whence)
        if origin is None or origin + offset < 0:
            raise BadRequestError("a position is not negative, and counts from 0, 1 or 2 as for a file")
        self._position = origin + offset
        return self._position

    async def read(self, n: int = -1) -> bytes:
        """The next `n` bytes, fewer only at the end, where it is `b""`. Negative: all that remain."""
        async with self._turn:
            left = max(0, self.size - self._position)
            wanted = left if n < 0 else min(n, left)
            reads_on = self._position == self._ended
            return await self._read(wanted, ahead=reads_on or wanted > self.info.chunk_size)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """The bytes from the position to the end of the chunk that it lies in."""
        async with self._turn:
            left = self.size - self._position
            if self.size == 0:
                await self._verify(b"")
            if left <= 0:
                raise StopAsyncIteration
            to_boundary = self.info.chunk_size - self._position % self.info.chunk_size
            return await self._read(min(to_boundary, left), ahead=True)

    async def close(self) -> None:
        """Stop reading ahead. Reads raise from now on."""
        self._closed = True
        await self._drop()

    async def _read(self, wanted: int, *, ahead: bool) -> bytes:
        if self._closed:
            raise BadRequestError("the reader is closed")
        try:
            data = await (self._read_ahead(wanted) if ahead else self._read_only(wanted))
            await self._verify(data)
        except BaseException:
            await self._drop()
            raise
        self._position += len(data)
        self._ended = self._position
        return data

    async def _read_only(self, wanted: int) -> bytes:
        await self._drop()
        return await self._fetch.range(self._position, wanted, SILENT)

    async def _read_ahead(self, wanted: int) -> bytes:
        if self._ahead is None or self._ahead.position != self._position:
            await self._drop()
            self._ahead = _Ahead(self._fetch, self._position)
        return await self._ahead.take(wanted)

    async def _verify(self, data: bytes) -> None:
        """Hash what is read in order; compare, before the last bytes go out, if all of it was."""
        if self._position == self._hashed:
            await self._hasher.update(data)
            self._hashed += len(data)
        at_end = self._position + len(data) == self.size == self._hashed
        if at_end and await self._hasher.digest() != self.info.digest:
            raise corrupt(self.info.digest)

    async def _drop(self) -> None:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            await ahead.close()


class _Ahead:
    """The bytes from one position on, of which the next are on their way."""

    def __init__(self, fetch: Fetch, position: int) -> None:
        first, self._skip = divmod(position, max(1, fetch.info.chunk_size))
        self._chunks = fetch.chunks(first, check=True)
        self._digest = fetch.info.digest
        self._held = memoryview(b"")
        self.position = position

    async def take(self, wanted: int) -> bytes:
        """The next `wanted` bytes, of which there are as many. A whole chunk is not copied."""
        if wanted and not self._held and not self._skip:
            chunk = await self._next()
            if len(chunk) == wanted:
                self.position += wanted
                return chunk
            self._held = memoryview(chunk)
        collected = io.BytesIO()
        while collected.tell() < wanted:
            if not self._held:
                self._held = memoryview(await self._next())[self._skip :]
                self._skip = 0
            taken = self._held[: wanted - collected.tell()]
            collected.write(taken)
            self._held = self._held[len(taken) :]
        self.position += wanted
        return collected.getvalue()

    async def _next(self) -> bytes:
        async for chunk in self._chunks:
            return chunk
        raise corrupt(self._digest)

    async def close(self) -> None:
        await self._chunks.aclose()
