"""A server that no longer leads, and has not heard of it, answers for the bucket as it was before."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

import pytest

from natsblob import wire
from natsblob.broker.connection import Access, connect
from natsblob.broker.jetstream import JetStream, decode_ack
from natsblob.broker.retry import retrying
from natsblob.chunking import Seen
from natsblob.digest import Digest
from natsblob.objectstore.bucket import Bucket, BucketConfig
from natsblob.objectstore.info import new_nuid
from natsblob.objectstore.objects import Objects
from natsblob.objectstore.staging import Staging
from natsblob.testing.payloads import cut, pattern
from natsblob.testing.servers import temporary_cluster
from natsblob.wire import CommitRequest, Marks, chunk_headers

CHUNK = 1000
DATA = pattern(3 * CHUNK - 1)


@pytest.mark.parametrize("known", [0, 2])
async def test_what_it_does_not_know_of_is_committed_all_the_same(
    monkeypatch: pytest.MonkeyPatch, known: int
) -> None:
    async with (
        temporary_cluster() as cluster,
        await connect(Access(servers=tuple(cluster.urls))) as connection,
    ):
        bucket = Bucket(JetStream(connection), "blobs", "blob")
        await bucket.create(BucketConfig(name="blobs", replicas=3))
        stage = new_nuid()

        async def publish(index: int, chunk: bytes) -> None:
            headers = chunk_headers(stage, index, chunk)
            decode_ack(
                await connection.request(bucket.chunk_subject(stage), chunk, headers=headers, timeout=10)
            )

        for index, chunk in enumerate(cut(DATA, CHUNK)):
            # a server learns a while after the creation that the stream takes this subject
            await retrying(partial(publish, index, chunk), patience=30)

        async def before(_: JetStream, __: str, ___: str) -> int:
            return known

        monkeypatch.setattr(JetStream, "count", before)
        digest = Digest.of(DATA)
        staging = Staging(Objects(bucket, chunk_size=CHUNK), expiry=timedelta(hours=1))
        request = CommitRequest(stage, len(DATA), 3, digest, Marks(every=1, seqs=[1, 2, 3]))
        seen = Seen(digest, len(DATA), 3, CHUNK, [wire.crc32(chunk) for chunk in cut(DATA, CHUNK)])
        assert (await staging.commit(stage, request, seen)).entry.info.name == digest.hex
