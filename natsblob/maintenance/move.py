"""Moving a bucket off the subject on which the first version of natsblob took chunks (ADR 0015)."""

from __future__ import annotations

from contextlib import suppress

import msgspec

from natsblob import wire
from natsblob.broker.connection import Connection
from natsblob.errors import ConflictError
from natsblob.maintenance.doctor.ask import gather
from natsblob.objectstore.bucket import Bucket
from natsblob.objectstore.requirements import refuse_unfit


class _Worker(msgspec.Struct):
    """What a worker says of itself on `$SRV`."""

    id: str = ""
    version: str = ""
    metadata: dict[str, str] = {}


async def move(bucket: Bucket, *, force: bool = False) -> list[str]:
    """Have the bucket say who uploads, and take no more chunks on its old subject.

    That subject is left to it while workers are about that know no other, unless with `force`; returns
    the ids of those. Repeating it is harmless, and what is stored or staged stays as it is.
    """
    config = (await bucket.info()).config
    refuse_unfit(bucket.layout, {**config, "allow_direct": True})
    if config.get("sealed"):
        raise ConflictError("the bucket is sealed: what is in it stays as it is, and nothing can be adopted")
    older: list[str] = []
    if bucket.old_ingest(config) is not None:
        older = await older_workers(bucket.jetstream.connection, bucket.name)
    await bucket.prepare(keep_old=bool(older) and not force)
    return older


async def older_workers(connection: Connection, bucket: str) -> list[str]:
    """The workers of this bucket that know only the old subject, by their ids."""
    found: list[str] = []
    for answer in await gather(connection, "$SRV.INFO"):
        with suppress(*wire.NOT_DECODED):
            worker = msgspec.json.decode(answer.data, type=_Worker)
            if worker.metadata.get("bucket") == bucket and worker.metadata.get("backend") == "jetstream":
                found += [worker.id] if worker.metadata.get(wire.RELAYS) != wire.STAGED else []
    return sorted(found)
