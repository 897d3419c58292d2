"""A stream that is made anew, restored or emptied while a worker runs: the worker notices."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import uuid4

import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from natsblob.broker.connection import Access, connect
from natsblob.broker.embedded import EmbeddedServer
from natsblob.broker.jetstream import JetStream
from natsblob.digest import Digest
from natsblob.errors import BlobNotFoundError, UnavailableError
from natsblob.maintenance.collect import Collector
from natsblob.objectstore.bucket import Bucket, BucketConfig
from natsblob.objectstore.cache import EntryCache
from natsblob.objectstore.generation import Signs
from natsblob.objectstore.info import new_nuid
from natsblob.objectstore.objects import Objects
from natsblob.objectstore.writer import Written
from natsblob.store.jetstream import JetStreamStore
from natsblob.testing.payloads import source


@dataclass
class Backup:
    """A snapshot as `nats stream backup` takes it."""

    config: dict[str, Any]
    state: dict[str, Any]
    pieces: list[bytes] = field(default_factory=list)


@dataclass
class Lab:
    """A store as a worker has it, with its cache, and an administrator of the server."""

    store: JetStreamStore
    objects: Objects
    admin: Client

    @property
    def stream(self) -> str:
        return self.objects.bucket.layout.stream

    async def put(self, *texts: str) -> list[Digest]:
        return [(await self.store.put(source(text.encode()))).digest for text in texts]

    async def listed(self) -> set[Digest]:
        found: set[Digest] = set()
        after: Digest | None = None
        while True:
            page = await self.store.list(after=after, limit=2)
            found |= {info.digest for info in page.blobs}
            after = page.after
            if after is None:
                return found

    async def call(self, operation: str, body: object = None) -> dict[str, Any]:
        data = json.dumps(body).encode() if body is not None else b""
        reply = await self.admin.request(f"$JS.API.{operation}.{self.stream}", data, timeout=5)
        answer: dict[str, Any] = json.loads(reply.data)
        assert "error" not in answer, answer
        return answer

    async def make_anew(self) -> None:
        config = (await self.call("STREAM.INFO"))["config"]
        await self.call("STREAM.DELETE")
        await self.call("STREAM.CREATE", config)

    async def backup(self) -> Backup:
        inbox, ended = self.admin.new_inbox(), asyncio.Event()
        pieces: list[bytes] = []

        async def take(message: Msg) -> None:
            if not message.data:
                ended.set()
                return
            pieces.append(message.data)
            if message.reply:
                await message.respond(b"")

        subscription = await self.admin.subscribe(inbox, cb=take)
        said = await self.call("STREAM.SNAPSHOT", {"deliver_subject": inbox, "chunk_size": 64 * 1024})
        async with asyncio.timeout(10):
            await ended.wait()
        await subscription.unsubscribe()
        return Backup(said["config"], said["state"], pieces)

    async def restore(self, backup: Backup) -> None:
        await self.call("STREAM.DELETE")
        said = await self.call("STREAM.RESTORE", {"config": backup.config, "state": backup.state})
        for piece in backup.pieces:
            await self.admin.request(said["deliver_subject"], piece, timeout=10)
        reply = await self.admin.request(said["deliver_subject"], b"", timeout=10)
        assert "error" not in json.loads(reply.data)


@pytest.fixture(params=["another time of creation", "the same time of creation"])
async def lab(
    request: pytest.FixtureRequest, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Lab]:
    """Some servers bring the time of creation back with a restore: then it is no sign."""
    if request.param == "the same time of creation":
        monkeypatch.setattr(Signs, "of", lambda info: Signs(None, info.state.last_seq, info.state.last_ts))
    name = uuid4().hex
    async with (
        await connect(Access((server.url,))) as connection,
        await nats.connect(server.url) as admin,
    ):
        bucket = Bucket(JetStream(connection), name, prefix=f"t{name}")
        await bucket.create(BucketConfig(name))
        objects, cache = Objects(bucket, chunk_size=1024), EntryCache(bucket.layout)
        async with cache.listening(connection):
            yield Lab(JetStreamStore(objects, cache), objects, admin)
        await bucket.jetstream.delete(bucket.layout.stream)


async def check(lab: Lab, there: list[Digest], gone: list[Digest]) -> None:
    """List, has and get tell the truth."""
    assert await lab.listed() == set(there)
    assert set(await lab.store.missing([*there, *gone])) == set(gone)
    for digest in there:
        async with aclosing(lab.store.chunks(digest)) as chunks:  # type: ignore[type-var]
            assert Digest.of(b"".join([chunk async for chunk in chunks])) == digest
    for digest in gone:
        with pytest.raises(BlobNotFoundError):
            await anext(lab.store.chunks(digest))


@pytest.mark.parametrize("after", [0, 1, 2, 3, 4, 8])
async def test_made_anew(lab: Lab, after: int) -> None:
    """With fewer messages than there were, as many, or more."""
    before = await lab.put("a", "b", "c")
    await check(lab, before, [])
    await lab.make_anew()
    now = await lab.put(*map(str, range(after)))
    await check(lab, now, before)


@pytest.mark.parametrize("lost", [1, 3])
@pytest.mark.parametrize("after", [0, 1, 2, 3, 6])
async def test_restored(lab: Lab, lost: int, after: int) -> None:
    """The time of creation is the same, and what is stored next may get the sequence of what was lost."""
    before = await lab.put("a", "b", "c")
    backup = await lab.backup()
    gone = await lab.put(*(f"lost {number}" for number in range(lost)))
    await check(lab, [*before, *gone], [])
    await lab.restore(backup)
    now = await lab.put(*map(str, range(after)))
    await check(lab, [*before, *now], gone)


async def test_restored_with_what_was_deleted_since(lab: Lab) -> None:
    before = await lab.put("a", "b", "c")
    backup = await lab.backup()
    await lab.store.delete(before[0])
    await lab.put("d")
    await lab.listed()
    await lab.restore(backup)
    await check(lab, before, [Digest.of(b"d")])


async def purged(lab: Lab) -> None:
    await lab.call("STREAM.PURGE")


async def purged_in_part(lab: Lab) -> None:
    await lab.call("STREAM.PURGE", {"filter": f"$O.{lab.objects.bucket.name}.M.>"})


@pytest.mark.parametrize("edit", [purged, purged_in_part])
async def test_emptied(lab: Lab, edit: Callable[[Lab], Awaitable[None]]) -> None:
    before = await lab.put("a", "b", "c")
    await check(lab, before, [])
    await edit(lab)
    now = await lab.put("d", "e")
    assert await lab.listed() == set(now)
    lab.store._cache.clear()  # what was purged by hand is noticed when it expires there
    await check(lab, now, before)


async def test_grace_begins_anew_in_another_stream(lab: Lab) -> None:
    """An orphan of the old stream may be, in the restored one, what is just about to be named."""
    jetstream, layout = lab.objects.bucket.jetstream, lab.objects.bucket.layout
    await lab.put("a")
    nuid = new_nuid()
    await jetstream.publish(layout.chunks(nuid), b"chunk")
    backup = await lab.backup()
    await lab.put("b")
    one = Collector(lab.objects, expiry=timedelta(hours=1), interval=60)
    one._grace = 0.0
    await one.collect()
    await lab.restore(backup)
    assert (await one.collect()).uploads == 0
    assert (await one.collect()).uploads == 1
    assert await lab.listed() == {Digest.of(b"a")}


async def test_uploads_and_deletes_go_on_in_another_stream(lab: Lab) -> None:
    before = await lab.put("a", "b")
    await lab.listed()
    await lab.make_anew()
    [again] = await lab.put("a")
    assert again == before[0]
    assert await lab.listed() == {again}
    await lab.store.delete(again)
    assert await lab.listed() == set()


@pytest.mark.parametrize("how", ["small", "large"])
async def test_no_put_is_acknowledged_whose_chunks_are_in_the_stream_of_before(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    data = b"x" * (100 if how == "small" else 10_000)
    write = lab.objects.write_one if how == "small" else lab.objects.write

    async def anew(*given: Any) -> Written:
        written = await write(*given)
        await lab.make_anew()
        return written

    with monkeypatch.context() as patch:
        patch.setattr(lab.objects, write.__name__, anew)
        with pytest.raises(UnavailableError):
            await lab.store.put(source(data))
    digest = Digest.of(data)
    await check(lab, [], [digest])
    await lab.store.put(source(data))
    await check(lab, [digest], [])
