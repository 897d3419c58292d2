"""A tenant with the shipped accounts, on three servers at R3, who tries whatever it can name.

On some versions of nats-server one message with one header stops a replicated stream for good, whoever may
write into it. So nothing that the tenant publishes may be stored as it was published.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nats
import pytest
import pytest_asyncio
from nats.aio.client import Client as NatsClient

import natsblob
from natsblob.app import worker
from natsblob.broker.connection import Access, connect
from natsblob.broker.jetstream import JetStream
from natsblob.config import Settings
from natsblob.objectstore.bucket import Bucket, BucketConfig
from natsblob.testing.payloads import pattern
from natsblob.testing.servers import EmbeddedCluster, temporary_cluster
from tests.hostile.cells import BLOCKS, Place, right
from tests.integration.raw import Raw, Wire
from tests.servers.cases import Case, all_cases

pytestmark = pytest.mark.cluster
ACCOUNTS = Path(__file__).parents[2] / "deploy" / "accounts" / "accounts.conf"
ROLES = ("service", "storage", "admin", "uploader", "tenant", "system")
TENANT = {"user": "tenant", "password": "pw-tenant"}
CHUNK_DOTS = 3
"""In the subject of a chunk; what workers record about uploads and blobs has more."""
CHUNK = 16 * 1024
TENANT_WIRE = {"user": "tenant", "pass": "pw-tenant"}
OURS = {"Blob-Chunk", "Blob-Sum", "Nats-Msg-Id"}
"""The only headers of a chunk that is stored."""
STAGE = "a" * 22
EVIL = b"NATS/1.0\r\nNats-Expected-Last-Msg-Id: never-seen\r\n\r\n"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guarded() -> AsyncIterator[EmbeddedCluster]:
    """Three servers that have the example file, word for word, and the bucket at R3."""
    with pytest.MonkeyPatch.context() as patch:
        for role in ROLES:
            patch.setenv(f"NATSBLOB_{role.upper()}_PASSWORD", f"pw-{role}")
        async with temporary_cluster(extra=ACCOUNTS.read_text()) as cluster:
            access = Access(
                tuple(cluster.urls), user="admin", password="pw-admin", inbox_prefix="_INBOX.admin"
            )
            async with await connect(access) as connection:
                await Bucket(JetStream(connection), "blobs", "blob").create(BucketConfig(replicas=3))
            yield cluster


@dataclass
class Honest:
    """A client that puts and gets without a pause, and what failed."""

    client: natsblob.Client
    name: str
    done: int = 0
    failures: list[str] = field(default_factory=list)

    async def once(self) -> None:
        size = (100, 5 * CHUNK, 1_200_000)[self.done % 3]
        data = pattern(size, f"{self.name} {self.done}")
        self.done += 1
        try:
            info = await self.client.put(data, timeout=20)
            if await self.client.get(info.digest, timeout=20) != data:
                self.failures.append(f"{self.name}: other bytes")
            if not await self.client.has(info.digest, timeout=20):
                self.failures.append(f"{self.name}: not there")
        except natsblob.BlobError as error:
            self.failures.append(f"{self.name}: {type(error).__name__}: {error}")

    @asynccontextmanager
    async def meanwhile(self) -> AsyncIterator[None]:
        """Go on while this lasts, and end what was begun."""
        ended = asyncio.Event()

        async def go_on() -> None:
            while not ended.is_set():
                await self.once()

        task = asyncio.create_task(go_on())
        try:
            yield
        finally:
            ended.set()
            await task


@dataclass
class Scene:
    cluster: EmbeddedCluster
    tenant: Raw
    admin: NatsClient
    honest: list[Honest]
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Whose turn it is to use the attacker's connection."""

    async def still_lives(self) -> None:
        """The stream has a leader, all copies follow, it takes a message, and nobody noticed anything."""
        async with asyncio.timeout(60):
            while not await self._is_followed():  # noqa: ASYNC110 - servers decide
                await asyncio.sleep(0.2)
        for client in self.honest:
            await client.once()
            assert not client.failures
            assert client.done > 1

    async def _is_followed(self) -> bool:
        try:
            message = await self.admin.request("$JS.API.STREAM.INFO.OBJ_blobs", timeout=5)
        except nats.errors.Error:  # nobody leads, or the connection is not back yet
            return False
        cluster = json.loads(message.data).get("cluster", {})
        copies = cluster.get("replicas", [])
        return bool(cluster.get("leader")) and len(copies) == 2 and all(copy["current"] for copy in copies)

    async def foreign_headers(self) -> set[str]:
        """Headers of stored chunks that no worker writes."""
        state = (await self.admin.jetstream().stream_info("OBJ_blobs")).state
        found: set[str] = set()
        gate = asyncio.Semaphore(32)

        async def look(seq: int) -> None:
            async with gate:
                body = json.dumps({"seq": seq}).encode()
                answer = await self.admin.request("$JS.API.DIRECT.GET.OBJ_blobs", body, timeout=10)
            headers = answer.headers or {}
            subject = str(headers.get("Nats-Subject", ""))
            if subject.startswith("$O.blobs.C.") and subject.count(".") == CHUNK_DOTS:
                found.update(str(name) for name in headers)

        await asyncio.gather(*map(look, range(max(1, state.first_seq), state.last_seq + 1)))
        return {name for name in found if name not in OURS and name not in DIRECT}


DIRECT = {"Nats-Stream", "Nats-Subject", "Nats-Sequence", "Nats-Time-Stamp", "Nats-Num-Pending"}
"""What a direct read adds."""


@pytest.fixture
async def scene(guarded: EmbeddedCluster) -> AsyncIterator[Scene]:
    settings = Settings(
        server=tuple(guarded.urls),
        user="service",
        password="pw-service",
        storage_user="storage",
        storage_password="pw-storage",
        inbox_prefix="_INBOX_worker",
        chunk_size=CHUNK,
    )
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(worker(settings)) for _ in range(2)]
        nc = await nats.connect(guarded.urls[0], inbox_prefix="_INBOX.tenant", **TENANT)
        await stack.enter_async_context(nc)
        login = {"user": "admin", "password": "pw-admin"}
        admin = await nats.connect(guarded.urls[1], inbox_prefix="_INBOX.admin", **login)
        await stack.enter_async_context(admin)
        honest = []
        for user in ("tenant", "uploader"):
            access = Access(
                tuple(guarded.urls), user=user, password=f"pw-{user}", inbox_prefix=f"_INBOX.{user}"
            )
            client = await stack.enter_async_context(natsblob.connect(access, timeout=20))
            honest.append(Honest(client, user))
        yield Scene(guarded, Raw(nc, "blob", "blobs", [one.id for one in workers]), admin, honest)


def subjects(scene: Scene, opened: dict[str, Any]) -> Sequence[str]:
    """Whatever a tenant can name, whether it may publish there or not."""
    endpoints = ["put", "get", "has", "stat", "list", "delete", "caps", "put.open", "put.status", "put.abort"]
    stage = opened["chunk_subject"].rpartition(".")[2]
    here = [f"blob.{name}" for name in endpoints]
    workers = [
        subject
        for one in scene.tenant.ids
        for subject in (f"blob.relay.{one}.{stage}", f"blob.relay.{one}.{STAGE}", f"blob.put.commit.{one}")
    ]
    stream = [
        f"$O.blobs.{tail}"
        for tail in (f"C.{stage}", f"C.{STAGE}", f"C.{stage}.decision", "M.x", f"C.{'0' * 64}.proof")
    ]
    api = [
        f"$JS.API.{call}.OBJ_blobs"
        for call in ("STREAM.DELETE", "STREAM.PURGE", "STREAM.INFO", "STREAM.MSG.DELETE", "DIRECT.GET")
    ]
    others = [
        "blob.chunk.blobs.x",
        f"blob.chunk.blobs.{STAGE}",
        "blob",
        "blob.x",
        "blob.put.commit",
        "blob.\x01",
    ]
    foreign = [
        "_INBOX.uploader.x",
        "_INBOX_worker.x",
        "_INBOX.admin.x",
        "_R_.x",
        "$SRV.PING",
        "$SYS.REQ.SERVER.PING",
    ]
    return [*here, *workers, *stream, *api, *others, *foreign, "$JS.API.CONSUMER.CREATE.OBJ_blobs", "$KV.x.y"]


def blocks() -> list[bytes]:
    """Every header that some server understands, with values of every kind, and odd blocks."""
    words = {"last": 1, "of_subject": 1, "seen": "seen", "stream": "OBJ_blobs", "subject": "x", "inbox": "x"}

    def written(case: Case) -> bytes:
        is_whole = case.block.startswith("!")
        text = case.block[1:] if is_whole else f"NATS/1.0\r\n{case.block}"
        return f"{text}\r\n".format(**words).encode()

    place = Place(STAGE, 0, b"x")
    found = [written(case) for case in all_cases() if "batch of one" not in case.group]
    return [
        EVIL,
        *(block for block in found if len(block) < 16_000),
        *(make(place) for make in BLOCKS.values()),
    ]


async def test_whatever_a_tenant_publishes_the_bucket_lives(scene: Scene) -> None:
    opened = (await scene.tenant.ask("put.open")).json
    assert opened["relayed"] is True
    count = 0
    async with AsyncExitStack() as stack:
        wire = await stack.enter_async_context(Wire(scene.cluster.urls[2], **TENANT_WIRE))
        for client in scene.honest:
            await stack.enter_async_context(client.meanwhile())
        targets = subjects(scene, opened)
        for number, block in enumerate(blocks()):
            chosen = targets if number % 50 == 0 else targets[number % 9 :: 9]
            for subject in chosen:
                for body in (b"", b"x" * CHUNK):
                    size = len(block) + len(body)
                    head = f"HPUB {subject} _INBOX.tenant.evil {len(block)} {size}\r\n".encode()
                    wire._writer.write(head + block + body + b"\r\n")
                    count += 1
            await wire.send(b"")
    assert count > 3_000
    await scene.still_lives()
    assert await scene.foreign_headers() == set()


async def odd_upload(scene: Scene, wire: Wire, number: int, name: str) -> str:
    """A relayed upload with this header block on one of its chunks; what its commit answers."""
    chunks = [pattern(CHUNK, f"{name} 0"), pattern(CHUNK, f"{name} 1"), pattern(70, f"{name} 2")]
    opened = (await scene.tenant.ask("put.open")).json
    assert opened["relayed"] is True
    stage = opened["chunk_subject"].rpartition(".")[2]
    async with scene.turn:
        for index, data in enumerate(chunks):
            block = (BLOCKS[name] if index == number % 3 else right)(Place(stage, index, data))
            await wire.publish(opened["chunk_subject"], f"_INBOX.tenant.evil.{index}", block, data)
    content = b"".join(chunks)
    digest = hashlib.sha256(content).hexdigest()
    body = {"upload": opened["upload"], "size": len(content), "chunks": 3, "digest": digest}
    at = opened["commit_subject"].removeprefix("blob.")
    answer = await scene.tenant.ask(at, body, timeout=45)
    if answer.code:
        return str(answer.error["name"])
    assert (await scene.tenant.ask("get", digest.encode())).data == content
    return "committed"


async def test_whatever_chunks_a_tenant_sends_they_are_stored_as_ours_or_refused(scene: Scene) -> None:
    async with AsyncExitStack() as stack:
        wire = await stack.enter_async_context(Wire(scene.cluster.urls[2], **TENANT_WIRE))
        for client in scene.honest:
            await stack.enter_async_context(client.meanwhile())
        uploads = [odd_upload(scene, wire, number, name) for number, name in enumerate(BLOCKS)]
        outcomes = Counter(await asyncio.gather(*uploads))
    assert outcomes["committed"] > 0
    assert outcomes.keys() <= {"committed", "bad_request", "digest_mismatch", "upload_expired"}
    await scene.still_lives()
    assert await scene.foreign_headers() == set()


# nats-py leaves the socket of an attempt to reconnect that failed to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_after_all_that_a_restart_finds_everything(scene: Scene) -> None:
    """Last: the stream is recovered from what was stored."""
    for client in scene.honest:
        await client.once()
    await asyncio.gather(*(server.stop() for server in scene.cluster.servers))
    await asyncio.gather(*(server.start() for server in scene.cluster.servers))
    await scene.cluster.settled()
    await scene.still_lives()
