"""One thing that goes through a whole bucket, in a process of its own: its seconds and what it used, as JSON.

python -m bench.chore URL list|collect|verify
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from time import perf_counter
from typing import Final

import natsblob
from bench.meter import Meter
from natsblob.broker.connection import Access, connect
from natsblob.broker.jetstream import JetStream
from natsblob.broker.loop import loop_factory
from natsblob.maintenance.collect import Collector
from natsblob.maintenance.verify import verify
from natsblob.objectstore.bucket import Bucket
from natsblob.objectstore.objects import Objects
from natsblob.store.jetstream import UPLOAD_EXPIRY

BUCKET: Final = "blobs"
_VERIFIED: Final = 1_000
_PATIENCE: Final = 120.0


async def list_all(url: str) -> int:
    """Every blob, a page after the other, as `natsblob ls` asks for them."""
    async with natsblob.connect(url) as blobs:
        return sum([1 async for _ in blobs.list(timeout=_PATIENCE)])


async def collect(url: str) -> int:
    """One pass of what each worker does in the background."""
    async with _objects(url) as objects:
        return (await Collector(objects, expiry=UPLOAD_EXPIRY, interval=1).collect()).uploads


async def verify_some(url: str) -> int:
    """The first 1,000 blobs of `natsblob verify`."""
    async with _objects(url) as objects, aclosing(verify(objects)) as verified:
        count = 0
        async for _ in verified:
            count += 1
            if count == _VERIFIED:
                break
        return count


@asynccontextmanager
async def _objects(url: str) -> AsyncIterator[Objects]:
    async with await connect(Access(servers=(url,), name="chore")) as connection:
        yield Objects(Bucket(JetStream(connection), BUCKET, "blob"))


CHORES: Final = {"list": list_all, "collect": collect, "verify": verify_some}


async def main(url: str, chore: str) -> None:
    meter = Meter({"self": [os.getpid()]})
    begun = perf_counter()
    count = await CHORES[chore](url)
    usage = meter.read()["self"]
    print(
        json.dumps({"count": count, "seconds": perf_counter() - begun, "cpu": usage.cpu, "peak": usage.peak})
    )


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(main(*sys.argv[1:3]))
