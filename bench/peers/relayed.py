"""The service, read as from another account: a worker sends each window, after it has checked it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from time import perf_counter
from typing import Final

import natsblob
from bench.peers.driver import main
from bench.peers.service import Service
from natsblob import client
from natsblob.broker.allocator import keep_memory
from natsblob.broker.connection import Access, connect
from natsblob.client.fetch import Fetch
from natsblob.hashing import ConcurrentHasher
from natsblob.wire import DEFAULT_PREFIX

_PATIENCE: Final = 60.0


class Relayed(Service):
    def __init__(self, blobs: natsblob.Client, requests: client.service.Service) -> None:
        super().__init__(blobs)
        self._requests = requests

    async def get(self, name: str) -> float:
        digest = self._stored[name].digest
        fetch = await Fetch.of(self._requests, digest, _PATIENCE)
        hasher = ConcurrentHasher()
        first = 0.0
        async with aclosing(fetch.chunks(verify=True)) as chunks:
            async for chunk in chunks:
                first = first or perf_counter()
                await hasher.update(chunk)
        if await hasher.digest() != digest:
            raise ValueError(f"{name} was read with other bytes than it was put with")
        return first


@asynccontextmanager
async def connected(url: str, _bucket: str) -> AsyncIterator[Relayed]:
    async with await connect(Access(servers=(url,), name="relayed")) as connection:
        blobs = natsblob.Client(connection, prefix=DEFAULT_PREFIX, timeout=_PATIENCE)
        yield Relayed(blobs, client.service.Service(connection, DEFAULT_PREFIX, _PATIENCE))


if __name__ == "__main__":
    keep_memory()
    main(connected)
