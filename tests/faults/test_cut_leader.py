"""A leader that is cut off from the other copies goes on answering for some ten seconds.

The others elect another one after four seconds or more, so that two servers answer for the bucket meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
import msgspec
import pytest

from natsblob.broker.connection import Access, connect
from natsblob.broker.jetstream import JetStream, decode_ack
from natsblob.broker.retry import retrying
from natsblob.digest import Digest
from natsblob.errors import DeadlineError, UnavailableError
from natsblob.objectstore.bucket import Bucket, BucketConfig
from natsblob.objectstore.info import ObjectInfo, encode_info
from natsblob.objectstore.objects import Objects
from natsblob.store.jetstream import JetStreamStore
from natsblob.testing.payloads import pattern, source
from natsblob.testing.servers import monitor
from tests.faults.nemesis.network import ProxyNetwork
from tests.faults.nemesis.node import Node, server_binary

SMALL = pattern(1000)
LARGE = pattern(300_000)
SETTLED = 60.0
"""Seconds until the servers agree; an election takes 4 to 9 on an idle machine."""
CHUNK = 100_000


@asynccontextmanager
async def three(directory: Path) -> AsyncIterator[tuple[ProxyNetwork, dict[str, Node]]]:
    """A cluster whose routes can be cut, and its servers by name."""
    async with AsyncExitStack() as stack:
        network = await stack.enter_async_context(ProxyNetwork(3))
        nodes = {}
        for number in network.nodes:
            home = directory / f"n{number}"
            node = Node(number, home, home / "data", network, sync="2m", binary=server_binary())
            stack.push_async_callback(node.stop)
            nodes[node.name] = node
        await asyncio.gather(*(node.start() for node in nodes.values()))
        yield network, nodes


@asynccontextmanager
async def store_at(node: Node) -> AsyncIterator[tuple[JetStreamStore, Bucket]]:
    """What a worker that is connected to this server works with."""
    async with await connect(Access(servers=(node.url,))) as connection:
        bucket = Bucket(JetStream(connection), "blobs", "blob")
        yield JetStreamStore(Objects(bucket, chunk_size=CHUNK)), bucket


async def lead_both(network: ProxyNetwork, bucket: Bucket) -> str:
    """Have the server that leads JetStream lead the bucket as well, and return its name.

    So it does not hear from another leader that it is cut off.
    """
    found = await monitor(network.monitor_port(1), "/jsz")
    name: str = found["meta_cluster"]["leader"]
    body = msgspec.json.encode({"placement": {"preferred": name}})
    with anyio.fail_after(SETTLED):
        while (cluster := (await bucket.info()).cluster) is None or cluster.leader != name:
            subject = f"$JS.API.STREAM.LEADER.STEPDOWN.{bucket.layout.stream}"
            await bucket.jetstream.connection.request(subject, body, timeout=5)
            await anyio.sleep(0.2)
    return name


async def delete_as_another_client(bucket: Bucket, digest: Digest) -> None:
    """Put a delete marker, as soon as anybody takes it."""
    marker = encode_info(ObjectInfo(name=digest.hex, bucket=bucket.name, nuid="", deleted=True))
    subject = bucket.layout.meta(digest.hex)

    async def attempt() -> None:
        decode_ack(await bucket.jetstream.connection.request(subject, marker, timeout=0.3))

    await retrying(attempt, patience=SETTLED)


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
async def test_it_acknowledges_no_put_of_what_was_deleted_meanwhile(tmp_path: Path, content: bytes) -> None:
    digest = Digest.of(content)
    async with three(tmp_path) as (network, nodes), AsyncExitStack() as stack:
        _, bucket = await stack.enter_async_context(store_at(nodes["n1"]))
        config = BucketConfig(name="blobs", replicas=3)
        await retrying(lambda: bucket.create(config), patience=SETTLED)
        leader = nodes[await lead_both(network, bucket)]
        others = [node for node in nodes.values() if node is not leader]
        old, old_bucket = await stack.enter_async_context(store_at(leader))
        _, new_bucket = await stack.enter_async_context(store_at(others[0]))
        await retrying(lambda: old.put(source(content)), patience=SETTLED)
        assert await old.held(digest)

        await network.split([leader.number], [node.number for node in others])
        await delete_as_another_client(new_bucket, digest)
        believed = await Objects(old_bucket).newest(digest.hex)
        assert believed is not None
        assert not believed.info.deleted, "it has learned of it already"

        old_bucket.jetstream.patience = 0
        with pytest.raises((UnavailableError, DeadlineError)):
            await old.held(digest)
