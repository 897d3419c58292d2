"""Buckets shared with other Object Store clients: each reads what the other has stored (ADR-20)."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
from nats.js.object_store import ObjectStore

from natsblob.broker.connection import Access, connect
from natsblob.broker.embedded import EmbeddedServer
from natsblob.broker.jetstream import JetStream
from natsblob.digest import Digest
from natsblob.maintenance.adopt import adopt
from natsblob.objectstore.bucket import Bucket, BucketConfig
from natsblob.objectstore.objects import Objects
from natsblob.testing.payloads import pattern
from tests.integration.raw import CHUNK, Raw, pieces, service

NPM_TIMEOUT = 120
SIZES = [0, 1, CHUNK, CHUNK + 1, 40 * CHUNK + 3]
FOREIGN = {"empty": 0, "small": 5, "a/path with spaces": 1000, "large": 300_000, "one chunk": 128 * 1024}
SCRIPT = """
import { readFileSync } from "node:fs";
import { connect } from "@nats-io/transport-node";
import { Objm } from "@nats-io/obj";
const [url, bucket, names, stored] = JSON.parse(readFileSync(0, "utf8"));
const nc = await connect({ servers: url });
const store = await new Objm(nc).open(bucket);
for (const [name, base64] of Object.entries(stored)) {
  await store.putBlob({ name }, Buffer.from(base64, "base64"));
}
const read = {};
for (const name of names) read[name] = Buffer.from(await store.getBlob(name)).toString("base64");
const listed = (await store.list()).map((info) => info.name);
await nc.close();
console.log(JSON.stringify({ read, listed }));
"""


@pytest.fixture
async def raw(server: EmbeddedServer) -> AsyncIterator[Raw]:
    name = uuid4().hex
    async with await connect(Access((server.url,))) as connection:
        bucket = Bucket(JetStream(connection), name, f"t{name}")
        await bucket.create(BucketConfig(name, rollups=True))
    async with service(server.url, bucket=name, prefix=f"t{name}") as client:
        yield client


async def filled(raw: Raw) -> dict[str, bytes]:
    """Blobs stored in every way there is, by digest: in one message, as an upload, and out of order."""
    blobs = [pattern(size, "interop") for size in SIZES]
    stored = {await raw.put(blob): blob for blob in blobs}
    for seed, backwards in (("upload", False), ("backwards", True)):
        data = pattern(20 * CHUNK + 1, seed)
        upload = await raw.open()
        chunks = list(enumerate(pieces(data)))
        for index, chunk in reversed(chunks) if backwards else chunks:
            await upload.send(index, chunk)
        stored[(await upload.commit()).json["digest"]] = data
    return stored


async def adopted(raw: Raw, server: EmbeddedServer) -> dict[str, str]:
    """Adopt what is in the bucket; what became of each name."""
    async with await connect(Access((server.url,))) as connection:
        bucket = Bucket(JetStream(connection), raw.bucket, raw.prefix)
        return {
            adoption.name: adoption.outcome async for adoption in adopt(Objects(bucket, chunk_size=CHUNK))
        }


async def check_served(raw: Raw, objects: dict[str, bytes]) -> None:
    """Every object is served by its digest: whole, as a range, and in windows that are relayed or not."""
    for data in objects.values():
        digest = Digest.of(data).hex
        assert (await raw.ask("get", digest.encode())).data == data
        assert (await raw.ask("has", digest.encode())).json == {
            "digest": digest,
            "exists": True,
            "size": len(data),
        }
        info = (await raw.ask("stat", digest.encode())).json
        for verify in (False, True):
            window = await raw.window(digest, 0, info["chunks"] or 1, verify=verify)
            assert b"".join(window[index] for index in sorted(window)) == data
        tail = await raw.ask("get", {"digest": digest, "offset": len(data) // 2})
        assert tail.data == data[len(data) // 2 :]


@pytest.fixture
async def theirs(raw: Raw) -> ObjectStore:
    return await raw.js.object_store(raw.bucket)


async def test_nats_py_reads_what_natsblob_stored(raw: Raw, theirs: ObjectStore) -> None:
    stored = await filled(raw)
    assert {info.name for info in await theirs.list()} == set(stored)
    for digest, data in stored.items():
        info = await theirs.get_info(digest)
        assert (info.size, info.digest) == (len(data), Digest.of(data).adr20())
        async with asyncio.timeout(20):
            assert (await theirs.get(digest)).data == data
    gone = next(iter(stored))
    await raw.ask("delete", gone.encode())
    assert gone not in {info.name for info in await theirs.list(ignore_deletes=True)}


async def test_what_nats_py_stored_is_adopted_and_served(
    raw: Raw, theirs: ObjectStore, server: EmbeddedServer
) -> None:
    objects = {name: pattern(size, name) for name, size in FOREIGN.items()}
    for name, data in objects.items():
        await theirs.put(name, data)
    assert await adopted(raw, server) == dict.fromkeys(objects, "adopted")
    await check_served(raw, objects)
    assert await adopted(raw, server) == dict.fromkeys(objects, "present")
    for name, data in objects.items():
        assert (await theirs.get(name)).data == data
        link = await theirs.get_info(Digest.of(data).hex)
        assert (link.size, link.digest) == (len(data), Digest.of(data).adr20())
        assert (await theirs.get(Digest.of(data).hex)).data == data


async def test_an_adopted_object_that_changes_is_not_served_under_its_old_digest(
    raw: Raw, theirs: ObjectStore, server: EmbeddedServer
) -> None:
    await theirs.put("name", b"before")
    await adopted(raw, server)
    await theirs.put("name", b"after")
    digest = hashlib.sha256(b"before").hexdigest().encode()
    assert (await raw.ask("get", digest)).code == 404
    assert (await raw.ask("has", digest)).json["exists"] is False
    assert (await raw.ask("has", [digest.decode()])).json["missing"] == [digest.decode()]
    assert (await raw.ask("put", b"before")).json["created"] is True
    assert (await raw.ask("get", digest)).data == b"before"
    assert (await theirs.get("name")).data == b"after"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Path]:
    """A directory with `@nats-io/obj` in it."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("Node and npm are not installed")
    directory = tmp_path_factory.mktemp("node")
    (directory / "package.json").write_text('{"type": "module", "private": true}')
    (directory / "script.js").write_text(SCRIPT)
    packages = ("@nats-io/obj@3", "@nats-io/transport-node@3")
    process = await asyncio.create_subprocess_exec(
        npm, "install", "--no-audit", "--no-fund", *packages, cwd=directory,
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(NPM_TIMEOUT):
            _, trouble = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        pytest.skip("npm could not fetch @nats-io/obj in time")
    if process.returncode:
        pytest.skip(f"npm could not install @nats-io/obj: {trouble.decode()[-200:]}")
    yield directory


async def run(node: Path, *arguments: Any) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        "node", "script.js", cwd=node, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(60):
            output, _ = await process.communicate(json.dumps(arguments).encode())
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode == 0
    result: dict[str, Any] = json.loads(output)
    return result


@pytest.mark.interop
async def test_javascript_reads_what_natsblob_stored(raw: Raw, server: EmbeddedServer, node: Path) -> None:
    stored = await filled(raw)
    result = await run(node, server.url, raw.bucket, list(stored), {})
    assert set(result["listed"]) == set(stored)
    assert {name: b64decode(text) for name, text in result["read"].items()} == stored


@pytest.mark.interop
async def test_what_javascript_stored_is_adopted_and_served(
    raw: Raw, server: EmbeddedServer, node: Path
) -> None:
    objects = {name: pattern(size, name) for name, size in FOREIGN.items()}
    encoded = {name: b64encode(data).decode() for name, data in objects.items()}
    result = await run(node, server.url, raw.bucket, list(objects), encoded)
    assert {name: b64decode(text) for name, text in result["read"].items()} == objects
    assert await adopted(raw, server) == dict.fromkeys(objects, "adopted")
    await check_served(raw, objects)
    by_digest = {Digest.of(data).hex: data for data in objects.values()}
    result = await run(node, server.url, raw.bucket, list(by_digest), {})
    assert {name: b64decode(text) for name, text in result["read"].items()} == by_digest
    assert set(result["listed"]) == {*objects, *by_digest}


@pytest.mark.interop
async def test_a_name_that_javascript_encodes_in_its_own_way_is_adopted(
    raw: Raw, server: EmbeddedServer, node: Path
) -> None:
    data = pattern(300_000, "umlaut")
    await run(node, server.url, raw.bucket, [], {"r\u00e4tsel": b64encode(data).decode()})
    assert await adopted(raw, server) == {"r\u00e4tsel": "copied"}
    await check_served(raw, {"r\u00e4tsel": data})
