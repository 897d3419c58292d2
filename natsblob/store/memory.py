"""Blobs in the memory of one process: for tests, and for `backend = memory`."""

from __future__ import annotations

import builtins
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from natsblob import chunking
from natsblob.digest import Digest, Hasher
from natsblob.errors import BlobNotFoundError, DigestMismatchError, InsufficientStorageError
from natsblob.wire import Info, Page


@dataclass(frozen=True, slots=True)
class _Blob:
    data: bytes
    modified: datetime


class MemoryStore:
    """A `Store` that forgets everything when the process ends.

    `max_bytes` bounds the blobs together with the puts in flight; `None` leaves it to the machine.
    """

    def __init__(
        self, *, chunk_size: int = chunking.DEFAULT_CHUNK_SIZE, max_bytes: int | None = None
    ) -> None:
        self._chunk_size = chunk_size
        self._max_bytes = max_bytes
        self._used = 0
        self._blobs: dict[Digest, _Blob] = {}

    @property
    def chunk_size(self) -> int:
        return self._chunk_size

    async def stat(self, digest: Digest) -> Info:
        return self._info(digest, self._blob(digest))

    async def missing(self, digests: Sequence[Digest]) -> builtins.list[Digest]:
        return [digest for digest in digests if digest not in self._blobs]

    async def chunks(
        self,
        digest: Digest,
        first: int = 0,
        count: int | None = None,
        *,
        verify: bool = True,  # noqa: ARG002 - nothing can rot between put and get
        chunk_size: int | None = None,  # noqa: ARG002 - it never changes
    ) -> AsyncIterator[bytes]:
        data = self._blob(digest).data
        total = chunking.count(len(data), self._chunk_size)
        end = total if count is None else min(total, first + count)
        for index in range(first, end):
            start = index * self._chunk_size
            yield data[start : start + self._chunk_size]

    async def held(self, digest: Digest) -> Info | None:
        blob = self._blobs.get(digest)
        return self._info(digest, blob) if blob else None

    async def put(self, source: AsyncIterable[bytes], *, expected: Digest | None = None) -> Info:
        hasher = Hasher()
        pieces: list[bytes] = []
        kept = False
        try:
            async for piece in source:
                self._reserve(len(piece))
                hasher.update(piece)
                pieces.append(piece)
            digest = hasher.digest()
            if expected is not None and expected != digest:
                raise DigestMismatchError
            if digest in self._blobs:
                return self._info(digest, self._blobs[digest])
            blob = self._blobs[digest] = _Blob(b"".join(pieces), datetime.now(UTC))
            kept = True
            return self._info(digest, blob, created=True)
        finally:
            if not kept:
                self._used -= hasher.size

    async def list(self, *, after: Digest | None = None, limit: int = 1000, prefix: str = "") -> Page:
        wanted = sorted(
            digest
            for digest in self._blobs
            if (after is None or digest > after) and digest.hex.startswith(prefix)
        )
        page = wanted[:limit]
        return Page(
            blobs=[self._info(digest, self._blobs[digest]) for digest in page],
            after=page[-1] if page and len(wanted) > limit else None,
        )

    async def delete(self, digest: Digest) -> Info:
        info = self._info(digest, self._blob(digest))
        del self._blobs[digest]
        self._used -= info.size
        return info

    def _blob(self, digest: Digest) -> _Blob:
        try:
            return self._blobs[digest]
        except KeyError:
            raise BlobNotFoundError("no such blob") from None

    def _reserve(self, size: int) -> None:
        if self._max_bytes is not None and self._used + size > self._max_bytes:
            raise InsufficientStorageError(
                "the memory store is full; nothing was stored. Delete blobs, or allow it more bytes",
                max_bytes=self._max_bytes,
            )
        self._used += size

    def _info(self, digest: Digest, blob: _Blob, *, created: bool = False) -> Info:
        size = len(blob.data)
        return Info(
            digest=digest,
            size=size,
            chunks=chunking.count(size, self._chunk_size),
            chunk_size=self._chunk_size,
            created=created,
            modified=blob.modified,
        )
