"""What a comparison of copies found, as Prometheus metrics in a file.

Comparing reads every byte, so it runs now and then and not in a worker. Its findings are left where the
node exporter's textfile collector, or whatever gathers metrics, picks them up.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from natsblob.client.download import save
from natsblob.maintenance.replicas import Comparison


async def write(found: Comparison, path: Path) -> None:
    """Replace the file at `path` at once, so that nobody reads half of it; `OSError` if it cannot be."""
    registry = CollectorRegistry()

    def gauge(name: str, about: str, *labels: str) -> Gauge:
        return Gauge(f"natsblob_{name}", about, ["bucket", *labels], registry=registry)

    gauge("compared_timestamp_seconds", "When the copies were compared").labels(
        found.bucket
    ).set_to_current_time()
    gauge("compared_blobs", "Blobs in the comparison").labels(found.bucket).set(found.blobs)
    gauge("lost_blobs", "Blobs that are whole on no server").labels(found.bucket).set(len(found.lost))
    read = gauge("copy_read", "Whether the copy of this server could be read", "server")
    lacking = gauge("copy_lacking_messages", "Messages that other servers have and this one not", "server")
    damaged = gauge("copy_damaged_blobs", "Blobs that cannot be read from this server", "server")
    for node in found.nodes:
        read.labels(found.bucket, node.name).set(node.read)
        if node.read:
            lacking.labels(found.bucket, node.name).set(node.lacking)
            damaged.labels(found.bucket, node.name).set(node.damaged)
    await save(_once(generate_latest(registry)), path)


async def _once(text: bytes) -> AsyncGenerator[bytes, None]:
    yield text
