"""Verifying a bucket that has in it what others have left there, on one server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from natsblob.broker.connection import Access, connect
from natsblob.broker.consumers import Copies
from natsblob.broker.embedded import EmbeddedServer
from natsblob.broker.jetstream import JetStream, StreamState
from natsblob.digest import Digest
from natsblob.maintenance.replicas import Comparer, Comparison, _count, _Findings, _Tally
from natsblob.maintenance.verify import verify
from natsblob.objectstore.bucket import Bucket, BucketConfig
from natsblob.objectstore.info import new_nuid
from natsblob.objectstore.objects import Objects
from natsblob.testing.payloads import pattern
from tests.integration.raw import CHUNK, Raw, service
from tests.integration.test_adopt import ABSENT, exchange, pieces, put_object, token

BLOB = pattern(5 * CHUNK + 1, "blob")


@pytest.fixture
async def raw(server: EmbeddedServer) -> AsyncIterator[Raw]:
    name = uuid4().hex
    async with await connect(Access((server.url,))) as connection:
        await Bucket(JetStream(connection), name, f"t{name}").create(BucketConfig(name, rollups=True))
    async with service(server.url, bucket=name, prefix=f"t{name}") as one:
        await one.put(BLOB)
        yield one


@pytest.fixture
async def objects(raw: Raw, server: EmbeddedServer) -> AsyncIterator[Objects]:
    async with await connect(Access((server.url,))) as connection:
        yield Objects(Bucket(JetStream(connection), raw.bucket, raw.prefix), chunk_size=CHUNK)


async def compared(objects: Objects) -> Comparison:
    copies = Copies(objects.bucket.jetstream.connection, objects.bucket.layout.stream)
    return await Comparer(objects, copies).compare()


async def test_what_others_left_there_is_no_damage(raw: Raw, objects: Objects) -> None:
    data = pieces(pattern(3 * CHUNK, "theirs"), CHUNK)
    await put_object(raw, "no digest", data, digest=ABSENT)
    await put_object(raw, "wrong digest", data, digest=Digest.of(b"x").adr20())
    await put_object(raw, "wrong count", data, chunks=7)
    await put_object(raw, "uneven", [b"1", b"333", b"22"])
    await put_object(raw, "unpadded", data, subject=token(b"unpadded").rstrip("="))
    await put_object(raw, "odd headers", data, headers={"Status": "404", "Blob-Sum": "crc32=00000000"})
    await put_object(raw, Digest.of(b"no blob").hex, data)
    await raw.js.publish(f"$O.{raw.bucket}.M.{token(b'unreadable')}", b"{")
    for orphan in (new_nuid(), "odd", "of.another.kind"):
        await raw.js.publish(f"$O.{raw.bucket}.C.{orphan}", b"chunk", headers={"Blob-Sum": "crc32=00000000"})
    found = await compared(objects)
    assert found.agree, found
    outcomes = {one.digest: one.outcome async for one in verify(objects)}
    assert outcomes == {Digest.of(BLOB).hex: "ok", Digest.of(b"no blob").hex: "foreign"}


async def test_a_blob_that_is_bad_everywhere_is_lost_and_no_divergence(raw: Raw, objects: Objects) -> None:
    entry = await objects.find(Digest.of(BLOB).hex)
    assert entry
    await exchange(raw, entry.info.nuid, pieces(b"x" * len(BLOB), CHUNK))
    found = await compared(objects)
    assert (found.is_same, found.diverge, found.lost) == (True, False, [Digest.of(BLOB).hex])
    assert [one.outcome async for one in verify(objects)] == ["corrupt"]
    await raw.put(BLOB)
    assert [one.outcome async for one in verify(objects)] == ["ok"]


@pytest.mark.parametrize(
    ("given", "after", "lacking"),
    [
        (10, StreamState(messages=10, last_seq=20), 0),
        (7, StreamState(messages=10, last_seq=20), 3),
        (7, StreamState(messages=12, last_seq=22), 3),  # two came
        (7, StreamState(messages=7, last_seq=20), 0),  # three went
        (10, StreamState(messages=9, last_seq=25), 0),
        (0, StreamState(messages=10, last_seq=20), 10),
    ],
)
def test_what_is_counted_and_not_given_is_lacking(given: int, after: StreamState, lacking: int) -> None:
    found = _Findings({"a": _Tally(messages=given)})
    _count(found, StreamState(messages=10, last_seq=20), after)
    assert found.tallies["a"].lacking == lacking
