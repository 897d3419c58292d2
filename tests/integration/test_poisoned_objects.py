"""Objects that other clients stored with odd chunks: read, healed or refused, by workers that stay alive."""

from __future__ import annotations

import hashlib
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Sequence

import msgspec
import pytest

import natsblob
from natsblob.broker.embedded import EmbeddedServer
from natsblob.testing.payloads import pattern
from tests.integration.raw import CHUNK, Raw, Wire, service

DATA = pattern(20 * CHUNK + 7)


@pytest.fixture
async def raw(server: EmbeddedServer) -> AsyncIterator[Raw]:
    async with service(server.url) as client:
        yield client


async def theirs(
    raw: Raw, url: str, chunks: Sequence[tuple[bytes, bytes]], *, chunk_size: int, size: int
) -> str:
    """Store these chunks, each with its header block, as the blob of `DATA`, or of its first bytes."""
    digest = hashlib.sha256(DATA[:size])
    subject = f"$O.{raw.bucket}.C.theirs"
    protocol = bytearray()
    for block, data in chunks:
        protocol += f"HPUB {subject} {len(block)} {len(block) + len(data)}\r\n".encode() + block + data
        protocol += b"\r\n"
    async with Wire(url) as wire:
        await wire.send(bytes(protocol))
    body = {
        "name": digest.hexdigest(),
        "bucket": raw.bucket,
        "nuid": "theirs",
        "size": size,
        "chunks": len(chunks),
        "digest": f"SHA-256={urlsafe_b64encode(digest.digest()).decode()}",
        "options": {"max_chunk_size": chunk_size},
    }
    name = urlsafe_b64encode(digest.hexdigest().encode()).decode()
    await raw.js.publish(f"$O.{raw.bucket}.M.{name}", msgspec.json.encode(body))
    return digest.hexdigest()


def plain(data: bytes, chunk_size: int) -> list[tuple[bytes, bytes]]:
    pieces = [data[at : at + chunk_size] for at in range(0, len(data), chunk_size)]
    return [(b"NATS/1.0\r\n\r\n", piece) for piece in pieces]


async def test_many_chunks_of_one_byte_are_read_a_bounded_number_at_a_time(
    raw: Raw, server: EmbeddedServer
) -> None:
    size = 10_000
    digest = await theirs(raw, server.url, plain(DATA[:size], 1), chunk_size=1, size=size)
    async with natsblob.connect(server.url, prefix=raw.prefix, timeout=60) as blobs:
        assert await blobs.get(digest) == DATA[:size]
        assert not (await blobs.put(DATA[:size])).created
    await raw.still_answers()


@pytest.mark.parametrize(
    "block",
    [
        b"NATS/1.0\r\nX: " + b"y" * 60_000 + b"\r\n\r\n",
        b"NATS/1.0\r\nNats-Service-Error-Code: 404\r\n\r\n",
        b"NATS/1.0\r\nNats-Service-Error-Code: x\r\nStatus: 204\r\n\r\n",
        b"NATS/1.0 404 Not Found\r\n\r\n",
        b"NATS/1.0\r\nNats-Subject: x\r\nNats-Sequence: y\r\nNats-Time-Stamp: z\r\n\r\n",
        b"NATS/1.0\r\nNats-Num-Pending: 7\r\n\r\n",
        b"NATS/1.0\r\nX",
        b"X",
    ],
    ids=["huge", "error", "odd error", "status", "forged place", "forged pending", "no end", "no block"],
)
async def test_any_header_block_of_theirs(raw: Raw, server: EmbeddedServer, block: bytes) -> None:
    chunks = plain(DATA, CHUNK)
    chunks[7] = (block, chunks[7][1])
    digest = await theirs(raw, server.url, chunks, chunk_size=CHUNK, size=len(DATA))
    async with natsblob.connect(server.url, prefix=raw.prefix) as blobs:
        assert await blobs.get(digest) == DATA
        assert not (await blobs.put(DATA)).created
    await raw.still_answers()


@pytest.mark.parametrize("index", [b"0", b"8", b"999", b"-1", b"007"])
async def test_a_chunk_that_gives_itself_another_place_is_healed_by_a_put(
    raw: Raw, server: EmbeddedServer, index: bytes
) -> None:
    chunks = plain(DATA, CHUNK)
    chunks[7] = (b"NATS/1.0\r\nBlob-Chunk: " + index + b"\r\n\r\n", chunks[7][1])
    digest = await theirs(raw, server.url, chunks, chunk_size=CHUNK, size=len(DATA))
    async with natsblob.connect(server.url, prefix=raw.prefix, timeout=40) as blobs:
        await blobs.put(DATA)
        assert await blobs.get(digest) == DATA
    await raw.still_answers()


@pytest.mark.parametrize("sizes", ["0 0", f"{'9' * 5000} 8192", f"8192 {'9' * 5000}", f"{'9' * 40} 1"])
async def test_a_link_that_tells_of_impossible_chunks_spoils_no_list(
    raw: Raw, server: EmbeddedServer, sizes: str
) -> None:
    size = 2 * CHUNK
    target = await theirs(raw, server.url, plain(DATA[:size], CHUNK), chunk_size=CHUNK, size=size)
    digest = hashlib.sha256(DATA[:size])
    name = urlsafe_b64encode(b"named").decode()
    stored = await raw.js.get_last_msg(
        raw.stream, f"$O.{raw.bucket}.M.{urlsafe_b64encode(target.encode()).decode()}"
    )
    original = msgspec.json.decode(stored.data or b"")
    await raw.js.publish(f"$O.{raw.bucket}.M.{name}", msgspec.json.encode({**original, "name": "named"}))
    link = {
        "name": digest.hexdigest(),
        "bucket": raw.bucket,
        "nuid": "link",
        "size": 0,
        "chunks": 0,
        "digest": original["digest"],
        "metadata": {"natsblob.adopted": f"theirs {sizes}"},
        "options": {"link": {"bucket": raw.bucket, "name": "named"}},
    }
    await raw.js.publish(
        f"$O.{raw.bucket}.M.{urlsafe_b64encode(target.encode()).decode()}", msgspec.json.encode(link)
    )
    async with natsblob.connect(server.url, prefix=raw.prefix) as blobs:
        good = (await blobs.put(b"good")).digest
        found = [info.digest async for info in blobs.list()]
        assert good in found
        assert await blobs.get(digest.hexdigest()) == DATA[:size]


@pytest.mark.parametrize("length", [2_900, 3_500, 100_000, 700_000])
async def test_a_link_to_a_name_that_is_too_long_spoils_no_list(
    raw: Raw, server: EmbeddedServer, length: int
) -> None:
    digest = hashlib.sha256(DATA)
    link = {
        "name": digest.hexdigest(),
        "bucket": raw.bucket,
        "nuid": "link",
        "digest": f"SHA-256={urlsafe_b64encode(digest.digest()).decode()}",
        "options": {"link": {"bucket": raw.bucket, "name": "n" * length}},
    }
    name = urlsafe_b64encode(digest.hexdigest().encode()).decode()
    await raw.js.publish(f"$O.{raw.bucket}.M.{name}", msgspec.json.encode(link))
    async with natsblob.connect(server.url, prefix=raw.prefix) as blobs:
        good = (await blobs.put(b"good")).digest
        assert [info.digest async for info in blobs.list()] == [good]
        assert await blobs.missing([good, digest.hexdigest()]) == [natsblob.Digest(digest.digest())]
        assert not await blobs.has(digest.hexdigest())
        assert (await blobs.put(DATA)).created
        assert await blobs.get(digest.hexdigest()) == DATA
