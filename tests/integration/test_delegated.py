"""Large reads pass no worker: a replica sends the chunks, and a worker that did would be noticed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import natsblob
from natsblob.broker.embedded import EmbeddedServer
from natsblob.testing.payloads import pattern
from tests.integration.raw import CHUNK, Raw, pieces, service

COUNT = 140
DATA = pattern(COUNT * CHUNK - 10, "delegated")
"""Larger than fits one message, so that it is read in windows."""
SMALL_CHANGE = 64 * 1024
"""Bytes that a worker may send for infos and ends of windows."""
WINDOWS = [(0, 1), (0, 100), (7, 1), (60, 80), (COUNT - 3, 3), (COUNT - 1, 1)]


@pytest.fixture(params=["direct", "relayed"])
async def stored(server: EmbeddedServer, request: pytest.FixtureRequest) -> AsyncIterator[tuple[Raw, str]]:
    """A service and the digest of `DATA` in it, uploaded past the worker or through it."""
    async with service(server.url) as raw:
        upload = await raw.open(relayed=request.param == "relayed")
        for index, chunk in enumerate(pieces(DATA)):
            await upload.send(index, chunk)
        yield raw, (await upload.commit()).json["digest"]


async def sent_by_workers(raw: Raw) -> float:
    return (await raw.figures())["sent_bytes"]


async def test_every_window_is_sent_by_a_replica(stored: tuple[Raw, str]) -> None:
    raw, digest = stored
    before = await sent_by_workers(raw)
    for first, count in WINDOWS:
        frames = [frame for frame in await raw.frames(digest, first, count) if "Blob-Chunk" in frame.headers]
        assert len(frames) == count
        assert all(frame.headers.get("Nats-Stream") == raw.stream for frame in frames)
    assert await sent_by_workers(raw) - before < CHUNK


async def test_no_byte_of_a_large_get_passes_through_a_worker(
    stored: tuple[Raw, str], server: EmbeddedServer, tmp_path: Path
) -> None:
    raw, digest = stored
    async with natsblob.connect(server.url, prefix=raw.prefix) as client:
        before = await sent_by_workers(raw)
        assert await client.get(digest) == DATA
        await client.download(digest, tmp_path / "blob")
        assert (tmp_path / "blob").read_bytes() == DATA
        async with client.open(digest) as reader:
            reader.seek(len(DATA) // 2)
            assert await reader.read() == DATA[len(DATA) // 2 :]
        assert await sent_by_workers(raw) - before < SMALL_CHANGE


async def test_what_a_worker_verifies_it_sends_itself(stored: tuple[Raw, str]) -> None:
    raw, digest = stored
    before = await sent_by_workers(raw)
    assert await raw.window(digest, 0, 100, verify=True) == dict(enumerate(pieces(DATA)[:100]))
    assert await sent_by_workers(raw) - before >= 100 * CHUNK
