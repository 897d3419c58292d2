"""The way back after a header has stopped a bucket, tried: an older nats-server in between.

python -m tests.servers.runbook [--broken 2.15.1] [--rescue 2.12.8] [--no-message]

A cluster of three with a bucket of natsblob at R3, blobs of several sizes, a publisher that ends it, restarts
that do not help, all servers on the older version until the stream has a leader and takes a message, and the
first version again. Exits with 1 if a blob is lost. `--no-message` goes back without a message in between.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from typing import Final

import natsblob
from natsblob.testing.payloads import pattern
from natsblob.testing.servers import temporary_store_dir
from natsblob.testing.services import running_service
from tests.faults.nemesis.node import server_binary
from tests.servers.cases import Case
from tests.servers.headers import fetch, say
from tests.servers.lab import Servers, connected

BUCKET: Final = "runbook"
STREAM: Final = f"OBJ_{BUCKET}"
SIZES: Final = [0, 1, 4_096, 200_000, 3_000_000, 20_000_000]
UNMET: Final = Case("Nats-Expected-Last-Msg-Id", "unmet", "Nats-Expected-Last-Msg-Id: never-seen\r\n")


class Steps:
    """Tells what is done and seen, with the seconds since the beginning."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def __call__(self, text: str) -> None:
        say(f"{time.monotonic() - self._began:6.1f} s  {text}")


async def restart(servers: Servers, version: str) -> None:
    """Restart all servers as this version, with the store that they have."""
    for server in servers.all:
        server._binary = server_binary(version)
    await servers.restart()


async def leader(servers: Servers, patience: float) -> str | None:
    """Who leads the bucket's stream, once somebody does and all copies follow."""
    async with connected(servers) as lab:
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if await lab.has_leader(STREAM):
                cluster = (await lab.api(f"STREAM.INFO.{STREAM}"))["cluster"]
                return str(cluster["leader"])
            await asyncio.sleep(0.2)
    return None


async def spoil(servers: Servers) -> str:
    """What the server answers to the one message."""
    async with connected(servers) as lab:
        inbox = lab.nc.new_inbox()
        subscription = await lab.nc.subscribe(inbox)
        await lab.nc.flush()
        block = f"NATS/1.0\r\n{UNMET.block}\r\n".encode()
        await lab.wire.publish(f"$O.{BUCKET}.C.{'a' * 22}", inbox, block, b"x")
        try:
            return (await subscription.next_msg(timeout=5)).data.decode()
        except TimeoutError:
            return "nothing"


async def put(servers: Servers, blobs: dict[str, int], seed: int, timeout: float) -> str:
    """Put one more blob, and remember it if it was acknowledged."""
    data = pattern(SIZES[seed % len(SIZES)] + seed)
    async with natsblob.connect(",".join(servers.urls), timeout=timeout) as client:
        try:
            info = await client.put(data)
        except natsblob.BlobError as error:
            return f"{type(error).__name__}: {error}"
    blobs[str(info.digest)] = len(data)
    return "stored"


async def unreadable(servers: Servers, blobs: dict[str, int]) -> list[str]:
    bad = []
    async with natsblob.connect(",".join(servers.urls), timeout=20) as client:
        for digest, size in blobs.items():
            try:
                data = await client.get(digest)
            except natsblob.BlobError as error:
                bad.append(f"{digest[:12]} {type(error).__name__}")
                continue
            if len(data) != size or str(natsblob.Digest.of(data)) != digest:
                bad.append(f"{digest[:12]} wrong bytes")
    return bad


async def run(broken: str, rescue: str, *, message: bool) -> int:
    step, blobs = Steps(), dict[str, int]()
    with temporary_store_dir() as directory:
        async with Servers(directory, broken, 3) as servers:
            step(f"three servers, {broken}")
            urls = ",".join(servers.urls)
            async with running_service(urls, workers=2, bucket=BUCKET, replicas=3, log_level="error"):
                for seed in range(24):
                    assert await put(servers, blobs, seed, 30) == "stored"
                step(f"{len(blobs)} blobs stored through two workers, bucket at R3")
                step(f"one message with an unmet Nats-Expected-Last-Msg-Id: {await spoil(servers)}")
                step(f"leader within 20 s: {await leader(servers, 20)}")
                step(f"a put: {await put(servers, {}, 1000, 15)}")
                step(f"unreadable while it is stopped: {await unreadable(servers, blobs) or 'none'}")
                await restart(servers, broken)
                step(f"all servers restarted on {broken}; leader within 40 s: {await leader(servers, 40)}")
                await restart(servers, rescue)
                step(f"all servers on {rescue}; leader: {await leader(servers, 90)}")
                if message:
                    step(f"a put: {await put(servers, blobs, 1001, 60)}")
                step(f"unreadable on {rescue}: {await unreadable(servers, blobs) or 'none'}")
                await restart(servers, broken)
                step(f"all servers on {broken} again; leader: {await leader(servers, 90)}")
                step(f"a put: {await put(servers, blobs, 1002, 60)}")
                bad = await unreadable(servers, blobs)
                step(f"unreadable: {bad or 'none'} of {len(blobs)}")
            await restart(servers, broken)
            async with running_service(urls, bucket=BUCKET, replicas=3, log_level="error"):
                step(f"servers and workers restarted once more; leader: {await leader(servers, 90)}")
                bad += await unreadable(servers, blobs)
                step(f"unreadable: {bad or 'none'} of {len(blobs)}")
    return 1 if bad else 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--broken", default="2.15.1")
    parser.add_argument("--rescue", default="2.12.8")
    parser.add_argument("--no-message", action="store_true")
    given = parser.parse_args()
    for version in (given.broken, given.rescue):
        fetch(version)
    return asyncio.run(run(given.broken, given.rescue, message=not given.no_message))


if __name__ == "__main__":
    sys.exit(main())
