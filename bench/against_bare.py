"""The service against bare loops of the same client library, side by side in one run.

A bare put publishes chunks on the bucket's subject, a window of them unanswered at a time; a bare get asks
for batched direct reads, a window at a time. Neither computes a digest; the service verifies SHA-256 in the
worker on put, and in the client on put and get. Rounds alternate, medians are printed.

    python bench/against_bare.py [--size 256MiB] [--rounds 5] [--sync always|2m]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from time import perf_counter
from typing import Final

import nats
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg

import natsblob
from natsblob.broker.allocator import keep_memory
from natsblob.broker.loop import loop_factory
from natsblob.chunking import DEFAULT_CHUNK_SIZE
from natsblob.testing.servers import temporary_server
from natsblob.testing.services import running_worker

MIB: Final = 1024 * 1024
WINDOW: Final = 8 * MIB // DEFAULT_CHUNK_SIZE
SMALL: Final = 4096
Figures = dict[str, list[float]]


async def bare_put(nc: Nats, name: str, data: bytes) -> int:
    """Publish `data` in chunks, and answer the stream sequence of the first."""
    room = asyncio.Semaphore(WINDOW)
    acks: list[int] = []
    done = asyncio.Event()
    count = -(-len(data) // DEFAULT_CHUNK_SIZE)

    async def acked(message: Msg) -> None:
        acks.append(json.loads(message.data)["seq"])
        room.release()
        if len(acks) == count:
            done.set()

    inbox = nc.new_inbox()
    subscription = await nc.subscribe(f"{inbox}.*", cb=acked)
    for index in range(count):
        await room.acquire()
        chunk = data[index * DEFAULT_CHUNK_SIZE : (index + 1) * DEFAULT_CHUNK_SIZE]
        await nc.publish(f"$O.blobs.C.{name}", chunk, reply=f"{inbox}.{index}")
    await done.wait()
    await subscription.unsubscribe()
    return min(acks)


async def bare_get(nc: Nats, name: str, first: int, count: int) -> None:
    """Read `count` chunks from stream sequence `first` on, a window at a time."""
    inbox = nc.new_inbox()
    subscription = await nc.subscribe(inbox, pending_bytes_limit=-1)
    got, sequence = 0, first
    while got < count:
        request = {"seq": sequence, "next_by_subj": f"$O.blobs.C.{name}", "batch": WINDOW}
        await nc.publish("$JS.API.DIRECT.GET.OBJ_blobs", json.dumps(request).encode(), reply=inbox)
        while True:
            message = await subscription.next_msg(timeout=10)
            if not message.data:
                break
            got += 1
            sequence = int(message.headers["Nats-Sequence"]) + 1
    await subscription.unsubscribe()


async def timed(work: Awaitable[object]) -> float:
    started = perf_counter()
    await work
    return perf_counter() - started


async def large(blobs: natsblob.Client, nc: Nats, size: int, rounds: int) -> Figures:
    """MiB/s of each way to move one large blob, by round."""
    figures: Figures = {}
    chunks = -(-size // DEFAULT_CHUNK_SIZE)
    for number in range(rounds):
        data = os.urandom(size)
        name = f"bare{number}"
        started = perf_counter()
        first = await bare_put(nc, name, data)
        figures.setdefault("bare put", []).append(size / MIB / (perf_counter() - started))
        started = perf_counter()
        info = await blobs.put(data)
        figures.setdefault("put", []).append(size / MIB / (perf_counter() - started))
        seconds = await timed(bare_get(nc, name, first, chunks))
        figures.setdefault("bare get", []).append(size / MIB / seconds)
        seconds = await timed(_read(blobs, info.digest))
        figures.setdefault("get", []).append(size / MIB / seconds)
        await blobs.delete(info.digest)
        purge = json.dumps({"filter": f"$O.blobs.C.{name}"}).encode()
        await nc.request("$JS.API.STREAM.PURGE.OBJ_blobs", purge, timeout=10)
    return figures


async def _read(blobs: natsblob.Client, digest: natsblob.Digest) -> None:
    """Read a whole blob as a stream; its digest is verified at the end."""
    async with blobs.open(digest) as reader:
        async for _ in reader:
            pass


async def small(nc: Nats, requests: int, rounds: int) -> Figures:
    """4 KiB requests per second through plain NATS requests, one at a time and 32 at once, by round."""
    figures: Figures = {}
    for _ in range(rounds):
        for at_once in (1, 32):
            digests: list[bytes] = []

            async def put(digests: list[bytes] = digests) -> None:
                reply = await nc.request("blob.put", os.urandom(SMALL), timeout=30)
                digests.append(json.loads(reply.data)["digest"].encode())

            async def get(digests: list[bytes] = digests) -> None:
                reply = await nc.request("blob.get", digests[0], timeout=30)
                if len(reply.data) != SMALL:
                    raise SystemExit(f"a get was answered with {reply.data!r}")

            async def has(digests: list[bytes] = digests) -> None:
                await nc.request("blob.has", digests[0], timeout=30)

            for verb, call in {"put": put, "get": get, "has": has}.items():
                rate = requests / await timed(_at_once(call, requests, at_once))
                figures.setdefault(f"{verb} 4 KiB, {at_once} at once", []).append(rate)
    return figures


async def _at_once(call: Callable[[], Awaitable[None]], requests: int, at_once: int) -> None:
    left = requests

    async def lane() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await call()

    await asyncio.gather(*(lane() for _ in range(at_once)))


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--size", type=lambda text: int(text.removesuffix("MiB")) * MIB, default=256 * MIB)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--sync", default="always")
    options = parser.parse_args()
    async with (
        temporary_server(
            jetstream=f"sync_interval: {options.sync}" if options.sync != "always" else ""
        ) as server,
        running_worker(server.url),
        natsblob.connect(server.url) as blobs,
        await nats.connect(server.url) as nc,
    ):
        print(
            f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, "
            f"nats-server {nc.connected_server_version}, nats-py {version('nats-py')}, "
            f"sync_interval {options.sync}, {type(asyncio.get_running_loop()).__module__}"
        )
        figures = await large(blobs, nc, options.size, options.rounds)
        for name, values in figures.items():
            spread = f"{min(values):.0f} to {max(values):.0f}"
            print(f"{name:24} {statistics.median(values):8.0f} MiB/s   ({spread})")
        for verb in ("put", "get"):
            pairs = zip(figures[verb], figures[f"bare {verb}"], strict=True)
            print(f"{verb + ' / bare ' + verb:24} {statistics.median(a / b for a, b in pairs):8.2f}")
        for name, values in (await small(nc, options.requests, options.rounds)).items():
            spread = f"{min(values):.0f} to {max(values):.0f}"
            print(f"{name:24} {statistics.median(values):8.0f} /s      ({spread})")


if __name__ == "__main__":
    keep_memory()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(main())
