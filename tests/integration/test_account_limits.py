"""A bucket in an account that is limited: what cannot be had is refused with what to ask for instead."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from natsblob.broker.connection import Access, connect
from natsblob.broker.embedded import EmbeddedServer
from natsblob.broker.jetstream import JetStream
from natsblob.errors import SetupError
from natsblob.objectstore.bucket import Bucket, BucketConfig
from natsblob.testing.servers import temporary_server
from tests.integration.cli_process import Cli

MB = 1_000_000
_ACCOUNTS = {
    "required": "max_file: 300MB, max_bytes_required: true",
    "streams": "max_streams: 1",
    "memory": "max_mem: 100MB, max_file: 0",
    "file": "max_mem: 0, max_file: 100MB",
    "large": "max_file: 100MB, disk_max_stream_bytes: 10MB",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def limited() -> AsyncIterator[EmbeddedServer]:
    """A server with an account for each limit, and a user of the account's name in it."""
    accounts = "\n".join(
        f"{name}: {{ jetstream: {{ {limits} }}, users: [ {{ user: {name}, password: pw }} ] }}"
        for name, limits in _ACCOUNTS.items()
    )
    async with temporary_server(extra=f"accounts {{ {accounts} }}") as server:
        yield server


@pytest.mark.parametrize(
    ("account", "config", "advice"),
    [
        ("required", BucketConfig(), "--max-bytes"),
        ("required", BucketConfig(max_bytes=400 * MB), "--max-bytes"),
        ("memory", BucketConfig(), "--storage memory"),
        ("file", BucketConfig(storage="memory"), "--storage file"),
        ("large", BucketConfig(max_bytes=20 * MB), "--max-bytes"),
        ("file", BucketConfig(replicas=3), "fewer replicas"),
    ],
)
async def test_what_cannot_be_had_is_refused_with_advice(
    limited: EmbeddedServer, account: str, config: BucketConfig, advice: str
) -> None:
    async with await connect(Access((limited.url,), user=account, password="pw")) as connection:
        with pytest.raises(SetupError) as caught:
            await Bucket(JetStream(connection), config.name, "blob").create(config)
    assert advice in caught.value.message


async def test_what_is_within_the_limits_can_be_had(limited: EmbeddedServer) -> None:
    async with await connect(Access((limited.url,), user="required", password="pw")) as connection:
        bucket = Bucket(JetStream(connection), "fits", "blob")
        assert (await bucket.create(BucketConfig("fits", max_bytes=10 * MB))).config["max_bytes"] == 10 * MB


async def test_one_bucket_too_many_names_the_limit(limited: EmbeddedServer) -> None:
    async with await connect(Access((limited.url,), user="streams", password="pw")) as connection:
        await Bucket(JetStream(connection), "first", "first").create(BucketConfig("first"))
        with pytest.raises(SetupError) as caught:
            await Bucket(JetStream(connection), "second", "second").create(BucketConfig("second"))
    assert "max_streams" in caught.value.message


async def test_a_worker_that_may_not_make_its_bucket_says_how_to(
    limited: EmbeddedServer, tmp_path: Path
) -> None:
    cli = Cli(tmp_path, NATSBLOB_SERVER=limited.url, NATSBLOB_USER="required", NATSBLOB_PASSWORD="pw")
    ran = await asyncio.to_thread(cli, "serve")
    assert ran.code == 1
    assert "--max-bytes" in ran.err


@pytest.mark.parametrize(
    "flags",
    [("--max-bytes", "9EiB"), ("--max-bytes", "10000000TB"), ("--max-age", "200000d"), ("--max-age", "1ms")],
)
def test_limits_that_no_server_can_count_are_wrong_usage(tmp_path: Path, flags: tuple[str, str]) -> None:
    assert Cli(tmp_path)("bucket", "create", *flags).code == 2
