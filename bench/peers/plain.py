"""The service without the SDK: plain NATS requests, for what fits one message. Gets are verified here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Final

import nats
from nats.aio.client import Client as Nats

from bench.peers.driver import main

_TIMEOUT: Final = 60.0


class Plain:
    def __init__(self, nc: Nats) -> None:
        self._nc = nc
        self._digests: dict[str, str] = {}

    async def put(self, name: str, data: bytes) -> None:
        reply = await self._nc.request("blob.put", data, timeout=_TIMEOUT)
        self._digests[name] = json.loads(reply.data)["digest"]

    async def get(self, name: str) -> float:
        digest = self._digests[name]
        reply = await self._nc.request("blob.get", digest.encode(), timeout=_TIMEOUT)
        arrived = perf_counter()
        if hashlib.sha256(reply.data).hexdigest() != digest:
            raise ValueError(f"a get was answered with {reply.data[:80]!r}")
        return arrived

    async def has(self, name: str) -> None:
        reply = await self._nc.request("blob.has", self._digests[name].encode(), timeout=_TIMEOUT)
        if not json.loads(reply.data)["exists"]:
            raise LookupError(name)

    async def clear(self, name: str) -> None:
        if digest := self._digests.pop(name, None):  # not there where its put failed
            await self._nc.request("blob.delete", digest.encode(), timeout=_TIMEOUT)


@asynccontextmanager
async def connect(url: str, _bucket: str) -> AsyncIterator[Plain]:
    async with await nats.connect(url) as nc:
        yield Plain(nc)


if __name__ == "__main__":
    main(connect)
