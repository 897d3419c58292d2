"""Put or get large blobs as streams, in a process of its own: what it took and used, as JSON.

    python -m bench.transfer URL put SIZE COUNT
    python -m bench.transfer URL get DIGEST…

All of them at once. A put prints the digests, which a get then takes.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from time import perf_counter
from typing import Final

import natsblob
from bench.meter import Meter
from natsblob.broker.allocator import keep_memory
from natsblob.broker.loop import loop_factory
from natsblob.chunking import DEFAULT_CHUNK_SIZE

_STAMP: Final = 16
_PATIENCE: Final = 900.0
"""Seconds for each request: a commit that comes with many others waits for its turn to be read back."""


async def _content(size: int) -> AsyncIterator[bytes]:
    """Bytes that nobody has stored before, of which only one piece is in memory."""
    body = os.urandom(DEFAULT_CHUNK_SIZE)
    yield os.urandom(_STAMP) + body[_STAMP:]
    for start in range(DEFAULT_CHUNK_SIZE, size, DEFAULT_CHUNK_SIZE):
        yield body[: size - start]


async def _put(blobs: natsblob.Client, size: int) -> str:
    return str((await blobs.put(_content(size))).digest)


async def _get(blobs: natsblob.Client, digest: str) -> str:
    async with blobs.open(digest) as reader:
        async for _ in reader:
            pass
    return digest


async def main(url: str, verb: str, *given: str) -> None:
    meter = Meter({"self": [os.getpid()]})
    begun = perf_counter()
    async with natsblob.connect(url, timeout=_PATIENCE) as blobs:
        if verb == "put":
            size, count = map(int, given)
            transfers = [_put(blobs, size) for _ in range(count)]
        else:
            transfers = [_get(blobs, digest) for digest in given]
        digests = await asyncio.gather(*transfers)
    usage = meter.read()["self"]
    seconds = perf_counter() - begun
    print(json.dumps({"digests": digests, "seconds": seconds, "cpu": usage.cpu, "peak": usage.peak}))


if __name__ == "__main__":
    keep_memory()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(main(*sys.argv[1:]))
