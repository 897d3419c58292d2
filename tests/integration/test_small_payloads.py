"""Servers that take small messages, and ones that take smaller ones than when a blob was stored."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import natsblob
from natsblob.app import worker
from natsblob.broker.embedded import EmbeddedServer
from natsblob.config import Settings
from natsblob.errors import SetupError
from natsblob.testing.payloads import pattern
from natsblob.testing.servers import temporary_server
from natsblob.testing.services import running_worker

SMALL = "max_payload: 64KB\n"


@asynccontextmanager
async def serving(server: EmbeddedServer, **settings: Any) -> AsyncIterator[natsblob.Client]:
    async with running_worker(server.url, **settings), natsblob.connect(server.url, timeout=20) as client:
        yield client


@pytest.fixture(params=["8KB", "64KB"])
async def small(request: pytest.FixtureRequest) -> AsyncIterator[EmbeddedServer]:
    async with temporary_server(extra=f"max_payload: {request.param}\n") as server:
        yield server


async def test_many_blobs_are_listed_and_asked_for(small: EmbeddedServer) -> None:
    async with serving(small) as client:
        contents = [b"%d" % number for number in range(600)]
        stored = set()
        for some in range(6):
            stored |= {info.digest for info in await asyncio.gather(*map(client.put, contents[some::6]))}
        assert {info.digest async for info in client.list()} == stored
        unknown = [hashlib.sha256(b"no %d" % number).hexdigest() for number in range(1200)]
        assert [str(digest) for digest in await client.missing([*map(str, stored), *unknown])] == unknown


@pytest.mark.parametrize("size", [0, 1, 4096, 60 * 1024, 64 * 1024, 300_000])
async def test_blobs_of_all_sizes(small: EmbeddedServer, size: int) -> None:
    async with serving(small) as client:
        info = await client.put(pattern(size))
        assert await client.get(info.digest) == pattern(size)
        assert await client.get(info.digest, offset=size // 3, length=100) == pattern(size)[size // 3 :][:100]


@pytest.mark.parametrize("chunk_size", [60 * 1024, 64 * 1024 - 1, 64 * 1024, 300_000, 2 * 1024 * 1024])
async def test_chunks_larger_than_a_message_can_be_read(tmp_path: Path, chunk_size: int) -> None:
    volume: dict[str, Any] = {"backend": "disk", "disk": tmp_path, "chunk_size": chunk_size}
    async with temporary_server(extra=SMALL) as server, serving(server, **volume) as client:
        content = pattern(5_000_000)
        info = await client.put(content)
        assert await client.get(info.digest) == content
        part = await client.get(info.digest, offset=1_000_000, length=2_500_000)
        assert part == content[1_000_000:3_500_000]
        path = tmp_path / "out"
        await client.download(info.digest, path)
        assert path.read_bytes() == content


async def test_a_worker_refuses_to_start_without_room_for_chunks(tmp_path: Path) -> None:
    async with temporary_server(extra="max_payload: 4096\n") as server:
        for backend in ("jetstream", "memory"):
            with pytest.raises(SetupError):
                async with worker(Settings(server=(server.url,), backend=backend)):
                    pass
