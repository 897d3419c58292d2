"""The Object Store of nats-py."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import perf_counter

import nats
from nats.js.object_store import ObjectStore

from bench.peers.driver import main


class NatsPy:
    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    async def put(self, name: str, data: bytes) -> None:
        await self._store.put(name, data)

    async def get(self, name: str) -> float:
        await self._store.get(name)
        return perf_counter()

    async def info(self, name: str) -> None:
        await self._store.get_info(name)


@asynccontextmanager
async def connect(url: str, bucket: str) -> AsyncIterator[NatsPy]:
    async with await nats.connect(url) as nc:
        yield NatsPy(await nc.jetstream(timeout=60).object_store(bucket))


if __name__ == "__main__":
    main(connect)
