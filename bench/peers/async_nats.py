"""The Object Store of async-nats, through natsrpy: the work is done in Rust, off this process's loop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import perf_counter

from natsrpy import Nats
from natsrpy.js import ObjectStore

from bench.peers.driver import main


class _Nowhere:
    """Where what is read goes."""

    def __init__(self) -> None:
        self.first = 0.0

    def write(self, data: bytes, /) -> int:
        self.first = self.first or perf_counter()
        return len(data)


class AsyncNats:
    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    async def put(self, name: str, data: bytes) -> None:
        await self._store.put(name, data)

    async def get(self, name: str) -> float:
        nowhere = _Nowhere()
        await self._store.get(name, nowhere)
        return nowhere.first

    async def info(self, name: str) -> None:
        await self._store.get_info(name)


@asynccontextmanager
async def connect(url: str, bucket: str) -> AsyncIterator[AsyncNats]:
    nats = Nats(addrs=[url])
    await nats.startup()
    try:
        jetstream = await nats.jetstream(timeout=60)
        yield AsyncNats(await jetstream.object_store.get(bucket))
    finally:
        await nats.shutdown()


if __name__ == "__main__":
    main(connect)
