"""A further commit of an upload that is settled: told what holds, and never that something else is stored."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from natsblob.broker.embedded import EmbeddedServer
from natsblob.testing.payloads import pattern
from tests.integration.raw import CHUNK, Raw, pieces, service

DATA = pattern(2 * CHUNK + 1)
DIGEST = hashlib.sha256(DATA).hexdigest()
OTHER = hashlib.sha256(b"never put").hexdigest()


@pytest.fixture
async def raw(server: EmbeddedServer) -> AsyncIterator[Raw]:
    async with service(server.url) as client:
        yield client


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("declared", [{"digest": OTHER}, {"size": 1, "chunks": 1}])
async def test_a_repeated_commit_with_another_declaration(
    raw: Raw, declared: dict[str, Any], elsewhere: bool
) -> None:
    """The content was there already, so the upload gave way to it and left nothing but a record of that."""
    assert await raw.put(DATA) == DIGEST
    upload = await raw.upload(*pieces(DATA))
    assert (await upload.commit(elsewhere=elsewhere)).json["digest"] == DIGEST
    assert (await upload.commit(elsewhere=elsewhere, **declared)).error["name"] == "digest_mismatch"
    assert (await upload.commit(elsewhere=elsewhere)).json["digest"] == DIGEST
    assert (await raw.ask("get", DIGEST.encode())).data == DATA


async def test_an_upload_of_nothing_is_no_other_upload_afterwards(raw: Raw) -> None:
    empty = hashlib.sha256(b"").hexdigest()
    upload = await raw.open()
    assert (await upload.commit(size=0, chunks=0)).json["digest"] == empty
    assert (await upload.commit(size=5, chunks=1, digest=OTHER)).code in (408, 422)
