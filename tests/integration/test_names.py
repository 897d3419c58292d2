"""Names in order, a range at a time: nothing is left out, and not every page reads all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from natsblob.broker.connection import Access, connect
from natsblob.broker.embedded import EmbeddedServer
from natsblob.broker.jetstream import JetStream
from natsblob.broker.scan import Subjects
from natsblob.digest import Digest
from natsblob.objectstore import names
from natsblob.objectstore.bucket import Bucket, BucketConfig
from natsblob.objectstore.names import END, Names
from natsblob.objectstore.objects import Objects
from natsblob.store.jetstream import JetStreamStore
from natsblob.testing.payloads import source

BLOBS = 60


@pytest.fixture
async def objects(server: EmbeddedServer) -> AsyncIterator[Objects]:
    name = uuid4().hex
    async with await connect(Access((server.url,))) as connection:
        bucket = Bucket(JetStream(connection), name, prefix=f"t{name}")
        await bucket.create(BucketConfig(name, storage="memory"))
        yield Objects(bucket, chunk_size=1024)
        await bucket.jetstream.delete(bucket.layout.stream)


@pytest.fixture
async def stored(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The digests of some blobs, in order, in a bucket that is several ranges long."""
    monkeypatch.setattr(names, "SPAN", BLOBS // 2)
    store = JetStreamStore(objects)
    infos = [await store.put(source(b"blob %d" % number)) for number in range(BLOBS)]
    return sorted(info.digest.hex for info in infos)


@pytest.fixture
def listings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """From which subject on all of them were listed, each time."""
    begun: list[int] = []
    original = Subjects.__aiter__

    def counted(self: Subjects) -> AsyncIterator[tuple[str, int]]:
        begun.append(self._seen)
        return original(self)

    monkeypatch.setattr(Subjects, "__aiter__", counted)
    return begun


async def read(known: Names, most: int, position: str = "") -> list[str]:
    found: list[str] = []
    while position != END:
        some, position = await known.behind(position, most)
        assert len(some) <= most
        found += some
    return found


@pytest.mark.parametrize("most", [1, 7, BLOBS])
async def test_ranges_join_without_gap_or_repeat(
    objects: Objects, stored: list[str], listings: list[int], most: int
) -> None:
    known = Names(objects)
    assert await read(known, most) == stored
    assert 2 <= len(listings) <= 12
    middle = stored[BLOBS // 2]
    assert await read(known, most, middle) == stored[BLOBS // 2 + 1 :]


async def test_a_blob_that_was_put_since_is_listed_without_reading_all(
    objects: Objects, stored: list[str], listings: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "SPAN", 100 * BLOBS)
    known = Names(objects)
    await read(known, BLOBS)
    store = JetStreamStore(objects)
    more = [await store.put(source(b"later %d" % number)) for number in range(5)]
    await store.delete(Digest.parse(stored[0]))
    assert await read(known, BLOBS) == sorted([*stored, *(info.digest.hex for info in more)])
    assert listings == [0]


async def test_what_is_too_old_is_read_anew(objects: Objects, stored: list[str], listings: list[int]) -> None:
    known = Names(objects)
    (first, *_), _ = await known.behind("", 1)
    assert first == stored[0]
    store = JetStreamStore(objects)
    for number in range(BLOBS // 2):
        await store.put(source(b"later %d" % number))
    await known.behind("", 1)
    assert listings == [0, 0]


async def test_reading_goes_on_where_a_request_ran_out_of_time(
    objects: Objects, stored: list[str], listings: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Subjects.__aiter__
    stuck = asyncio.Event()

    async def hanging(self: Subjects) -> AsyncIterator[tuple[str, int]]:
        async for each in counted(self):
            yield each
            if not stuck.is_set():
                stuck.set()
                await asyncio.Event().wait()

    monkeypatch.setattr(Subjects, "__aiter__", hanging)
    known = Names(objects)
    reading = asyncio.create_task(known.behind("", BLOBS))
    await stuck.wait()
    reading.cancel()
    await asyncio.wait({reading})
    assert await read(known, BLOBS) == stored
    assert listings[:2] == [0, 1]
