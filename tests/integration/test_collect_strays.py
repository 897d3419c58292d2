"""Collection of what no client could name, and of what fails: neither ends a pass, and neither stays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from natsblob.broker import census as broker_census
from natsblob.broker.census import Census
from natsblob.broker.connection import Access, connect
from natsblob.broker.consumers import Copies
from natsblob.broker.embedded import EmbeddedServer
from natsblob.broker.jetstream import JetStream
from natsblob.digest import Digest
from natsblob.errors import InternalError, NotAllowedError, SetupError, UnavailableError
from natsblob.maintenance import leftovers
from natsblob.maintenance.collect import Collected, Collector
from natsblob.maintenance.replicas import Comparer
from natsblob.objectstore import writer
from natsblob.objectstore.bucket import Bucket, BucketConfig
from natsblob.objectstore.info import new_nuid
from natsblob.objectstore.objects import Objects
from natsblob.store.jetstream import JetStreamStore
from natsblob.testing.payloads import pattern, source
from natsblob.testing.servers import temporary_server
from tests.integration.raw import Wire

DATA = pattern(100)
TOKENS = (
    b"*",
    b">",
    b"a.*",
    b"a.>",
    b"a.b.*.c",
    b"\x01",
    b"\x0b",
    b"\x7f",
    b"del\x7fete",
    b"\xff\xfe",
    b"\xe2\x82",
    "\u00e9".encode(),
    "\ufffd".encode(),
    b'quo"te\\',
    b"a*b",
    b"a>b",
    b"short",
    b"x" * 255,
    b"x" * 3900,
    b"0123456789012345678901.decision.more",
    b"0123456789012345678901.*",
    b"0123456789012345678901.\x7f",
)


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is unnamed is due at once."""
    monkeypatch.setattr(writer, "NAMING", timedelta(0))


@pytest.fixture
async def objects(server: EmbeddedServer) -> AsyncIterator[Objects]:
    name = uuid4().hex
    async with await connect(Access((server.url,))) as connection:
        bucket = Bucket(JetStream(connection), name, prefix=f"t{name}")
        await bucket.create(BucketConfig(name, rollups=True))
        yield Objects(bucket, chunk_size=1024)
        await bucket.jetstream.delete(bucket.layout.stream)


async def plant(objects: Objects, url: str, below: str, *tokens: bytes, data: bytes = b"garbage") -> None:
    """Store a message under each token, byte for byte: no client library would."""
    before = await left(objects)
    async with Wire(url) as wire:
        for token in tokens:
            subject = f"$O.{objects.bucket.name}.{below}.".encode() + token
            await wire.send(b"PUB %s %d\r\n%s\r\n" % (subject, len(data), data))
    await until(objects, before + len(tokens))


async def until(objects: Objects, count: int) -> None:
    """Wait until so many messages are stored: what was published so is not acknowledged."""
    for _ in range(1000):
        if await left(objects) == count:
            return
        await asyncio.sleep(0.01)
    pytest.fail(f"{await left(objects)} messages are stored, not {count}")


async def passes(objects: Objects, count: int = 4) -> list[Collected]:
    one = Collector(objects, expiry=timedelta(0), interval=60)
    return [await one.collect() for _ in range(count)]


async def left(objects: Objects) -> int:
    return (await objects.bucket.info()).state.messages


async def stored(objects: Objects) -> tuple[JetStreamStore, Digest, int]:
    """A blob that has to survive, and how many messages it has."""
    store = JetStreamStore(objects)
    return store, (await store.put(source(pattern(3000)))).digest, await left(objects)


async def check(store: JetStreamStore, digest: Digest) -> None:
    assert Digest.of(b"".join([chunk async for chunk in store.chunks(digest)])) == digest


@pytest.mark.parametrize("token", TOKENS)
async def test_a_token_that_no_upload_has_goes_alone(
    objects: Objects, server: EmbeddedServer, token: bytes
) -> None:
    store, digest, before = await stored(objects)
    await plant(objects, server.url, "C", token, token)
    assert await left(objects) == before + 2
    await passes(objects)
    assert await left(objects) == before
    await check(store, digest)


async def test_all_of_them_and_an_ordinary_orphan_go_in_one_pass(
    objects: Objects, server: EmbeddedServer
) -> None:
    store, digest, before = await stored(objects)
    await plant(objects, server.url, "C", *TOKENS, new_nuid().encode())
    await passes(objects)
    assert await left(objects) == before
    await check(store, digest)


@pytest.mark.parametrize("token", [b"*", b">", b"\x7f", b"\xff", b"bad.*"])
async def test_metadata_that_nobody_can_ask_for_goes(
    objects: Objects, server: EmbeddedServer, token: bytes
) -> None:
    store, digest, before = await stored(objects)
    await plant(objects, server.url, "M", token)
    await passes(objects)
    assert await left(objects) == before
    await check(store, digest)


@pytest.mark.parametrize(
    "data", [b"", b"not json", b"[]", b"\xff\xfe", b'{"name":1}', b"{" * 5000, b'{"nuid":"*","size":1}']
)
async def test_metadata_that_says_nothing_goes(objects: Objects, server: EmbeddedServer, data: bytes) -> None:
    store, digest, before = await stored(objects)
    await plant(objects, server.url, "M", b"bW1t", b"bm5u", data=data)
    await plant(objects, server.url, "C", new_nuid().encode())
    await passes(objects)
    assert await left(objects) == before
    await check(store, digest)


async def test_what_unreadable_metadata_mentions_stays(objects: Objects, server: EmbeddedServer) -> None:
    nuid = new_nuid().encode()
    await plant(objects, server.url, "C", nuid)
    body = b'{"name": "of a client to come", "nuid": "%s", "size": "many", "chunks": {}}' % nuid
    await plant(objects, server.url, "M", b"bW1t", data=body)
    await passes(objects)
    assert await left(objects) == 2


async def test_what_is_young_stays_whatever_it_is(objects: Objects, server: EmbeddedServer) -> None:
    await plant(objects, server.url, "C", *TOKENS)
    await plant(objects, server.url, "M", b"bW1t", b"\x7f")
    before = await left(objects)
    one = Collector(objects, expiry=timedelta(minutes=1), interval=60)
    for _ in range(4):
        assert await one.collect() == Collected(0, 0)
    assert await left(objects) == before


async def test_a_failure_with_one_orphan_leaves_the_others_to_the_pass(
    objects: Objects, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    nuids = sorted(new_nuid() for _ in range(5))
    await plant(objects, server.url, "C", *(nuid.encode() for nuid in nuids))
    drop = Objects.drop

    async def failing(self: Objects, nuid: str) -> None:
        if nuid == nuids[0]:
            raise InternalError("not this one")
        await drop(self, nuid)

    with monkeypatch.context() as broken:
        broken.setattr(Objects, "drop", failing)
        assert [each.uploads for each in await passes(objects, 2)] == [0, 4]
    assert sum(each.uploads for each in await passes(objects, 2)) == 1


async def test_a_storage_that_is_gone_ends_the_pass(
    objects: Objects, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await plant(objects, server.url, "C", *(new_nuid().encode() for _ in range(40)))
    asked = 0

    async def failing(*_: Any) -> None:
        nonlocal asked
        asked += 1
        raise UnavailableError("gone")

    monkeypatch.setattr(Objects, "drop", failing)
    with pytest.raises(UnavailableError):
        await passes(objects)
    assert asked < 40


async def test_more_than_is_watched_goes_one_part_after_the_other(
    objects: Objects, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers, "MOST", 10)
    store, digest, before = await stored(objects)
    await plant(objects, server.url, "C", *(new_nuid().encode() for _ in range(25)))
    await plant(objects, server.url, "C", *[b"*"] * 25)
    one = Collector(objects, expiry=timedelta(0), interval=60)
    for _ in range(20):
        assert (await one.collect()).uploads <= 10
    assert await left(objects) == before
    await check(store, digest)


@pytest.mark.parametrize("part", [1, 3, 100])
async def test_a_census_has_every_message_in_order(
    objects: Objects, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    monkeypatch.setattr(broker_census, "PART", part)
    await plant(objects, server.url, "C", *TOKENS, *TOKENS)
    stream = objects.bucket.layout.stream
    found = [each.seq async for each in Census(objects.bucket.jetstream, stream).messages()]
    assert found == list(range(1, 2 * len(TOKENS) + 1))
    assert [each.seq async for each in Census(objects.bucket.jetstream, stream).messages(start=20)] == found[
        19:
    ]
    assert [each async for each in Census(objects.bucket.jetstream, stream).messages(start=999)] == []


async def test_a_census_is_not_stopped_by_large_headers(
    objects: Objects, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [*[60_000] * 5, 10, 10, *[60_000] * 4]
    async with Wire(server.url) as wire:
        for size in sizes:
            block = b"NATS/1.0\r\nX-Large: %s\r\n\r\n" % (b"y" * size)
            await wire.publish(f"$O.{objects.bucket.name}.C.{new_nuid()}", "_INBOX.a", block)
    await until(objects, len(sizes))
    for most in (100_000, 1000):
        monkeypatch.setattr(broker_census, "PART_BYTES", most)
        found = [
            each async for each in Census(objects.bucket.jetstream, objects.bucket.layout.stream).messages()
        ]
        assert len(found) == len(sizes)
    await passes(objects)
    assert await left(objects) == 0


async def test_nothing_is_read_where_reading_removes(objects: Objects) -> None:
    jetstream = objects.bucket.jetstream
    bucket = Bucket(jetstream, f"kept{uuid4().hex}", "blob")
    stream = bucket.layout.stream
    await jetstream.create({"name": stream, "subjects": [bucket.layout.all_meta], "retention": "interest"})
    with pytest.raises(SetupError):
        await anext(Census(jetstream, stream).messages())
    with pytest.raises(SetupError):
        await Comparer(Objects(bucket), Copies(jetstream.connection, stream)).compare()
    await jetstream.delete(stream)


@pytest.mark.parametrize(("denied", "stays"), [("CONSUMER.CREATE.>", True), ("STREAM.MSG.DELETE.>", False)])
async def test_without_a_permission_workers_serve(denied: str, stays: bool) -> None:
    """Without the right to list nothing is collected; without that to remove messages, strays are not."""
    user = f'user: a, password: pw, permissions: {{ publish: {{ deny: ["$JS.API.{denied}"] }} }}'
    async with (
        temporary_server(extra=f"authorization {{ users: [ {{ {user} }} ] }}") as guarded,
        await connect(Access((guarded.url,), user="a", password="pw")) as connection,
    ):
        bucket = Bucket(JetStream(connection), "blobs", prefix="blob")
        await bucket.create(BucketConfig("blobs", storage="memory"))
        objects = Objects(bucket, chunk_size=1024)
        store, digest, before = await stored(objects)
        for token in ("short", "*"):
            await connection.publish(bucket.layout.chunks(token), b"garbage")
        await until(objects, before + 2)
        one = Collector(objects, expiry=timedelta(0), interval=60)
        for _ in range(3):
            with suppress(NotAllowedError):
                await one.collect()
        assert await left(objects) == before + (2 if stays else 1)
        await check(store, digest)
