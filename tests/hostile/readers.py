"""Everybody who reads a blob: natsblob in three ways, nats-py's Object Store, and `@nats-io/obj`."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import nats
from nats.aio.client import Client as NatsClient

import natsblob
from natsblob.digest import Digest

PATIENCE: Final = 10.0
NPM_TIMEOUT: Final = 120.0
_OTHERS: Final = 60.0

SCRIPT: Final = """
import { readFileSync } from "node:fs";
import { createHash } from "node:crypto";
import { connect } from "@nats-io/transport-node";
import { Objm } from "@nats-io/obj";
const [url, bucket, names] = JSON.parse(readFileSync(0, "utf8"));
const nc = await connect({ servers: url });
const store = await new Objm(nc).open(bucket);
const read = {};
const late = (ms) => new Promise((_, no) => setTimeout(() => no(new Error("late")), ms).unref());
async function lane() {
  while (names.length) {
    const name = names.pop();
    try {
      const data = await Promise.race([store.getBlob(name), late(10000)]);
      read[name] = data === null ? "none" : createHash("sha256").update(data).digest("hex");
    } catch (error) { read[name] = String(error); }
  }
}
await Promise.all(Array.from({ length: 8 }, lane));
process.stdout.write(JSON.stringify(read), () => process.exit(0));
"""

Problem = str
"""What a reader said, or read; empty if it read the right bytes."""


async def problem(digest: str, read: Callable[[], Awaitable[bytes]]) -> Problem:
    """What is wrong with what `read` brings."""
    try:
        async with asyncio.timeout(2 * PATIENCE):
            data = await read()
    except TimeoutError:
        return "nothing in time"
    except (natsblob.BlobError, nats.errors.Error) as error:
        return f"{type(error).__name__}: {error}"
    return "" if Digest.of(data).hex == digest else f"{len(data)} other bytes"


async def by_sdk(client: natsblob.Client, digest: str) -> Mapping[str, Problem]:
    """Whole, and as windows."""

    async def streamed() -> bytes:
        async with client.open(digest, timeout=PATIENCE) as reader:
            return await reader.read()

    return {
        "get": await problem(digest, lambda: client.get(digest, timeout=PATIENCE)),
        "open": await problem(digest, streamed),
    }


async def by_frames(nc: NatsClient, prefix: str, digest: str) -> Mapping[str, Problem]:
    """Frames as docs/protocol.md has them, by a client that trusts nothing else."""
    return {
        name: await problem(digest, lambda verify=verify: _frames(nc, prefix, digest, verify=verify))  # type: ignore[misc]
        for name, verify in (("frames", False), ("frames, verified", True))
    }


class FrameError(natsblob.BlobError):
    """No frame comes that would help."""


async def _frames(nc: NatsClient, prefix: str, digest: str, *, verify: bool) -> bytes:
    stat = json.loads((await nc.request(f"{prefix}.stat", digest.encode(), timeout=PATIENCE)).data)
    if "error" in stat:
        raise FrameError(f"stat: {stat['error']['name']}")
    chunks: dict[int, bytes] = {}
    said = ""
    for attempt in range(4):
        missing = [index for index in range(stat["chunks"]) if index not in chunks]
        if not missing:
            return b"".join(chunks[index] for index in sorted(chunks))
        body = {
            "digest": digest,
            "mode": "stream",
            "first": missing[0],
            "count": missing[-1] + 1 - missing[0],
        }
        inbox = nc.new_inbox()
        subscription = await nc.subscribe(inbox)
        request = json.dumps({**body, "verify": verify or attempt > 1}).encode()
        await nc.publish(f"{prefix}.get", request, reply=inbox)
        said = await _take_window(subscription, chunks, stat)
        await subscription.unsubscribe()
    raise FrameError(f"{len(chunks)} of {stat['chunks']} chunks, {said}")


async def _take_window(subscription: Any, chunks: dict[int, bytes], stat: dict[str, Any]) -> str:
    """Add the chunks of one window; what ended it."""
    while True:
        try:
            frame = await subscription.next_msg(timeout=3)
        except TimeoutError:
            return "silence"
        headers = {str(name): value for name, value in (frame.headers or {}).items()}
        is_stored = "Nats-Subject" in headers or "Nats-Sequence" in headers
        if not is_stored and ("Nats-Service-Error-Code" in headers or "Status" in headers):
            return str(headers.get("Nats-Service-Error") or headers.get("Status"))
        index = headers.get("Blob-Chunk", "")
        if index.isascii() and index.isdigit() and int(index) not in chunks:
            expected = min(stat["chunk_size"], stat["size"] - int(index) * stat["chunk_size"])
            if len(frame.data) == expected:
                chunks[int(index)] = frame.data


async def by_nats_py(nc: NatsClient, bucket: str, digest: str) -> Mapping[str, Problem]:
    store = await nc.jetstream().object_store(bucket)

    async def read() -> bytes:
        return (await store.get(digest)).data or b""

    return {"nats-py": await problem(digest, read)}


async def node_directory(directory: Path) -> Path | None:
    """A directory with `@nats-io/obj` and the script in it; nothing where that cannot be had."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        return None
    await asyncio.to_thread(_write_script, directory)
    packages = ("@nats-io/obj@3", "@nats-io/transport-node@3")
    process = await asyncio.create_subprocess_exec(
        npm, "install", "--no-audit", "--no-fund", "--silent", *packages, cwd=directory
    )
    try:
        async with asyncio.timeout(NPM_TIMEOUT):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
        return None
    return None if process.returncode else directory


def _write_script(directory: Path) -> None:
    (directory / "package.json").write_text('{"type": "module", "private": true}')
    (directory / "script.js").write_text(SCRIPT)


async def by_javascript(
    directory: Path, url: str, bucket: str, digests: Sequence[str]
) -> Mapping[str, Problem]:
    """What is wrong with each of them, all in one process."""
    process = await asyncio.create_subprocess_exec(
        "node", "script.js", cwd=directory, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(_OTHERS + len(digests)):
            output, _ = await process.communicate(json.dumps([url, bucket, list(digests)]).encode())
    except TimeoutError:
        process.kill()
        await process.wait()
        return dict.fromkeys(digests, "node did not end in time")
    read = json.loads(output)
    return {digest: "" if read.get(digest) == digest else str(read.get(digest)) for digest in digests}
