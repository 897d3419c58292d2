"""A blob that is deleted, and put again in chunks of another size, while somebody reads it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator

import pytest

import natsblob
from natsblob.broker.connection import Access, connect
from natsblob.broker.embedded import EmbeddedServer
from natsblob.broker.jetstream import JetStream
from natsblob.client import Client
from natsblob.client.fetch import Fetch
from natsblob.client.reader import BlobReader
from natsblob.client.service import Service
from natsblob.digest import Digest
from natsblob.errors import ConflictError
from natsblob.maintenance.verify import verify_served
from natsblob.objectstore.bucket import Bucket
from natsblob.objectstore.objects import Objects
from natsblob.store.jetstream import JetStreamStore
from natsblob.testing.payloads import pattern, source
from tests.integration.raw import CHUNK, Raw, service

DATA = pattern(5 * CHUNK)
"""Its second chunk is as long as the second one of four times that size, which has other bytes."""
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
async def raw(server: EmbeddedServer) -> AsyncIterator[Raw]:
    async with service(server.url, workers=2) as client:
        yield client


async def recut(raw: Raw, server: EmbeddedServer) -> None:
    await raw.ask("delete", DIGEST.encode())
    async with await connect(Access((server.url,))) as connection:
        bucket = Bucket(JetStream(connection), raw.bucket, raw.prefix)
        await JetStreamStore(Objects(bucket, chunk_size=4 * CHUNK)).put(source(DATA))


async def test_a_reader_is_given_no_other_bytes(raw: Raw, server: EmbeddedServer) -> None:
    async with natsblob.connect(server.url, prefix=raw.prefix) as blobs:
        await blobs.put(DATA)
        async with blobs.open(DIGEST) as reader:
            await recut(raw, server)
            reader.seek(CHUNK)
            with pytest.raises(ConflictError):
                await reader.read(CHUNK)
        async with blobs.open(DIGEST) as reader:
            reader.seek(CHUNK)
            assert await reader.read(CHUNK) == DATA[CHUNK : 2 * CHUNK]
        assert await blobs.get(DIGEST) == DATA


@pytest.mark.parametrize("verify", [True, False], ids=["relayed", "delegated"])
async def test_a_window_counts_the_chunks_that_the_client_knows(
    raw: Raw, server: EmbeddedServer, verify: bool
) -> None:
    async with natsblob.connect(server.url, prefix=raw.prefix) as blobs:
        await blobs.put(DATA)
    await recut(raw, server)
    size = json.loads((await raw.ask("stat", DIGEST.encode())).data)["chunk_size"]
    assert (await raw.frames(DIGEST, 1, 1, verify=verify, chunk_size=CHUNK))[-1].code == 409
    window = await raw.window(DIGEST, 1, 1, verify=verify, chunk_size=size)
    assert window == {1: DATA[4 * CHUNK :]}


@pytest.mark.parametrize("begin", [0, CHUNK])
async def test_a_get_begins_again(
    raw: Raw, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, begin: int
) -> None:
    """Nobody who gets a blob has to know how it is cut."""
    look = Fetch.of
    looks = 0

    async def too_soon(service: Service, digest: Digest, patience: float) -> Fetch:
        nonlocal looks
        looks += 1
        fetch = await look(service, digest, patience)
        if looks == 1:
            await recut(raw, server)
        return fetch

    async def in_frames(*_: object) -> None:
        """As for a blob that does not fit one reply."""

    monkeypatch.setattr(Fetch, "of", too_soon)
    monkeypatch.setattr(Client, "_get_small", in_frames)
    async with natsblob.connect(server.url, prefix=raw.prefix) as blobs:
        await blobs.put(DATA)
        assert await blobs.get(DIGEST, offset=begin) == DATA[begin:]
    assert looks == 2


async def test_verification_goes_on(
    raw: Raw, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = BlobReader.__anext__
    seen: list[Digest] = []

    async def replaced(reader: BlobReader) -> bytes:
        seen.append(reader.info.digest)
        if reader.info.digest.hex == DIGEST and seen.count(reader.info.digest) == 1:
            await recut(raw, server)
        return await step(reader)

    monkeypatch.setattr(BlobReader, "__anext__", replaced)
    async with natsblob.connect(server.url, prefix=raw.prefix) as blobs:
        await blobs.put(DATA)
        others = {(await blobs.put(bytes([first]))).digest for first in range(20)}
        found = {one.digest: one.outcome async for one in verify_served(blobs)}
    assert found.keys() >= {other.hex for other in others}
    assert set(found.values()) == {"ok"}
