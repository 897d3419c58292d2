"""A tenant in another account, who reaches the service through the export of the example and no further."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import nats
import pytest
import pytest_asyncio

from natsblob.app import worker
from natsblob.broker.connection import Access, connect
from natsblob.broker.embedded import EmbeddedServer
from natsblob.broker.jetstream import JetStream
from natsblob.config import Settings
from natsblob.objectstore.bucket import Bucket, BucketConfig
from natsblob.testing.payloads import pattern
from natsblob.testing.servers import temporary_server
from tests.integration.raw import CHUNK, Raw, pieces

ACCOUNTS = Path(__file__).parents[2] / "deploy" / "accounts" / "accounts.conf"
ROLES = ("service", "storage", "admin", "tenant", "system")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guarded() -> AsyncIterator[EmbeddedServer]:
    """A server that has the example file, word for word, and the bucket."""
    with pytest.MonkeyPatch.context() as patch:
        for role in ROLES:
            patch.setenv(f"NATSBLOB_{role.upper()}_PASSWORD", f"pw-{role}")
        async with temporary_server(extra=ACCOUNTS.read_text()) as server:
            access = Access((server.url,), user="admin", password="pw-admin", inbox_prefix="_INBOX.admin")
            async with await connect(access) as connection:
                await Bucket(JetStream(connection), "blobs", "blob").create(
                    BucketConfig(storage="memory", rollups=False)
                )
            yield server


@pytest.fixture
async def tenant(guarded: EmbeddedServer) -> AsyncIterator[Raw]:
    settings = Settings(
        server=(guarded.url,),
        user="service",
        password="pw-service",
        storage_user="storage",
        storage_password="pw-storage",
        inbox_prefix="_INBOX_worker",
        chunk_size=CHUNK,
    )
    async with (
        worker(settings) as serving,
        await nats.connect(
            guarded.url, user="tenant", password="pw-tenant", inbox_prefix="_INBOX.tenant"
        ) as nc,
    ):
        yield Raw(nc, "blob", "blobs", [serving.id])


async def test_small_blobs(tenant: Raw) -> None:
    digest = await tenant.put(b"of a tenant")
    assert (await tenant.ask("get", digest.encode())).data == b"of a tenant"
    assert (await tenant.ask("has", digest.encode())).json["exists"] is True
    assert (await tenant.ask("get", b"nonsense")).error["name"] == "bad_request"


async def test_a_large_blob_goes_in_and_comes_out_in_windows(tenant: Raw) -> None:
    data = pattern(40 * CHUNK + 7)
    chunks = pieces(data)
    upload = await tenant.upload(*chunks)
    assert (await upload.stored()).json["stored"] == [[0, 40]]
    digest = (await upload.commit()).json["digest"]
    assert digest == hashlib.sha256(data).hexdigest()
    windows = await asyncio.gather(*(tenant.window(digest, first, 16) for first in (0, 16, 32)))
    got = {index: chunk for window in windows for index, chunk in window.items()}
    assert b"".join(got[index] for index in range(41)) == data


async def test_a_read_is_ended_by_an_error_where_there_is_nothing(tenant: Raw) -> None:
    (only,) = await tenant.frames("0" * 64, 0, 4)
    assert only.error["name"] == "blob_not_found"


@pytest.mark.parametrize("scope", ["sub", "all"])
async def test_a_chunk_with_a_rollup_header_removes_nothing(tenant: Raw, scope: str) -> None:
    """Where a bucket allows rollups, as ADR-20 has it by default, one such chunk empties it."""
    digest = await tenant.put(b"of somebody else")
    upload = await tenant.upload(b"first")
    refusal = await upload.send(1, b"second", {"Nats-Rollup": scope})
    assert "error" in refusal.json
    assert (await upload.stored()).json["stored"] == [[0, 0]]
    assert (await tenant.ask("get", digest.encode())).data == b"of somebody else"


async def test_without_rollups_metadata_is_replaced_all_the_same(tenant: Raw) -> None:
    digest = await tenant.put(b"comes and goes")
    for _ in range(3):
        assert digest == await tenant.put(b"comes and goes")
        assert (await tenant.ask("delete", digest.encode())).code == 0
    assert (await tenant.ask("get", digest.encode())).code == 404
    assert await tenant.put(b"comes and goes") == digest
    assert (await tenant.ask("get", digest.encode())).data == b"comes and goes"
