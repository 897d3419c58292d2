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
ROLES = ("service", "storage", "admin", "uploader", "tenant", "system")


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


async def test_the_uploads_of_a_tenant_are_relayed(tenant: Raw) -> None:
    assert "direct" not in (await tenant.ask("caps")).json["features"]
    opened = (await tenant.ask("put.open", {"relayed": False})).json
    assert opened["relayed"] is True
    assert opened["chunk_subject"].startswith(f"blob.relay.{tenant.ids[0]}.")


@pytest.mark.parametrize(
    "headers",
    [
        {"Nats-Rollup": "sub"},
        {"Nats-Rollup": "all"},
        {"Nats-Expected-Last-Msg-Id": "unmet"},
        {"Nats-Expected-Last-Subject-Sequence": "77"},
        {"Nats-TTL": "1s"},
        {"Nats-Service-Error-Code": "500"},
        {"Nats-Msg-Id": "x"},
    ],
)
async def test_no_header_of_a_tenant_reaches_the_stream(
    tenant: Raw, guarded: EmbeddedServer, headers: dict[str, str]
) -> None:
    digest = await tenant.put(b"of somebody else")
    data = pattern(2 * CHUNK + 1, str(headers))
    upload = await tenant.open()
    for index, chunk in enumerate(pieces(data)):
        assert (await upload.send(index, chunk, headers)).code == 0
    stage = upload.opened["chunk_subject"].rpartition(".")[2]
    async with await nats.connect(
        guarded.url, user="admin", password="pw-admin", inbox_prefix="_INBOX.admin"
    ) as admin:
        subject = f"$O.blobs.C.{stage}"
        stored = await admin.jetstream().get_last_msg("OBJ_blobs", subject)
    assert (stored.headers or {}).keys() == {"Blob-Chunk", "Blob-Sum", "Nats-Msg-Id"}
    assert (stored.headers or {})["Nats-Msg-Id"] == f"{stage}.2"
    info = (await upload.commit()).json
    assert info["digest"] == hashlib.sha256(data).hexdigest()
    assert (await tenant.ask("get", digest.encode())).data == b"of somebody else"


async def test_without_rollups_metadata_is_replaced_all_the_same(tenant: Raw) -> None:
    digest = await tenant.put(b"comes and goes")
    for _ in range(3):
        assert digest == await tenant.put(b"comes and goes")
        assert (await tenant.ask("delete", digest.encode())).code == 0
    assert (await tenant.ask("get", digest.encode())).code == 404
    assert await tenant.put(b"comes and goes") == digest
    assert (await tenant.ask("get", digest.encode())).data == b"comes and goes"
