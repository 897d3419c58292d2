"""The store on a directory: which file operations make each verb, and the threads that they run in."""

from __future__ import annotations

import asyncio
import builtins
import os
import re
import threading
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Final, TypeVar, TypeVarTuple
from uuid import UUID

from natsblob import chunking
from natsblob.digest import Digest
from natsblob.errors import BlobCorruptError, BlobNotFoundError
from natsblob.store.disk.files import StagedBlob, StoredBlob, read_small
from natsblob.store.disk.sums import Identity, Remembered, Sums, piece_size
from natsblob.store.disk.volume import BLOBS, Volume, translate
from natsblob.wire import Info, Page

THREADS: Final = 16
"""Operations of one store that wait for the disk at a time."""
VERIFIERS: Final = 2
"""Of these, how many may be reading whole files to verify them."""
CLEANUP_SECONDS: Final = 5.0
"""How long a cancelled caller waits until its file is closed; later it happens without the caller."""

REREAD_SIZE: Final = 256 * 1024 * 1024
"""Bytes up to which a file is read for each promise that it is good. Larger ones may take longer than the
request: they count as read for `FRESH_SECONDS`, so that a request that is repeated finds them so."""
FRESH_SECONDS: Final = 600.0
_SETTLED_NS: Final = 100_000_000
_HEX: Final = re.compile(r"[0-9a-f]+", re.ASCII)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class DiskStore:
    """A `Store` on a directory that is a volume.

    With `create` a directory that is missing or empty becomes one, with this `chunk_size`; an existing
    volume keeps its own. Without it such a directory, a mount point without its disk for example, is
    refused; so is any other volume than `volume`, if one is named. Opening reads and writes a few small
    files; `SetupError` if the directory cannot be used.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        chunk_size: int = chunking.DEFAULT_CHUNK_SIZE,
        create: bool = True,
        volume: UUID | None = None,
    ) -> None:
        self._volume = Volume(Path(directory), chunk_size=chunk_size, create=create, identity=volume)
        # Not anyio's threads: cancelling a task gives back their limiter's token while the thread is
        # still at work, so a disk that hangs would be given a new thread for every retry.
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="natsblob-disk")
        self._closing = threading.Event()
        self._durable: set[PurePosixPath] = set()
        self._verified = Remembered()
        self._verifying: dict[Identity, asyncio.Task[Sums | None]] = {}

    def close(self) -> None:
        """Finish what runs in threads and let go of the directory; for when no request is left."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._threads.shutdown(cancel_futures=True)
        self._volume.close()

    @property
    def chunk_size(self) -> int:
        return self._volume.descriptor.chunk_size

    @property
    def volume(self) -> UUID:
        """The identity of the volume, from its descriptor."""
        return self._volume.descriptor.volume

    async def stat(self, digest: Digest) -> Info:
        return await self._run(self._stat, digest)

    async def missing(self, digests: Sequence[Digest]) -> builtins.list[Digest]:
        return await self._run(self._missing, digests)

    async def chunks(
        self,
        digest: Digest,
        first: int = 0,
        count: int | None = None,
        *,
        verify: bool = True,
        chunk_size: int | None = None,  # noqa: ARG002 - it never changes
    ) -> AsyncIterator[bytes]:
        whole = await self._run(read_small, self._volume, digest, self.chunk_size, verify)
        if whole is not None:
            if whole and first == 0 and count != 0:
                yield whole
            return
        async with self._opened(digest) as blob:
            size = blob.identity.size
            total = chunking.count(size, self.chunk_size)
            indexes = range(first, total if count is None else min(total, first + count))
            if verify and indexes:
                async for chunk in self._checked(blob, indexes):
                    yield chunk
                return
            for index in indexes:
                length = chunking.length(index, size, self.chunk_size)
                yield await self._run(blob.read, index * self.chunk_size, length)

    async def _checked(self, blob: StoredBlob, indexes: range) -> AsyncIterator[bytes]:
        """Chunks of a file that was verified, each compared with what it was then."""
        sums = await self._verify(blob)
        held, data = -1, b""
        for index in indexes:
            number, skip = divmod(index * self.chunk_size, sums.piece)
            if number != held:
                held, data = number, await self._piece(blob, sums, number)
            yield data if len(data) <= self.chunk_size else data[skip : skip + self.chunk_size]

    async def _piece(self, blob: StoredBlob, sums: Sums, number: int) -> bytes:
        """A piece of the file, read once more if it is not what it was; then the file is read whole."""
        size = blob.identity.size
        length = chunking.length(number, size, sums.piece)
        for _ in range(2):
            data = await self._run(_read_piece, blob, sums, number, length)
            if data is not None:
                return data
            self._verified.forget(blob.identity)
            await self._verify(blob)
        raise await self._run(blob.condemn)

    async def held(self, digest: Digest) -> Info | None:
        """The blob, its file verified: who is told this may throw the bytes away."""
        try:
            async with self._opened(digest) as blob:
                sums = self._verified.get(blob.identity)
                is_fresh = sums is not None and time.monotonic() - sums.taken < FRESH_SECONDS
                if blob.identity.size <= REREAD_SIZE or not is_fresh:
                    self._verified.forget(blob.identity)
                await self._verify(blob)
                return await self._run(self._stat, digest)
        except (BlobNotFoundError, BlobCorruptError):
            return None

    async def put(self, source: AsyncIterable[bytes], *, expected: Digest | None = None) -> Info:
        staged = StagedBlob(self._volume)
        try:
            pieces: list[bytes] = []
            held = 0
            async for piece in source:
                if piece:
                    pieces.append(piece)
                    held += len(piece)
                if held >= self.chunk_size:
                    await self._run(staged.write, pieces)
                    pieces, held = [], 0
            return await self._run(self._publish, staged, pieces, expected)
        finally:
            if not staged.closed:
                await self._clean_up(staged.discard)

    async def list(self, *, after: Digest | None = None, limit: int = 1000, prefix: str = "") -> Page:
        return await self._run(self._page, "" if after is None else after.hex, limit, prefix)

    async def delete(self, digest: Digest) -> Info:
        return await self._run(self._delete, digest)

    # What follows runs in threads, up to `_run`.

    def _stat(self, digest: Digest) -> Info:
        try:
            return self._info(digest, self._volume.stat(self._volume.blob(digest)))
        except FileNotFoundError:
            self._volume.confirm()
            raise BlobNotFoundError("no such blob") from None

    def _missing(self, digests: Sequence[Digest]) -> builtins.list[Digest]:
        missing = [digest for digest in digests if not self._volume.exists(self._volume.blob(digest))]
        if missing:
            self._volume.confirm()
        return missing

    def _publish(self, staged: StagedBlob, pieces: Sequence[bytes], expected: Digest | None) -> Info:
        """The durable end of a put: the bytes, then the name, then the name's durability.

        If the blob is there already, its file is replaced all the same: these bytes are verified,
        and those that lie there may have rotted since. It also makes the blob as young as its last put.
        """
        staged.write(pieces)
        digest = staged.finish(expected)
        path = self._volume.blob(digest)
        with self._volume.lock():
            created = not self._volume.exists(path)
            staged.move(path)
            status = self._volume.stat(path)
        self._make_durable(path)
        if created:
            self._volume.forget_bad(digest)
        return self._info(digest, status, created=created)

    def _make_durable(self, path: PurePosixPath) -> None:
        leaf = path.parent
        self._volume.sync(leaf)
        # Another process may have made these directories and not have synced their names yet.
        if leaf not in self._durable:
            self._volume.sync(leaf.parent)
            self._volume.sync(BLOBS)
            self._durable.add(leaf)

    def _delete(self, digest: Digest) -> Info:
        path = self._volume.blob(digest)
        with self._volume.lock():
            info = self._stat(digest)
            self._volume.unlink(path)
        self._volume.sync(path.parent)
        return info

    def _page(self, after: str, limit: int, prefix: str) -> Page:
        blobs: list[Info] = []
        for digest in self._walk(BLOBS, "", after, prefix):
            if len(blobs) == limit:
                return Page(blobs=blobs, after=blobs[-1].digest if blobs else None)
            with suppress(FileNotFoundError):  # deleted meanwhile
                blobs.append(self._info(digest, self._volume.stat(self._volume.blob(digest))))
        self._volume.confirm()
        return Page(blobs=blobs)

    def _walk(self, path: PurePosixPath, begin: str, after: str, prefix: str) -> Iterator[Digest]:
        """The blobs below a directory whose names begin with `begin`, in order, one directory at a time."""
        digits = len(begin) + 2 if len(begin) < 4 else 64
        for name in self._volume.names(path):
            start = name if digits == 64 else begin + name
            if len(start) != digits or not start.startswith(begin) or not _HEX.fullmatch(start):
                continue
            if start < after[:digits] or not (start.startswith(prefix) or prefix.startswith(start)):
                continue
            if digits < 64:
                yield from self._walk(path / name, start, after, prefix)
            elif start != after:
                yield Digest.parse(start)

    def _info(self, digest: Digest, status: os.stat_result, *, created: bool = False) -> Info:
        return Info(
            digest=digest,
            size=status.st_size,
            chunks=chunking.count(status.st_size, self.chunk_size),
            chunk_size=self.chunk_size,
            created=created,
            modified=datetime.fromtimestamp(status.st_mtime, UTC),
        )

    async def _run(self, call: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """Run `call` in a thread. If this is cancelled, what has begun goes on to its end."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)
        except OSError as error:
            raise translate(error) from error

    @asynccontextmanager
    async def _opened(self, digest: Digest) -> AsyncIterator[StoredBlob]:
        blob = StoredBlob(self._volume, digest)
        try:
            await self._run(blob.open)
            yield blob
        finally:
            await self._clean_up(blob.close)

    async def _clean_up(self, call: Callable[[], None]) -> None:
        """Run `call` in a thread, also if this is cancelled, and wait for it within reason."""
        done = asyncio.get_running_loop().run_in_executor(self._threads, call)
        await asyncio.wait({done}, timeout=CLEANUP_SECONDS)

    async def _verify(self, blob: StoredBlob) -> Sums:
        """The sums of the file, once the whole is known to be good; `BlobCorruptError` if it is not.

        Readers of one file share its verification, and it survives them: the retry of a reader that
        could not wait for a large file finds it done, or further on.
        """
        key = blob.identity
        while (sums := self._verified.get(key)) is None:
            task = self._verifying.get(key)
            if task is None and len(self._verifying) < VERIFIERS:
                task = self._begin_verification(blob)
            others = self._verifying.values()
            await asyncio.wait({task} if task else others, return_when=asyncio.FIRST_COMPLETED)
            if task and not task.cancelled() and (sums := task.result()) is not None:
                break
        return sums

    def _begin_verification(self, blob: StoredBlob) -> asyncio.Task[Sums | None]:
        key = blob.identity
        # A change within one tick of the file system's clock would leave the time stamp as it is.
        settled = time.time_ns() - key.modified_ns > _SETTLED_NS

        def ended(task: asyncio.Task[Sums | None]) -> None:
            del self._verifying[key]
            if not task.cancelled() and task.exception() is None and settled:
                sums = task.result()
                if sums is not None:
                    self._verified.keep(key, sums)

        piece = piece_size(key.size, self.chunk_size)
        task = asyncio.get_running_loop().create_task(self._run(blob.verify, self._closing, piece))
        self._verifying[key] = task
        task.add_done_callback(ended)
        return task


def _read_piece(blob: StoredBlob, sums: Sums, number: int, length: int) -> bytes | None:
    """A piece of the file; `None` if it is not what it was when the file was verified."""
    data = blob.read(number * sums.piece, length)
    return data if sums.fits(number, data) else None
