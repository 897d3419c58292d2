"""Does a server live when a consumer delivers the headers of a message alone, whatever its header block?

python -m tests.servers.short_blocks [--versions 2.12.8 2.15.1] [--replicas 1 3]

natsblob looks at messages that way, when it collects and when it commits. For each block: a new server, one
message, a consumer that delivers headers only; if a server has ended, all are started again, the message is
removed by its sequence, and the consumer is tried once more.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from contextlib import suppress
from typing import Any, Final

import nats

from natsblob.testing.servers import temporary_store_dir
from tests.servers.headers import VERSIONS, fetch, say
from tests.servers.lab import Lab, Servers, connected

BLOCKS: Final = {
    "one byte": b"\x00",
    "two bytes": b"\r\n",
    "three bytes": b"a\r\n",
    "a version alone": b"NATS/1.0",
    "a version and its end": b"NATS/1.0\r\n",
    "no end": b"NATS/1.0\r\nA: a",
    "60 KB": b"NATS/1.0\r\nA: " + b"x" * 60_000 + b"\r\n\r\n",
}
STREAM: Final = "S"
_READING: Final = 1.5


async def read_headers(lab: Lab) -> None:
    """Read the whole stream by a consumer that delivers no payloads."""
    config: dict[str, Any] = {
        "headers_only": True,
        "ack_policy": "none",
        "deliver_policy": "all",
        "mem_storage": True,
        "num_replicas": 1,
        "inactive_threshold": 5_000_000_000,
    }
    made = await lab.api(f"CONSUMER.CREATE.{STREAM}", {"stream_name": STREAM, "config": config})
    inbox = lab.nc.new_inbox()
    subscription = await lab.nc.subscribe(inbox)
    request = b'{"batch":100,"expires":1000000000}'
    await lab.nc.publish(f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{made.get('name')}", request, reply=inbox)
    with suppress(TimeoutError):
        async with asyncio.timeout(_READING):
            while True:
                await subscription.next_msg(timeout=_READING)


async def tried(servers: Servers) -> bool:
    """Whether all servers run when the headers have been read."""
    with suppress(nats.errors.Error, OSError, TimeoutError):
        async with connected(servers) as lab:
            await read_headers(lab)
    return all(server.running for server in servers.all)


async def one(version: str, replicas: int, block: bytes) -> str:
    with temporary_store_dir() as directory:
        async with Servers(directory, version, replicas) as servers:
            async with connected(servers) as lab:
                await lab.make(STREAM, "bucket")
                await lab.wire.publish(f"h.{STREAM}.a", lab.nc.new_inbox(), block, b"body")
                await lab.takes_messages(STREAM, "bucket", 10.0)
            if await tried(servers):
                return "lives"
            await servers.restart()
            async with connected(servers) as lab:
                await lab.takes_messages(STREAM, "bucket", 60.0)
                found = await lab.api(f"STREAM.MSG.GET.{STREAM}", {"last_by_subj": f"h.{STREAM}.a"})
                await lab.api(f"STREAM.MSG.DELETE.{STREAM}", {"seq": found["message"]["seq"]})
            return f"**ends**, and {'lives' if await tried(servers) else 'ends'} when the message is removed"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.servers.short_blocks")
    parser.add_argument("--versions", nargs="*", default=VERSIONS)
    parser.add_argument("--replicas", nargs="*", type=int, default=[1])
    given = parser.parse_args()
    say("| server | " + " | ".join(BLOCKS) + " |")
    for version in given.versions:
        fetch(version)
        for replicas in given.replicas:
            cells = [asyncio.run(one(version, replicas, block)) for block in BLOCKS.values()]
            say(f"| {version} R{replicas} | " + " | ".join(cells) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
