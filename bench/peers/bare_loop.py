"""The ceiling for a client on nats-py: publishes and batched direct reads, without digest or metadata."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Final

import nats
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg

from bench.peers.driver import main
from natsblob.broker.allocator import keep_memory
from natsblob.chunking import DEFAULT_CHUNK_SIZE

WINDOW: Final = 8 * 1024 * 1024 // DEFAULT_CHUNK_SIZE
"""Chunks on their way at a time."""
_TIMEOUT: Final = 60.0


class BareLoop:
    def __init__(self, nc: Nats, bucket: str) -> None:
        self._nc = nc
        self._chunks = f"$O.{bucket}.C"
        self._reads = f"$JS.API.DIRECT.GET.OBJ_{bucket}"
        self._counts: dict[str, int] = {}

    async def put(self, name: str, data: bytes) -> None:
        subject = f"{self._chunks}.{name}"
        count = -(-len(data) // DEFAULT_CHUNK_SIZE)
        self._counts[name] = count
        if count == 1:
            _acknowledged(await self._nc.request(subject, data, timeout=_TIMEOUT))
            return
        room = asyncio.Semaphore(WINDOW)

        async def acknowledged(message: Msg) -> None:
            _acknowledged(message)
            room.release()

        inbox = self._nc.new_inbox()
        subscription = await self._nc.subscribe(inbox, cb=acknowledged)
        async with asyncio.timeout(10 * _TIMEOUT):
            for index in range(count):
                await room.acquire()
                chunk = data[index * DEFAULT_CHUNK_SIZE : (index + 1) * DEFAULT_CHUNK_SIZE]
                await self._nc.publish(subject, chunk, reply=inbox)
            for _ in range(WINDOW):
                await room.acquire()
        await subscription.unsubscribe()

    async def get(self, name: str) -> float:
        subject = f"{self._chunks}.{name}"
        if self._counts[name] == 1:
            request = json.dumps({"last_by_subj": subject}).encode()
            reply = await self._nc.request(self._reads, request, timeout=_TIMEOUT)
            if not reply.data:
                raise LookupError(name)
            return perf_counter()
        inbox = self._nc.new_inbox()
        subscription = await self._nc.subscribe(inbox, pending_bytes_limit=-1)
        got, sequence, first = 0, 1, 0.0
        while got < self._counts[name]:
            request = json.dumps({"seq": sequence, "next_by_subj": subject, "batch": WINDOW}).encode()
            await self._nc.publish(self._reads, request, reply=inbox)
            while (message := await subscription.next_msg(timeout=_TIMEOUT)).data:
                first = first or perf_counter()
                got += 1
                sequence = int((message.headers or {})["Nats-Sequence"]) + 1
        await subscription.unsubscribe()
        return first


def _acknowledged(message: Msg) -> None:
    answer = json.loads(message.data)
    if "error" in answer:
        raise OSError(answer["error"]["description"])


@asynccontextmanager
async def connect(url: str, bucket: str) -> AsyncIterator[BareLoop]:
    async with await nats.connect(url) as nc:
        yield BareLoop(nc, bucket)


if __name__ == "__main__":
    keep_memory()
    main(connect)
