"""The service, through the SDK. Its digests are verified in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import islice
from time import perf_counter

import natsblob
from bench.peers.driver import main
from natsblob.broker.allocator import keep_memory
from natsblob.chunking import DEFAULT_CHUNK_SIZE
from natsblob.wire import MAX_BATCH as BATCH
from natsblob.wire import Info


class Service:
    def __init__(self, blobs: natsblob.Client) -> None:
        self._blobs = blobs
        self._stored: dict[str, Info] = {}

    async def put(self, name: str, data: bytes) -> None:
        self._stored[name] = await self._blobs.put(data)

    async def get(self, name: str) -> float:
        info = self._stored[name]
        if info.size <= DEFAULT_CHUNK_SIZE:
            await self._blobs.get(info.digest)
            return perf_counter()
        first = 0.0
        async with self._blobs.open(info.digest) as reader:
            async for _ in reader:
                first = first or perf_counter()
        return first

    async def has(self, name: str) -> None:
        if not await self._blobs.has(self._stored[name].digest):
            raise LookupError(name)

    async def has_batch(self, name: str) -> None:
        """Ask for 1,000 digests in one request."""
        del name
        batch = [info.digest for info in islice(self._stored.values(), BATCH)]
        if len(batch) < BATCH or await self._blobs.missing(batch):
            raise LookupError("blobs that were put are missing")

    async def clear(self, name: str) -> None:
        if info := self._stored.pop(name, None):  # not there where its put failed
            await self._blobs.delete(info.digest)


@asynccontextmanager
async def connect(url: str, _bucket: str) -> AsyncIterator[Service]:
    async with natsblob.connect(url) as blobs:
        yield Service(blobs)


if __name__ == "__main__":
    keep_memory()
    main(connect)
