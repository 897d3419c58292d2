"""The client whose operations bench/cost.py counts; it runs on the natsblob that is first on the path.

Reads lines of JSON, {"verb", "size", "first", "count"}, does them one after the other, and answers each line
with the seconds and the CPU seconds that it took.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import resource
import sys
import time

import natsblob


def content(size: int, number: int) -> bytes:
    """The same bytes for the same number, with no pattern to compress."""
    seed = hashlib.sha256(b"%d" % number).digest()
    block = b"".join(hashlib.sha256(seed + b"%d" % index).digest() for index in range(256))
    return (b"%012d" % number + block * (size // len(block) + 1))[:size]


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def once(client: natsblob.Client, verb: str, data: bytes) -> None:
    digest = natsblob.Digest.of(data)
    if verb == "put":
        await client.put(data, timeout=120)
    elif verb == "get":
        if await client.get(digest, timeout=120) != data:
            raise SystemExit("other bytes")
    elif verb == "has":
        if not await client.has(digest):
            raise SystemExit("not there")
    elif verb == "delete":
        await client.delete(digest)


async def main() -> None:
    async with natsblob.connect(sys.argv[1], timeout=60) as client:
        await client.caps()
        while line := await asyncio.to_thread(sys.stdin.readline):
            wanted = json.loads(line)
            numbers = range(wanted["first"], wanted["first"] + wanted["count"])
            blobs = [content(wanted["size"], number) for number in numbers]
            [natsblob.Digest.of(blob) for blob in blobs]
            began, used = time.perf_counter(), cpu()
            for blob in blobs:
                await once(client, wanted["verb"], blob)
            answer = {"seconds": time.perf_counter() - began, "cpu": cpu() - used}
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main())
