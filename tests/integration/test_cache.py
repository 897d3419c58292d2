"""What a worker remembers of blobs, while others delete and put them again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import uuid4

import pytest
import pytest_asyncio

from natsblob.broker.connection import Access, Connection, connect
from natsblob.broker.embedded import EmbeddedServer
from natsblob.broker.jetstream import JetStream
from natsblob.digest import Digest
from natsblob.errors import BlobNotFoundError
from natsblob.objectstore import cache
from natsblob.objectstore.bucket import Bucket, BucketConfig
from natsblob.objectstore.cache import EntryCache
from natsblob.objectstore.info import Entry, ObjectInfo
from natsblob.objectstore.objects import Objects
from natsblob.store.jetstream import JetStreamStore
from natsblob.testing.payloads import source

DATA = b"remembered"
DIGEST = Digest.of(DATA)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Pair:
    """Two workers on one bucket: one that remembers, and another."""

    remembers: JetStreamStore
    cache: EntryCache
    clock: Clock
    front: Connection
    other: JetStreamStore

    async def read(self) -> bytes:
        return b"".join([chunk async for chunk in self.remembers.chunks(DIGEST)])


@pytest_asyncio.fixture
async def pair(server: EmbeddedServer) -> AsyncIterator[Pair]:
    name = uuid4().hex
    async with (
        await connect(Access((server.url,))) as front,
        await connect(Access((server.url,))) as storage,
        await connect(Access((server.url,))) as elsewhere,
    ):
        bucket = Bucket(JetStream(storage), name, prefix=f"t{name}")
        await bucket.create(BucketConfig(name, storage="memory"))
        clock = Clock()
        entries = EntryCache(bucket.layout, clock=clock)
        other = Bucket(JetStream(elsewhere), name, prefix=f"t{name}")
        async with entries.listening(front):
            store = JetStreamStore(Objects(bucket), entries)
            yield Pair(store, entries, clock, front, JetStreamStore(Objects(other)))
        await bucket.jetstream.delete(bucket.layout.stream)


async def test_what_was_put_or_found_is_remembered(pair: Pair) -> None:
    await pair.remembers.put(source(DATA))
    assert pair.cache.get(DIGEST.hex) is not None
    other = Digest.of(b"other")
    await pair.other.put(source(b"other"))
    assert pair.cache.get(other.hex) is None
    await pair.remembers.stat(other)
    assert pair.cache.get(other.hex) is not None


async def test_what_another_worker_deletes_is_forgotten(pair: Pair) -> None:
    await pair.remembers.put(source(DATA))
    await pair.other.delete(DIGEST)
    await pair.front.flush()
    assert await pair.remembers.missing([DIGEST]) == [DIGEST]
    with pytest.raises(BlobNotFoundError):
        await pair.remembers.stat(DIGEST)


async def test_what_was_just_deleted_is_not_remembered_for_a_while(pair: Pair) -> None:
    """A replica that lags may still show it."""
    await pair.remembers.put(source(DATA))
    entry = pair.cache.get(DIGEST.hex)
    assert entry is not None
    looked_up_at = pair.cache.now()
    await pair.other.delete(DIGEST)
    await pair.front.flush()
    pair.cache.add(entry, looked_up_at)
    assert pair.cache.get(DIGEST.hex) is None
    pair.clock.now += cache.SETTLING
    pair.cache.add(entry, pair.cache.now())
    assert pair.cache.get(DIGEST.hex) is not None


async def test_entries_are_kept_for_a_while_only(pair: Pair) -> None:
    await pair.remembers.put(source(DATA))
    pair.clock.now += cache.KEPT_FOR + 1
    assert pair.cache.get(DIGEST.hex) is None


async def test_a_blob_that_was_replaced_unheard_is_read_all_the_same(pair: Pair) -> None:
    await pair.remembers.put(source(DATA))
    stale = pair.cache.get(DIGEST.hex)
    assert stale is not None
    await pair.other.delete(DIGEST)
    await pair.other.put(source(DATA))
    await pair.front.flush()
    pair.clock.now += cache.SETTLING
    pair.cache.add(stale, pair.cache.now())
    assert await pair.read() == DATA


async def test_the_number_of_entries_is_bounded(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MOST", 3)
    digests = [(await pair.remembers.put(source(bytes([number])))).digest for number in range(5)]
    assert [pair.cache.get(digest.hex) is not None for digest in digests] == [False, False, True, True, True]


async def test_metadata_of_any_size_is_not_remembered(pair: Pair) -> None:
    for description, is_kept in (("x" * 100_000, False), ("short", True)):
        info = ObjectInfo("a", "b", "c", description=description)
        pair.cache.add(Entry(info, 1, datetime.now(UTC)), pair.cache.now())
        assert (pair.cache.get("a") is not None) is is_kept


async def test_nothing_is_remembered_where_deletions_are_not_heard(pair: Pair) -> None:
    unheard = EntryCache(Objects(Bucket(JetStream(pair.front), "any", "any")).bucket.layout)
    await pair.remembers.put(source(DATA))
    entry = pair.cache.get(DIGEST.hex)
    assert entry is not None
    unheard.add(entry, unheard.now())
    assert unheard.get(DIGEST.hex) is None
