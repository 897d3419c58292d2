"""Servers that take small messages, and ones that take smaller ones than when a blob was stored."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import natsblob
from natsblob.app import worker
from natsblob.broker.embedded import EmbeddedServer, free_port
from natsblob.config import Settings
from natsblob.errors import SetupError
from natsblob.testing.payloads import pattern
from natsblob.testing.servers import Seat, temporary_server, temporary_store_dir, until_settled
from natsblob.testing.services import running_worker
from tests.integration.test_connections import reloadable

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
    volume: dict[str, Any] = {
        "backend": "disk",
        "disk": tmp_path / "volume",
        "create_disk": True,
        "chunk_size": chunk_size,
    }
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


async def test_a_limit_that_is_lowered_under_a_running_worker() -> None:
    async with (
        reloadable("max_payload: 1MB\n") as server,
        running_worker(server.url) as process,
        natsblob.connect(server.url, timeout=30) as client,
    ):
        large, small = pattern(3_000_000), pattern(200_000)
        before = await client.put(large)
        inline = await client.put(small)
        server.reload(SMALL)
        for blob, content in ((before, large), (inline, small)):
            assert await client.get(blob.digest) == content
        for content in (b"tiny", bytes(100_000), bytes(2_000_000)):
            info = await client.put(content)
            assert await client.get(info.digest) == content
        assert {info.digest async for info in client.list()} >= {before.digest, inline.digest}
        assert process.running


SIZES = (50_000, 700_000, 3_000_000)


@pytest.mark.parametrize("workers_have", ["more", "less"])
async def test_a_client_whose_server_has_another_limit_than_the_workers(workers_have: str) -> None:
    async with two_servers("max_payload: 1MB\n", SMALL) as (large, small):
        theirs, ours = (large, small) if workers_have == "more" else (small, large)
        async with running_worker(theirs.url), natsblob.connect(ours.url, timeout=30) as client:
            for size in SIZES:
                content = pattern(size)
                info = await client.put(content)
                assert await client.get(info.digest) == content
                assert await client.get(info.digest, offset=size // 2, length=9) == content[size // 2 :][:9]
            unknown = [hashlib.sha256(b"no %d" % number).hexdigest() for number in range(1200)]
            assert len(await client.missing(unknown)) == 1200


@asynccontextmanager
async def two_servers(*configs: str) -> AsyncIterator[list[EmbeddedServer]]:
    """The servers of one cluster, configured differently."""
    ports = iter([free_port() for _ in range(2 * len(configs))])
    seats = [Seat(next(ports), next(ports)) for _ in configs]
    async with AsyncExitStack() as stack:
        servers = [
            EmbeddedServer(
                stack.enter_context(temporary_store_dir()),
                name=f"n{number}",
                extra=seat.config(seats) + config,
                extra_ports=(seat.route_port, seat.monitor_port),
            )
            for number, (seat, config) in enumerate(zip(seats, configs, strict=True))
        ]
        await asyncio.gather(*map(stack.enter_async_context, servers))
        monitors = {server.name: seat.monitor_port for server, seat in zip(servers, seats, strict=True)}
        await until_settled(monitors, len(servers))
        yield servers
