"""Objects of other clients in every odd shape: adopted and served, or named and left alone (ADR 0018)."""

from __future__ import annotations

import hashlib
import json
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import uuid4

import pytest

from natsblob.broker.connection import Access, connect
from natsblob.broker.embedded import EmbeddedServer
from natsblob.broker.jetstream import JetStream
from natsblob.client import Client
from natsblob.client import connect as connect_client
from natsblob.digest import Digest
from natsblob.errors import BlobCorruptError
from natsblob.maintenance.adopt import Adoption, adopt
from natsblob.maintenance.verify import verify
from natsblob.objectstore.bucket import Bucket, BucketConfig
from natsblob.objectstore.info import new_nuid
from natsblob.objectstore.objects import Objects
from natsblob.store.jetstream import JetStreamStore
from natsblob.testing.payloads import cut, pattern
from natsblob.wire import Info
from tests.integration.raw import CHUNK, Raw, Wire, service

ABSENT: Any = object()
NULLS = {"description": None, "headers": None, "metadata": None, "mtime": None, "deleted": None}


def pieces(data: bytes, size: int) -> list[bytes]:
    return list(cut(data, size))


def token(name: bytes) -> str:
    return urlsafe_b64encode(name).decode()


async def put_object(
    raw: Raw,
    name: str,
    parts: Sequence[bytes],
    /,
    *,
    subject: str = "",
    headers: dict[str, str] | None = None,
    **meta: Any,
) -> str:
    """An object as another client writes it, with `meta` in its metadata; the nuid of its chunks."""
    nuid = new_nuid()
    for part in parts:
        await raw.js.publish(f"$O.{raw.bucket}.C.{nuid}", part, headers=headers)
    data = b"".join(parts)
    digest = Digest.of(data).adr20()
    own = {"name": name, "bucket": raw.bucket, "nuid": nuid, "size": len(data), "chunks": len(parts)}
    body = {**own, "digest": digest, "options": {"max_chunk_size": 128 * 1024}, **meta}
    text = json.dumps({key: value for key, value in body.items() if value is not ABSENT})
    await raw.js.publish(f"$O.{raw.bucket}.M.{subject or token(name.encode())}", text.encode())
    return nuid


@pytest.fixture
async def raw(server: EmbeddedServer) -> AsyncIterator[Raw]:
    name = uuid4().hex
    async with await connect(Access((server.url,))) as connection:
        await Bucket(JetStream(connection), name, f"t{name}").create(BucketConfig(name, rollups=True))
    async with service(server.url, bucket=name, prefix=f"t{name}") as one:
        yield one


@pytest.fixture
async def blobs(raw: Raw, server: EmbeddedServer) -> AsyncIterator[Client]:
    async with connect_client(server.url, prefix=raw.prefix) as client:
        yield client


@pytest.fixture
async def objects(raw: Raw, server: EmbeddedServer) -> AsyncIterator[Objects]:
    async with await connect(Access((server.url,))) as connection:
        yield Objects(Bucket(JetStream(connection), raw.bucket, raw.prefix), chunk_size=CHUNK)


async def adopted(objects: Objects) -> dict[str, Adoption]:
    return {one.name: one async for one in adopt(objects)}


async def outcomes(objects: Objects) -> dict[str, str]:
    return {name: one.outcome for name, one in (await adopted(objects)).items()}


async def check_served(blobs: Client, data: bytes) -> None:
    """Whole, as ranges that fit one reply and that do not, and as a file, from several places."""
    digest = Digest.of(data)
    assert await blobs.has(digest)
    assert (await blobs.stat(digest)).size == len(data)
    assert await blobs.get(digest) == data
    for offset, length in ((0, 1), (len(data) // 2, None), (max(0, len(data) - 3), 3), (7, len(data))):
        if offset <= len(data):
            expected = data[offset:] if length is None else data[offset : offset + length]
            assert await blobs.get(digest, offset=offset, length=length) == expected
    async with blobs.open(digest) as reader:
        reader.seek(len(data) // 3)
        assert await reader.read() == data[len(data) // 3 :]


EVEN = pieces(pattern(3 * CHUNK + 5, "even"), CHUNK)
EVEN_META: dict[str, Any] = {"options": {"max_chunk_size": CHUNK}}


@pytest.mark.parametrize(
    ("meta", "outcome"),
    [
        (EVEN_META, "adopted"),
        ({**EVEN_META, **NULLS}, "adopted"),
        ({"options": {"link": None, "max_chunk_size": float(CHUNK)}, "chunks": 4.0}, "adopted"),
        ({"options": None}, "adopted"),
        ({"options": {"max_chunk_size": 77}}, "adopted"),
        ({**EVEN_META, "digest": ABSENT}, "adopted"),
        ({**EVEN_META, "digest": None}, "adopted"),
        ({**EVEN_META, "digest": Digest.of(b"".join(EVEN)).hex}, "adopted"),
        ({**EVEN_META, "digest": Digest.of(b"".join(EVEN)).adr20().lower()[:8] + "AAAA"}, "adopted"),
        ({**EVEN_META, "digest": Digest.of(b"".join(EVEN)).adr20().rstrip("=")}, "adopted"),
        ({**EVEN_META, "extra": {"a": [1]}, "metadata": {"a": 1}}, "adopted"),
        ({**EVEN_META, "description": "x" * 1_000_000}, "adopted"),
        ({**EVEN_META, "chunks": 9}, "copied"),
        ({**EVEN_META, "size": 1}, "copied"),
        ({**EVEN_META, "digest": Digest.of(b"other").adr20()}, "corrupt"),
        ({**EVEN_META, "digest": ABSENT, "size": 1}, "corrupt"),
        ({**EVEN_META, "nuid": "another"}, "corrupt"),
        ({**EVEN_META, "nuid": ">"}, "unreadable"),
        ({**EVEN_META, "size": -1}, "unreadable"),
    ],
)
async def test_metadata_in_every_odd_shape(
    raw: Raw, blobs: Client, objects: Objects, meta: dict[str, Any], outcome: str
) -> None:
    await put_object(raw, "before", [b"a"])
    await put_object(raw, "odd", EVEN, **meta)
    await put_object(raw, "zzz", [b"z"])
    assert await outcomes(objects) == {"before": "adopted", "odd": outcome, "zzz": "adopted"}
    if outcome in ("adopted", "copied"):
        await check_served(blobs, b"".join(EVEN))
        assert (await outcomes(objects))["odd"] == "present"
    for data in (b"a", b"z"):
        await check_served(blobs, data)


@pytest.mark.parametrize("body", [b"", b"not json", b"[]", b"{}", b"\xff\xfe", b'{"name":"odd"', b"[" * 5000])
async def test_metadata_that_cannot_be_read_is_named_and_stops_nothing(
    raw: Raw, blobs: Client, objects: Objects, body: bytes
) -> None:
    await put_object(raw, "aaa", [b"a"])
    await raw.js.publish(f"$O.{raw.bucket}.M.{token(b'odd')}", body)
    await raw.js.publish(f"$O.{raw.bucket}.M.no-name!", body)
    await put_object(raw, "zzz", [b"z"])
    found = await outcomes(objects)
    assert [found["aaa"], found["odd"], found["zzz"]] == ["adopted", "unreadable", "adopted"]
    assert list(found.values()).count("unreadable") == 2
    await check_served(blobs, b"z")
    assert [info.size async for info in blobs.list()] == [1, 1]
    assert [one.outcome async for one in verify(objects)] == ["ok", "ok"]


@pytest.mark.parametrize(
    "sizes",
    [
        (1000, 131072, 7, 65536, 40),
        (CHUNK, CHUNK - 1, CHUNK),
        (1, CHUNK),
        (CHUNK, 0, CHUNK),
        (CHUNK, 0),
        (1,) * 300 + (2,),
        (CHUNK, CHUNK, CHUNK + 1),
    ],
)
async def test_chunks_of_any_length(
    raw: Raw, blobs: Client, objects: Objects, sizes: tuple[int, ...]
) -> None:
    parts = [pattern(size, f"piece {index}") for index, size in enumerate(sizes)]
    await put_object(raw, "from a pipe", parts)
    assert await outcomes(objects) == {"from a pipe": "copied"}
    await check_served(blobs, b"".join(parts))
    assert await outcomes(objects) == {"from a pipe": "present"}


@pytest.mark.parametrize("size", [CHUNK, 1, 200_000])
async def test_even_chunks_of_another_size_than_claimed_are_read_as_they_lie(
    raw: Raw, blobs: Client, objects: Objects, size: int
) -> None:
    parts = pieces(pattern(4 * size + 1, "even"), size)
    await put_object(raw, "even", parts)
    assert await outcomes(objects) == {"even": "adopted"}
    assert (await blobs.stat(Digest.of(b"".join(parts)))).chunk_size == size
    await check_served(blobs, b"".join(parts))


@pytest.mark.parametrize(
    "headers",
    [
        {"Blob-Chunk": "7"},
        {"Blob-Sum": "crc32=00000000"},
        {"Status": "404"},
        {"Nats-Service-Error-Code": "500"},
        {"Nats-Num-Pending": "0"},
        {"Nats-Sequence": "1", "Nats-Last-Sequence": "1"},
        {"Nats-Subject": "x"},
        {"Natsblob-Malformed": "1"},
        {"X-Large": "x" * 20_000},
    ],
)
async def test_chunks_with_headers_that_readers_would_misunderstand(
    raw: Raw, blobs: Client, objects: Objects, headers: dict[str, str]
) -> None:
    await put_object(raw, "odd", EVEN, headers=headers, **EVEN_META)
    assert (await outcomes(objects))["odd"] in ("adopted", "copied")
    await check_served(blobs, b"".join(EVEN))


async def test_names_and_subjects_that_do_not_belong_together(
    raw: Raw, blobs: Client, objects: Objects
) -> None:
    odd, long = "control\n\x1b[2J", "long " * 300
    contents = {name: pattern(CHUNK + 1, name) for name in ("unpadded", "bytes", odd, "plain", long)}
    subjects = {
        "unpadded": token(b"unpadded").rstrip("="),
        "bytes": token(b"\xff\xfebytes"),
        "plain": "plain!",
    }
    for name, data in contents.items():
        await put_object(raw, name, pieces(data, CHUNK), subject=subjects.get(name, ""), **EVEN_META)
    found = await outcomes(objects)
    assert found == {
        "unpadded": "copied",
        "bytes": "copied",
        "plain": "copied",
        odd: "adopted",
        long: "adopted",
    }
    for data in contents.values():
        await check_served(blobs, data)


async def test_an_object_under_a_digest_s_name_becomes_a_blob_or_lends_its_bytes(
    raw: Raw, blobs: Client, objects: Objects
) -> None:
    right, unnamed, other = (pattern(3 * CHUNK, name) for name in ("right", "unnamed", "other"))
    await put_object(raw, Digest.of(right).hex, pieces(right, CHUNK), **EVEN_META)
    await put_object(raw, Digest.of(unnamed).hex, pieces(unnamed, CHUNK), digest=ABSENT, **EVEN_META)
    await put_object(raw, Digest.of(b"no blob").hex, pieces(other, CHUNK), **EVEN_META)
    assert set((await outcomes(objects)).values()) == {"copied"}
    for data in (right, unnamed, other):
        await check_served(blobs, data)
    assert not await blobs.has(Digest.of(b"no blob"))
    assert (await blobs.put(b"no blob")).created
    for data in (right, unnamed, other, b"no blob"):
        await check_served(blobs, data)


async def test_an_object_whose_digest_names_another_object_is_refused(raw: Raw, objects: Objects) -> None:
    await put_object(raw, Digest.of(b"one").hex, [b"two"], digest=Digest.of(b"three").adr20())
    await put_object(raw, "one", [b"one"])
    assert await outcomes(objects) == {Digest.of(b"one").hex: "corrupt", "one": "refused"}


async def test_a_copy_of_a_blob_with_its_metadata_is_adopted(
    raw: Raw, blobs: Client, objects: Objects
) -> None:
    data = pattern(5 * CHUNK, "copied with metadata")
    metadata = {"natsblob.marks": "1:1,1,1,1,1", "natsblob.adopted": "x 1 1"}
    await put_object(raw, "copy", pieces(data, CHUNK), metadata=metadata, **EVEN_META)
    await put_object(raw, "elsewhere", pieces(data[::-1], CHUNK), bucket="another", **EVEN_META)
    assert await outcomes(objects) == {"copy": "adopted", "elsewhere": "adopted"}
    await check_served(blobs, data)
    await check_served(blobs, data[::-1])


@pytest.mark.parametrize("marks", ["1:1,1,1,1,1", "5:1", "5:99999999", "nonsense"])
async def test_a_blob_that_another_client_copied_with_its_metadata_is_served(
    raw: Raw, blobs: Client, objects: Objects, marks: str
) -> None:
    data = pattern(5 * CHUNK, "mirrored")
    metadata = {"natsblob.marks": marks}
    nuid = await put_object(raw, Digest.of(data).hex, pieces(data, CHUNK), metadata=metadata, **EVEN_META)
    await check_served(blobs, data)
    await exchange(raw, nuid, [b"x" * CHUNK] * 5)
    with pytest.raises(BlobCorruptError):
        await blobs.get(Digest.of(data), offset=CHUNK, length=10)


async def test_metadata_on_subjects_that_cannot_be_asked_for_is_named(
    raw: Raw, server: EmbeddedServer, blobs: Client, objects: Objects
) -> None:
    await put_object(raw, "one", EVEN, **EVEN_META)
    async with Wire(server.url) as wire:
        for odd in (b"*", b">", b"\xff\xfe", b"b25l.>"):
            await wire.send(b"PUB $O.%s.M.%s 2\r\n{}\r\n" % (raw.bucket.encode(), odd))
    found = list((await outcomes(objects)).values())
    assert found.count("adopted") == 1
    assert set(found) == {"adopted", "unreadable"}
    await check_served(blobs, b"".join(EVEN))


async def test_an_object_in_very_many_chunks_is_written_anew(
    raw: Raw, blobs: Client, objects: Objects
) -> None:
    data = pattern(3_000, "tiny")
    await put_object(raw, "tiny", pieces(data, 2), options={"max_chunk_size": 2})
    assert await outcomes(objects) == {"tiny": "copied"}
    assert (await blobs.stat(Digest.of(data))).chunks == 1
    await check_served(blobs, data)


async def test_a_full_bucket_refuses_what_it_cannot_take_and_names_it(
    raw: Raw, blobs: Client, objects: Objects
) -> None:
    await put_object(raw, "first", EVEN, **EVEN_META)
    await outcomes(objects)
    await put_object(raw, "no room", [b"1", b"333", b"22"])
    info = await objects.bucket.info()
    config = {**info.config, "max_bytes": info.state.bytes}
    await objects.bucket.jetstream.update(config)
    found = await adopted(objects)
    assert {name: one.outcome for name, one in found.items()} == {"first": "present", "no room": "refused"}
    assert found["no room"].reason
    await check_served(blobs, b"".join(EVEN))


async def test_the_empty_object(raw: Raw, blobs: Client, objects: Objects) -> None:
    await put_object(raw, "empty", [])
    assert await outcomes(objects) == {"empty": "adopted"}
    assert await blobs.get(Digest.of(b"")) == b""
    assert await outcomes(objects) == {"empty": "present"}


async def exchange(raw: Raw, nuid: str, chunks: Sequence[bytes]) -> None:
    """Put other bytes where the chunks of an object lie, as a disk may do it."""
    subject = f"$O.{raw.bucket}.C.{nuid}"
    await raw.js.purge_stream(raw.stream, subject=subject)
    for chunk in chunks:
        await raw.js.publish(subject, chunk)


@pytest.mark.parametrize("is_adopted", [True, False])
@pytest.mark.parametrize("size", [5 * CHUNK + 9, 300 * CHUNK])
async def test_no_range_of_an_adopted_object_has_a_wrong_byte(
    raw: Raw, blobs: Client, objects: Objects, is_adopted: bool, size: int
) -> None:
    """Adopted now, with sums, or by a version that kept none."""
    data = pattern(size, "rot")
    digest = Digest.of(data)
    chunks = pieces(data, CHUNK)
    nuid = await put_object(raw, "rot", chunks, **EVEN_META)
    if is_adopted:
        assert await outcomes(objects) == {"rot": "adopted"}
    else:
        link = {"name": digest.hex, "bucket": raw.bucket, "nuid": new_nuid()}
        link["options"] = {"link": {"bucket": raw.bucket, "name": "rot"}}  # type: ignore[assignment]
        await raw.js.publish(f"$O.{raw.bucket}.M.{token(digest.hex.encode())}", json.dumps(link).encode())
    await check_served(blobs, data)
    chunks[2] = b"x" + chunks[2][1:]
    await exchange(raw, nuid, chunks)
    for offset, length in ((2 * CHUNK, 10), (2 * CHUNK + 5, None), (CHUNK, 2 * CHUNK)):
        with pytest.raises(BlobCorruptError):
            await blobs.get(digest, offset=offset, length=length)
    frames = await raw.frames(digest.hex, 0, 4)
    wrong = [
        frame for frame in frames if frame.headers.get("Blob-Chunk") == "2" and "Blob-Sum" in frame.headers
    ]
    assert not wrong
    async with blobs.open(digest) as reader:
        reader.seek(2 * CHUNK)
        with pytest.raises(BlobCorruptError):
            await reader.read(10)
    if is_adopted:  # a chunk that is right can still be proven
        assert await blobs.get(digest, offset=4 * CHUNK, length=9) == data[4 * CHUNK :][:9]


async def test_an_old_link_is_renewed_with_sums(raw: Raw, blobs: Client, objects: Objects) -> None:
    digest = Digest.of(b"".join(EVEN))
    await put_object(raw, "one", EVEN, **EVEN_META)
    link = {"name": digest.hex, "bucket": raw.bucket, "nuid": new_nuid()}
    link["options"] = {"link": {"bucket": raw.bucket, "name": "one"}}  # type: ignore[assignment]
    await raw.js.publish(f"$O.{raw.bucket}.M.{token(digest.hex.encode())}", json.dumps(link).encode())
    assert await outcomes(objects) == {"one": "adopted"}
    assert await outcomes(objects) == {"one": "present"}
    await check_served(blobs, b"".join(EVEN))
    frames = await raw.frames(digest.hex, 0, 2)
    assert all("Blob-Sum" in frame.headers for frame in frames[:2])


async def test_deleting_an_adopted_blob_takes_its_sums_along(
    raw: Raw, blobs: Client, objects: Objects
) -> None:
    nuid = await put_object(raw, "one", EVEN, **EVEN_META)
    await outcomes(objects)
    assert len(await raw.staged()) == 2
    await blobs.delete(hashlib.sha256(b"".join(EVEN)).hexdigest())
    assert list(await raw.staged()) == [f"$O.{raw.bucket}.C.{nuid}"]


async def test_a_link_shows_size_and_digest_to_other_clients(raw: Raw, objects: Objects) -> None:
    await put_object(raw, "one", EVEN, **EVEN_META)
    await outcomes(objects)
    digest = Digest.of(b"".join(EVEN))
    theirs = await raw.js.object_store(raw.bucket)
    info = await theirs.get_info(digest.hex)
    assert (info.size, info.digest, info.chunks) == (3 * CHUNK + 5, digest.adr20(), 4)
    assert digest.hex in {one.name for one in await theirs.list()}


async def test_a_range_is_right_while_a_put_replaces_a_link_by_chunks_of_another_size(
    raw: Raw, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index that was reckoned with the chunks of before would lead to other bytes."""
    data = pattern(4 * CHUNK)
    await put_object(raw, "small chunks", pieces(data, CHUNK // 2))
    assert await outcomes(objects) == {"small chunks": "adopted"}
    look = JetStreamStore.stat

    async def replaced_meanwhile(store: JetStreamStore, digest: Digest) -> Info:
        info = await look(store, digest)
        await raw.put(data)
        return info

    wanted = {"digest": Digest.of(data).hex, "offset": CHUNK // 2, "length": CHUNK // 2}
    with monkeypatch.context() as patch:
        patch.setattr(JetStreamStore, "stat", replaced_meanwhile)
        refused = await raw.ask("get", wanted)
    assert refused.code == 503, "bytes of another place"
    assert refused.error["retryable"]
    assert (await raw.ask("get", wanted)).data == data[CHUNK // 2 : CHUNK]


@pytest.mark.parametrize("data", [b"", b"x", pattern(3 * CHUNK)], ids=["empty", "small", "large"])
async def test_what_natsblob_put_is_left_as_it_is(blobs: Client, objects: Objects, data: bytes) -> None:
    before = await blobs.put(data)
    assert await outcomes(objects) == {}
    assert (await blobs.stat(before.digest)).modified == before.modified
