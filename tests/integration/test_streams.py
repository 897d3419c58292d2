"""Streams that other clients made or edited: served as far as that can be done, or refused at start."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import nats
import pytest
from nats.aio.client import Client as NatsClient

from natsblob.app import worker
from natsblob.broker.connection import Access, connect
from natsblob.broker.embedded import EmbeddedServer
from natsblob.broker.jetstream import JetStream
from natsblob.client import Client
from natsblob.client import connect as connect_client
from natsblob.config import Settings
from natsblob.digest import Digest
from natsblob.errors import BlobError, ConflictError, InsufficientStorageError, SetupError
from natsblob.maintenance.adopt import adopt
from natsblob.maintenance.doctor.check import Status
from natsblob.maintenance.doctor.stream import check_stream
from natsblob.maintenance.move import move
from natsblob.objectstore.bucket import Bucket
from natsblob.objectstore.objects import Objects
from natsblob.testing.payloads import pattern
from natsblob.wire import Info

LARGE = pattern(3_000_000, "large")
SECOND = 1_000_000_000


async def api(nc: NatsClient, call: str, body: Any = None) -> dict[str, Any]:
    payload = json.dumps(body).encode() if body else b""
    reply = await nc.request(f"$JS.API.{call}", payload, timeout=10)
    answer: dict[str, Any] = json.loads(reply.data)
    assert not answer.get("error"), answer["error"]
    return answer


@pytest.fixture
async def nc(server: EmbeddedServer) -> AsyncIterator[NatsClient]:
    connection = await nats.connect(server.url)
    yield connection
    await connection.close()


@asynccontextmanager
async def stream(nc: NatsClient, **changes: Any) -> AsyncIterator[str]:
    """The bucket of a stream as Object Store clients make it, but for `changes`; `None` leaves one out."""
    name = uuid4().hex
    given = {
        "name": f"OBJ_{name}",
        "subjects": [f"$O.{name}.C.>", f"$O.{name}.M.>"],
        "discard": "new",
        "storage": "file",
        "allow_direct": True,
        "allow_rollup_hdrs": True,
        **changes,
    }
    config = {key: value for key, value in given.items() if value is not None}
    await api(nc, f"STREAM.CREATE.{config['name']}", config)
    yield name
    await api(nc, f"STREAM.DELETE.{config['name']}")


@asynccontextmanager
async def served(server: EmbeddedServer, bucket: str) -> AsyncIterator[Client]:
    settings = Settings(server=(server.url,), bucket=bucket, prefix=f"t{bucket}", request_timeout=10)
    async with worker(settings), connect_client(server.url, prefix=settings.prefix, timeout=15) as client:
        yield client


async def statuses(server: EmbeddedServer, bucket: str) -> list[Status]:
    async with await connect(Access((server.url,))) as connection:
        one = Bucket(JetStream(connection), bucket, "x")
        return [check.status for check in check_stream(one.layout, await one.info())]


@pytest.mark.parametrize(
    "changes",
    [
        {"retention": "interest"},
        {"retention": "workqueue"},
        {"discard": "old", "max_bytes": 10_000_000},
        {"max_msgs_per_subject": 4},
        {"max_msgs_per_subject": 4, "discard_new_per_subject": True},
        {"max_msg_size": 10_000},
        {"allow_direct": False},
        {"no_ack": True},
        {"subject_transform": {"src": ">", "dest": "moved.>"}},
    ],
)
async def test_streams_that_cannot_hold_blobs_are_refused(
    server: EmbeddedServer, nc: NatsClient, changes: dict[str, Any]
) -> None:
    async with stream(nc, **changes) as bucket:
        with pytest.raises(SetupError):
            async with served(server, bucket):
                pass
        assert (await statuses(server, bucket))[0] is Status.FAIL


async def test_a_stream_without_the_subjects_of_metadata_is_refused(
    server: EmbeddedServer, nc: NatsClient
) -> None:
    name = uuid4().hex
    await api(nc, f"STREAM.CREATE.OBJ_{name}", {"name": f"OBJ_{name}", "subjects": [f"$O.{name}.C.>"]})
    with pytest.raises(SetupError):
        async with served(server, name):
            pass
    await api(nc, f"STREAM.DELETE.OBJ_{name}")


async def test_a_mirror_is_refused(server: EmbeddedServer, nc: NatsClient) -> None:
    async with (
        stream(nc) as origin,
        stream(
            nc, subjects=None, allow_rollup_hdrs=None, discard=None, mirror={"name": f"OBJ_{origin}"}
        ) as copy,
    ):
        with pytest.raises(SetupError):
            async with served(server, copy):
                pass
        async with await connect(Access((server.url,))) as connection:
            with pytest.raises(SetupError):
                async for _ in adopt(Objects(Bucket(JetStream(connection), copy, "x"))):
                    pass


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"subjects": None},
        {"max_msg_size": 131_072},
        {"max_msg_size": 65_536},
        {"max_consumers": 1},
        {"duplicate_window": SECOND},
        {"republish": {"src": ">", "dest": "copy.>"}},
        {"deny_delete": True},
        {"allow_rollup_hdrs": False, "metadata": {"natsblob.uploads": "direct"}},
        {"deny_purge": True, "allow_rollup_hdrs": False},
        {"compression": "s2"},
        {"storage": "memory"},
        {"discard": "old"},
    ],
)
async def test_streams_that_hold_blobs_are_served(
    server: EmbeddedServer, nc: NatsClient, changes: dict[str, Any]
) -> None:
    name = uuid4().hex
    subjects = [f"$O.{name}.>"] if "subjects" in changes else [f"$O.{name}.C.>", f"$O.{name}.M.>"]
    async with stream(nc, **{**changes, "name": f"OBJ_{name}", "subjects": subjects}):
        async with served(server, name) as blobs:
            for data in (b"", b"small", LARGE):
                digest = Digest.of(data)
                assert (await blobs.put(data, digest=digest)).created
                assert not (await blobs.put(data)).created
                assert await blobs.get(digest) == data
                assert await blobs.get(digest, offset=len(data) // 2) == data[len(data) // 2 :]
            if changes.get("deny_purge"):
                return
            await blobs.delete(Digest.of(LARGE))
            assert not await blobs.has(Digest.of(LARGE))
        assert Status.FAIL not in await statuses(server, name)


async def test_a_stream_that_denies_purges_deletes_without_making_room(
    server: EmbeddedServer, nc: NatsClient
) -> None:
    async with (
        stream(nc, deny_purge=True, allow_rollup_hdrs=False) as bucket,
        served(server, bucket) as blobs,
    ):
        await blobs.put(LARGE)
        await blobs.delete(Digest.of(LARGE))
        assert not await blobs.has(Digest.of(LARGE))
        assert (await blobs.put(LARGE)).created
        assert await blobs.get(Digest.of(LARGE)) == LARGE


async def test_a_sealed_stream_is_read(server: EmbeddedServer, nc: NatsClient) -> None:
    async with stream(nc) as bucket:
        async with served(server, bucket) as blobs:
            await blobs.put(LARGE)
        config = (await api(nc, f"STREAM.INFO.OBJ_{bucket}"))["config"]
        await api(nc, f"STREAM.UPDATE.OBJ_{bucket}", {**config, "sealed": True})
        async with served(server, bucket) as blobs:
            assert await blobs.get(Digest.of(LARGE)) == LARGE
            with pytest.raises(ConflictError):
                await blobs.put(b"more")
        async with await connect(Access((server.url,))) as connection:
            with pytest.raises(ConflictError):
                await move(Bucket(JetStream(connection), bucket, f"t{bucket}"))


async def test_smaller_messages_than_a_worker_writes_are_refused_until_it_is_started_again(
    server: EmbeddedServer, nc: NatsClient
) -> None:
    async with stream(nc) as bucket:
        async with served(server, bucket) as blobs:
            config = (await api(nc, f"STREAM.INFO.OBJ_{bucket}"))["config"]
            await api(nc, f"STREAM.UPDATE.OBJ_{bucket}", {**config, "max_msg_size": 100_000})
            with pytest.raises(BlobError) as caught:
                await blobs.put(LARGE)
            assert not caught.value.retryable
            assert not await blobs.has(Digest.of(LARGE))
        async with served(server, bucket) as blobs:
            assert (await blobs.put(LARGE)).created
            assert await blobs.get(Digest.of(LARGE)) == LARGE


async def test_a_limit_on_messages_refuses_puts_and_keeps_what_is_there(
    server: EmbeddedServer, nc: NatsClient
) -> None:
    async with stream(nc, max_msgs=12) as bucket, served(server, bucket) as blobs:
        results = [await asyncio.gather(blobs.put(b"%d" % one), return_exceptions=True) for one in range(9)]
        kept = [one for one, (result,) in enumerate(results) if isinstance(result, Info)]
        assert len(kept) >= 5
        assert all(isinstance(result, InsufficientStorageError) for (result,) in results[len(kept) :])
        for one in kept:
            assert await blobs.get(Digest.of(b"%d" % one)) == b"%d" % one
