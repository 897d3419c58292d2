"""deploy/accounts/accounts.conf on a real server: each role can do its work, and nothing else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import nats
import pytest
import pytest_asyncio
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import StreamConfig

from natsblob.broker.embedded import EmbeddedServer
from natsblob.testing.servers import temporary_server

ACCOUNTS = Path(__file__).parents[2] / "deploy" / "accounts" / "accounts.conf"
ROLES = {
    "service": "_INBOX_worker",
    "storage": "_INBOX_worker",
    "admin": "_INBOX.admin",
    "uploader": "_INBOX.uploader",
    "tenant": "_INBOX.tenant",
    "system": "_INBOX",
}
"""The users, and the inbox prefix that belongs to each."""

PUBLISH = {
    # subject: who may publish to it
    "blob.put": {"admin", "tenant", "uploader"},
    "blob.put.commit.w1": {"admin", "tenant", "uploader"},
    "blob.chunk.blobs.UP1": {"admin", "tenant", "uploader"},
    "blob.chunk.others.UP1": {"admin", "tenant", "uploader"},
    "_INBOX.tenant.abc": {"service"},
    "_INBOX.uploader.abc": {"service"},
    "_R_.abc.def": {"service"},
    "_INBOX_worker.abc": set(),
    "$O.blobs.C.UP2": {"storage", "admin", "uploader"},
    "$O.blobs.C.UP2.decision": {"storage", "admin"},
    "$O.blobs.M.eA==": {"storage", "admin"},
    "$O.others.C.UP2": {"admin"},
    "$KV.others.key": set(),
    "$SYS.REQ.SERVER.PING": set(),
    "$SRV.PING": {"admin"},
    "$JS.API.INFO": {"storage", "admin"},
    "$JS.API.STREAM.INFO.OBJ_blobs": {"storage", "admin"},
    "$JS.API.STREAM.INFO.OBJ_others": {"admin"},
    "$JS.API.STREAM.MSG.GET.OBJ_blobs": {"storage", "admin"},
    "$JS.API.DIRECT.GET.OBJ_blobs": {"storage", "admin"},
    "$JS.API.DIRECT.GET.OBJ_blobs.$O.blobs.M.eA==": {"storage", "admin"},
    "$JS.API.DIRECT.GET.OBJ_others": {"admin"},
    "$JS.API.STREAM.PURGE.OBJ_blobs": {"storage", "admin"},
    "$JS.API.STREAM.PURGE.OBJ_others": {"admin"},
    "$JS.API.STREAM.CREATE.OBJ_blobs": {"admin"},
    "$JS.API.STREAM.UPDATE.OBJ_blobs": {"admin"},
    "$JS.API.STREAM.DELETE.OBJ_others": {"admin"},
    "$JS.API.STREAM.MSG.DELETE.OBJ_blobs": {"storage", "admin"},
    "$JS.API.CONSUMER.CREATE.OBJ_blobs": {"storage", "admin"},
    "$JS.ACK.OBJ_blobs.c.1.1.1.1.1": set(),
    "$JS.API.STREAM.NAMES": {"admin"},
    "$JS.API.STREAM.SNAPSHOT.OBJ_blobs": {"admin"},
    "$JS.API.STREAM.RESTORE.OBJ_blobs": {"admin"},
    "$JS.API.STREAM.PEER.REMOVE.OBJ_blobs": {"admin"},
    "$JS.API.STREAM.LEADER.STEPDOWN.OBJ_blobs": {"admin"},
    "$JS.API.META.LEADER.STEPDOWN": {"admin"},
    "$JS.API.ACCOUNT.PURGE.BLOB": {"admin"},
    "$JS.API.CONSUMER.MSG.NEXT.OBJ_blobs.c": {"storage", "admin"},
    "$JS.API.CONSUMER.DELETE.OBJ_blobs.c": {"storage", "admin"},
    "$JS.FC.OBJ_blobs.x": set(),
    "$SYS.REQ.ACCOUNT.BLOB.INFO": set(),
    "$SYS.REQ.USER.INFO": set(),
    "$SRV.STATS.natsblob": {"admin"},
    "blob.delete": {"admin", "tenant", "uploader"},
    "blob.relay.w1.UP1": {"admin", "tenant", "uploader"},
    "_INBOX.admin.abc": {"service"},
    "blob": set(),
    "blobs.put": set(),
    "anything.else": set(),
}

SUBSCRIBE = {
    # subject: who may subscribe to it
    "blob.get": {"service"},
    "blob.chunk.blobs.*": {"service"},
    "blob.relay.w1.*": {"service"},
    "$O.blobs.C.*": {"storage"},
    "blob.>": {"service"},
    "$SRV.PING.natsblob": {"service"},
    "_INBOX_worker.abc.>": {"service", "storage"},
    "_INBOX.admin.abc.*": {"admin"},
    "_INBOX.tenant.abc.*": {"tenant"},
    "_INBOX.>": set(),
    "_INBOX.other.*": set(),
    "_R_.>": set(),
    "$O.blobs.M.>": {"service"},
    "$O.blobs.>": set(),
    "$JS.>": set(),
    "$KV.>": set(),
    "$SYS.>": set(),
    ">": set(),
    "*.>": set(),
    "*": set(),
    "blob.put": {"service"},
    "blob.chunk.blobs.UP1": {"service"},
    "$O.blobs.C.UP1": {"storage"},
    "$O.blobs.C.>": {"storage"},  # the server lets `*` stand for `>`
    "$O.others.M.>": set(),
    "$SRV.>": {"service"},
    "$JS.EVENT.>": set(),
    "$JS.API.>": set(),
    "_INBOX_worker.>": {"service", "storage"},
    "_INBOX.admin.>": {"admin"},
    "_INBOX.tenant.>": {"tenant"},
    "_INBOX.uploader.>": {"uploader"},
    "_INBOX.*": set(),
    "anything.else": set(),
}

JUDGED = sorted(ROLES.keys() - {"system"})


def password(role: str) -> str:
    return f"pw-{role}"


@pytest.fixture(scope="module")
def passwords() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for role in ROLES:
            patch.setenv(f"NATSBLOB_{role.upper()}_PASSWORD", password(role))
        yield


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guarded(passwords: None) -> AsyncIterator[EmbeddedServer]:
    """A server that has the example file, word for word, and the bucket's stream."""
    async with temporary_server(extra=ACCOUNTS.read_text()) as server:
        async with member(server, "admin") as admin:
            await admin.nc.jetstream().add_stream(bucket_stream())
        yield server


def bucket_stream() -> StreamConfig:
    return StreamConfig(
        name="OBJ_blobs",
        subjects=["$O.blobs.C.>", "$O.blobs.M.>"],
        discard="new",  # type: ignore[arg-type] # the client turns it into JSON as it is
        allow_direct=True,
        allow_rollup_hdrs=True,
    )


async def processed(nc: Client) -> None:
    """Returns when the server has seen all that was sent, and its refusals have arrived.

    The client's first PING overtakes what waits in its buffer; the second one comes behind it.
    """
    await nc.flush()
    await nc.flush()


class Member:
    """A connection of one role, and what the server has refused it."""

    def __init__(self, nc: Client, refusals: list[Exception]) -> None:
        self.nc = nc
        self._refusals = refusals

    async def may_publish(self, subject: str, reply: str = "") -> bool:
        self._refusals.clear()
        await self.nc.publish(subject, b"", reply=reply)
        await processed(self.nc)
        return not self._refusals

    async def may_subscribe(self, subject: str, queue: str = "") -> bool:
        self._refusals.clear()
        await self.nc.subscribe(subject, queue=queue)
        await processed(self.nc)
        return not self._refusals


@asynccontextmanager
async def member(server: EmbeddedServer, role: str) -> AsyncIterator[Member]:
    refusals: list[Exception] = []

    async def refused(error: Exception) -> None:
        refusals.append(error)

    nc = await nats.connect(
        server.url, user=role, password=password(role), inbox_prefix=ROLES[role], error_cb=refused
    )
    try:
        yield Member(nc, refusals)
    finally:
        await nc.close()


@pytest.mark.parametrize("role", JUDGED)
async def test_who_may_publish_where(guarded: EmbeddedServer, role: str) -> None:
    async with member(guarded, role) as one:
        may = {subject for subject in PUBLISH if await one.may_publish(subject)}
    assert may == {subject for subject, roles in PUBLISH.items() if role in roles}


@pytest.mark.parametrize("role", JUDGED)
async def test_who_may_subscribe_to_what(guarded: EmbeddedServer, role: str) -> None:
    may = set()
    for subject in SUBSCRIBE:
        async with member(guarded, role) as one:
            if await one.may_subscribe(subject):
                may.add(subject)
    assert may == {subject for subject, roles in SUBSCRIBE.items() if role in roles}


async def test_a_worker_may_join_the_queue_group(guarded: EmbeddedServer) -> None:
    async with member(guarded, "service") as service:
        assert await service.may_subscribe("blob.put", queue="natsblob")


@pytest.mark.parametrize("login", [{}, {"user": "admin"}, {"user": "admin", "pass": "wrong"}])
async def test_nobody_comes_in_without_a_password(guarded: EmbeddedServer, login: dict[str, str]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", guarded.port)
    writer.write(b"CONNECT " + json.dumps(login).encode() + b"\r\nPING\r\n")
    said = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    await writer.wait_closed()
    assert b"-ERR" in said
    assert b"PONG" not in said


async def test_who_is_trusted_puts_chunks_into_the_stream_and_hears_that_they_are_stored(
    guarded: EmbeddedServer,
) -> None:
    subject, headers = "$O.blobs.C.INGEST", {"Nats-Msg-Id": "INGEST.0", "Blob-Chunk": "0"}
    async with member(guarded, "uploader") as uploader, member(guarded, "storage") as storage:
        tap = await storage.nc.subscribe("$O.blobs.C.*")
        await processed(storage.nc)
        first = json.loads((await uploader.nc.request(subject, b"a", headers=headers)).data)
        again = json.loads((await uploader.nc.request(subject, b"a", headers=headers)).data)
        seen = await tap.next_msg()
        stored = await storage.nc.request(f"$JS.API.DIRECT.GET.OBJ_blobs.{subject}", b"")
    assert (first["stream"], first.get("duplicate", False)) == ("OBJ_blobs", False)
    assert (again["seq"], again["duplicate"]) == (first["seq"], True)
    assert (seen.subject, seen.data) == (subject, b"a")
    assert stored.data == b"a"


@pytest.mark.parametrize("header", ["Nats-Expected-Last-Msg-Id", "Nats-Rollup", "Nats-Expected-Stream"])
async def test_nothing_that_a_tenant_may_publish_reaches_a_stream(
    guarded: EmbeddedServer, header: str
) -> None:
    subjects = [subject for subject in PUBLISH if not subject.endswith(">")]
    async with member(guarded, "tenant") as tenant, member(guarded, "admin") as admin:
        js = admin.nc.jetstream()
        before = (await js.stream_info("OBJ_blobs")).state
        for subject in [*subjects, "blob.chunk.blobs.UP1", "blob.relay.w1.UP1"]:
            await tenant.nc.publish(subject, b"x", headers={header: "unmet"})
        await processed(tenant.nc)
        after = (await js.stream_info("OBJ_blobs")).state
    assert (after.last_seq, after.messages) == (before.last_seq, before.messages)


async def frames_to(tenant: Client, service: Client, count: int) -> list[bytes]:
    """Have the service answer one request with `count` frames; those that reach the tenant."""

    async def answer(request: Msg) -> None:
        for index in range(count):
            await service.publish(request.reply, str(index).encode())

    await service.subscribe("blob.get", queue="natsblob", cb=answer)
    await processed(service)
    inbox = tenant.new_inbox()
    frames = await tenant.subscribe(inbox)
    await tenant.publish("blob.get", b"", reply=inbox)
    received: list[bytes] = []
    try:
        while len(received) < count:
            received.append((await frames.next_msg(timeout=1)).data)
    except nats.errors.TimeoutError:
        pass
    return received


async def test_many_frames_reach_a_tenant(guarded: EmbeddedServer) -> None:
    async with member(guarded, "tenant") as tenant, member(guarded, "service") as service:
        assert await frames_to(tenant.nc, service.nc, 50) == [str(index).encode() for index in range(50)]


async def test_without_streaming_responses_they_would_not(passwords: None) -> None:
    singleton = ACCOUNTS.read_text().replace("response_type: Stream, ", "")
    async with (
        temporary_server(extra=singleton) as server,
        member(server, "tenant") as tenant,
        member(server, "service") as service,
    ):
        assert await frames_to(tenant.nc, service.nc, 3) == [b"0"]


async def test_storage_has_a_replica_answer_the_reader_directly(guarded: EmbeddedServer) -> None:
    async with member(guarded, "storage") as storage, member(guarded, "admin") as reader:
        for index in range(3):
            await storage.nc.request("$O.blobs.C.DIRECT", str(index).encode())
        inbox = reader.nc.new_inbox()
        frames = await reader.nc.subscribe(inbox)
        await processed(reader.nc)
        request = json.dumps({"seq": 1, "next_by_subj": "$O.blobs.C.DIRECT", "batch": 3}).encode()
        await storage.nc.publish("$JS.API.DIRECT.GET.OBJ_blobs", request, reply=inbox)
        received = [(await frames.next_msg(timeout=5)).data for _ in range(4)]
    assert received == [b"0", b"1", b"2", b""]


@pytest.mark.parametrize("attacker", ["tenant", "admin"])
async def test_a_worker_is_no_deputy(guarded: EmbeddedServer, attacker: str) -> None:
    """The reply subject of a request cannot make the worker publish where it must not."""
    answered = asyncio.Event()
    async with (
        member(guarded, "service") as service,
        member(guarded, attacker) as one,
        member(guarded, "admin") as admin,
    ):

        async def answer(request: Msg) -> None:
            await service.nc.publish(request.reply, b"")
            await processed(service.nc)
            answered.set()

        await service.nc.subscribe("blob.get", cb=answer)
        await processed(service.nc)
        await one.nc.publish("blob.get", b"", reply="$JS.API.STREAM.DELETE.OBJ_blobs")
        await asyncio.wait_for(answered.wait(), 5)
        info = await admin.nc.jetstream().stream_info("OBJ_blobs")
    assert info.config.name == "OBJ_blobs"


async def test_the_admin_creates_changes_and_removes_buckets(guarded: EmbeddedServer) -> None:
    async with member(guarded, "admin") as admin:
        js = admin.nc.jetstream()
        await js.add_stream(name="OBJ_spare", subjects=["$O.spare.>"])
        changed = await js.update_stream(name="OBJ_spare", subjects=["$O.spare.>"], max_bytes=1024)
        await js.publish("$O.spare.C.x", b"x")
        assert changed.config.max_bytes == 1024
        assert await js.purge_stream("OBJ_spare")
        assert await js.delete_stream("OBJ_spare")
