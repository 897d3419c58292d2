"""What becomes of staged chunks, whoever commits, aborts and collects them, and in whatever order."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import nats
import pytest

from natsblob import wire
from natsblob.broker.connection import Access, connect
from natsblob.broker.embedded import EmbeddedServer
from natsblob.broker.jetstream import JetStream
from natsblob.chunking import Seen
from natsblob.digest import Digest
from natsblob.errors import (
    BlobError,
    BlobNotFoundError,
    ConflictError,
    DigestMismatchError,
    UploadExpiredError,
)
from natsblob.maintenance.collect import Collector
from natsblob.objectstore.bucket import Bucket, BucketConfig
from natsblob.objectstore.info import new_nuid
from natsblob.objectstore.objects import Objects
from natsblob.store.jetstream import JetStreamStore
from natsblob.testing.payloads import cut, pattern
from natsblob.wire import CommitRequest, Info
from tests.integration.subjects import subjects_of

CHUNK = 1024
DATA = pattern(5 * CHUNK + 10)
CHUNKS = list(cut(DATA, CHUNK))
DIGEST = Digest.of(DATA)


class Jittery(JetStream):
    """Waits before each call for as long as the seed says, so that calls of two tasks come in any order."""

    random: random.Random | None = None

    async def _request(self, operation: str, body: bytes, *given: float) -> Any:
        await self._wait()
        return await super()._request(operation, body, *given)

    async def publish(self, *args: Any, **named: Any) -> Any:
        await self._wait()
        return await super().publish(*args, **named)

    async def _wait(self) -> None:
        if self.random is not None:
            await asyncio.sleep(self.random.choice((0, 0, 0.001, 0.004)))


class Hasty(Collector):
    """Finds all chunks old, and no decisions: those of a commit that is under way never are."""

    async def _is_old(self, subject: str, now: datetime) -> bool:
        return not subject.endswith(".decision")


@dataclass
class Lab:
    jetstream: Jittery
    store: JetStreamStore
    objects: Objects

    async def stage(self, chunks: dict[int, bytes] | None = None, *, once: bool = True) -> str:
        """A stage with these chunks, published in this order."""
        stage = new_nuid()
        subject = self.objects.bucket.chunk_subject(stage)
        for index, chunk in (chunks or dict(enumerate(CHUNKS))).items():
            headers = wire.chunk_headers(stage, index, chunk)
            if not once:
                del headers[wire.MESSAGE_ID]
            await self.jetstream.connection.request(subject, chunk, headers=headers, timeout=5)
        return stage

    async def commit(self, stage: str, seen: Seen | None = None, **changes: Any) -> Info:
        request = {"size": len(DATA), "chunks": len(CHUNKS), **changes}
        return await self.store.commit(stage, CommitRequest(upload="", **request), seen)

    async def subjects(self) -> set[str]:
        """Of the chunks that are stored."""
        found = await subjects_of(self.jetstream, self.objects.bucket.layout.stream, "$O.*.C.*")
        return {subject.rpartition(".")[2] for subject in found}

    async def decisions(self) -> int:
        return len(await subjects_of(self.jetstream, self.objects.bucket.layout.stream, "$O.*.C.*.decision"))

    async def read(self) -> bytes:
        return b"".join([chunk async for chunk in self.store.chunks(DIGEST)])

    async def collect(self) -> None:
        """Collect as if every chunk were old; what is decided keeps its age."""
        await Hasty(self.objects, expiry=timedelta(hours=1), interval=60).collect()


@pytest.fixture
async def lab(server: EmbeddedServer) -> AsyncIterator[Lab]:
    name = uuid4().hex
    async with await connect(Access((server.url,))) as connection:
        jetstream = Jittery(connection)
        bucket = Bucket(jetstream, name, prefix=f"t{name}")
        await bucket.create(BucketConfig(name, storage="memory"))
        objects = Objects(bucket, chunk_size=CHUNK)
        yield Lab(jetstream, JetStreamStore(objects), objects)
        jetstream.random = None
        await jetstream.delete(bucket.layout.stream)


async def test_a_commit_may_be_repeated(lab: Lab) -> None:
    stage = await lab.stage()
    first = await lab.commit(stage)
    again = await asyncio.gather(*(lab.commit(stage) for _ in range(4)))
    assert first.created
    assert {info.digest for info in again} == {DIGEST}
    assert not any(info.created for info in again)
    assert await lab.read() == DATA


@pytest.mark.parametrize("once", [True, False], ids=["once", "some-twice"])
async def test_chunks_out_of_order_are_written_anew_in_order(
    lab: Lab, server: EmbeddedServer, once: bool
) -> None:
    order = list(range(len(CHUNKS)))
    random.Random(3).shuffle(order)
    stage = await lab.stage({index: CHUNKS[index] for index in order}, once=once)
    if not once:
        subject = lab.objects.bucket.chunk_subject(stage)
        headers = {wire.CHUNK: "2", wire.SUM: wire.chunk_sum(CHUNKS[2])}
        await lab.jetstream.connection.request(subject, CHUNKS[2], headers=headers, timeout=5)
    info = await lab.commit(stage)
    assert (info.digest, info.created) == (DIGEST, True)
    assert await lab.read() == DATA
    assert stage not in await lab.subjects()
    async with await nats.connect(server.url) as nc:
        theirs = await nc.jetstream().object_store(lab.objects.bucket.name)
        assert (await theirs.get(str(DIGEST))).data == DATA
    assert (await lab.commit(stage)).digest == DIGEST


async def test_a_chunk_may_come_windows_too_late(lab: Lab) -> None:
    objects = Objects(lab.objects.bucket, chunk_size=CHUNK, window_bytes=2 * CHUNK)
    late = {index: CHUNKS[index] for index in (0, 2, 3, 4, 5, 1)}
    request = CommitRequest(upload="", size=len(DATA), chunks=len(CHUNKS))
    info = await JetStreamStore(objects).commit(await lab.stage(late), request, None)
    assert info.digest == DIGEST
    assert await lab.read() == DATA


async def test_what_was_seen_counts_for_nothing_where_chunks_are_missing(lab: Lab) -> None:
    stage = await lab.stage({0: CHUNKS[0]})
    seen = Seen(DIGEST, len(DATA), len(CHUNKS), CHUNK, [wire.crc32(chunk) for chunk in CHUNKS])
    with pytest.raises(DigestMismatchError):
        await lab.commit(stage, seen, marks=wire.Marks(every=len(CHUNKS), seqs=[1]))


async def test_content_that_exists_lets_the_chunks_go(lab: Lab) -> None:
    first, second = await lab.stage(), await lab.stage()
    await lab.commit(first)
    assert not (await lab.commit(second)).created
    assert await lab.subjects() == {first}
    assert not (await lab.commit(second)).created
    await lab.store.abort(second)
    assert await lab.read() == DATA


async def test_uploads_of_the_same_content_race(lab: Lab) -> None:
    for seed in range(8):
        stages = [await lab.stage() for _ in range(3)]
        lab.jetstream.random = random.Random(seed)
        infos = await asyncio.gather(*(lab.commit(stage) for stage in stages))
        assert sum(info.created for info in infos) == 1
        assert len(await lab.subjects()) == 1
        assert await lab.read() == DATA
        await lab.store.delete(DIGEST)


async def test_a_commit_after_a_delete(lab: Lab) -> None:
    stage = await lab.stage()
    await lab.commit(stage)
    await lab.store.delete(DIGEST)
    with pytest.raises(UploadExpiredError):
        await lab.commit(stage)
    assert (await lab.commit(await lab.stage())).created
    assert await lab.read() == DATA


async def test_chunks_sent_again_to_a_deleted_blob_do_not_bring_it_back(lab: Lab) -> None:
    stage = await lab.stage()
    await lab.commit(stage)
    await lab.store.delete(DIGEST)
    subject = lab.objects.bucket.chunk_subject(stage)
    for index, chunk in enumerate(CHUNKS):
        headers = {wire.CHUNK: str(index), wire.SUM: wire.chunk_sum(chunk)}
        await lab.jetstream.connection.request(subject, chunk, headers=headers, timeout=5)
    with pytest.raises(UploadExpiredError):
        await lab.commit(stage)
    with pytest.raises(BlobNotFoundError):
        await lab.store.stat(DIGEST)


async def test_an_abort_after_the_commit_is_a_conflict(lab: Lab) -> None:
    stage = await lab.stage()
    await lab.commit(stage)
    with pytest.raises(ConflictError):
        await lab.store.abort(stage)
    assert await lab.read() == DATA


async def test_an_abort_may_be_repeated_and_ends_the_upload(lab: Lab) -> None:
    stage = await lab.stage()
    await lab.store.abort(stage)
    await lab.store.abort(stage)
    assert await lab.subjects() == set()
    with pytest.raises(UploadExpiredError):
        await lab.commit(stage)


async def test_chunks_that_are_too_old_are_not_committed(lab: Lab) -> None:
    stage = await lab.stage()
    hasty = JetStreamStore(lab.objects, upload_expiry=timedelta(0))
    with pytest.raises(UploadExpiredError):
        await hasty.commit(stage, CommitRequest("", len(DATA), len(CHUNKS)), None)


async def attempt(step: Callable[[], Awaitable[object]]) -> BlobError | None:
    try:
        await step()
    except BlobError as error:
        return error
    return None


@pytest.mark.parametrize("seed", range(24))
async def test_commits_aborts_and_collectors_race(lab: Lab, seed: int) -> None:
    """Whatever was answered stays true, whether it was a commit or an abort."""
    in_order = seed % 3 > 0
    chunks = dict(enumerate(CHUNKS) if in_order else reversed(list(enumerate(CHUNKS))))
    stage = await lab.stage(chunks)
    lab.jetstream.random = random.Random(seed)
    steps = {"commit": lambda: lab.commit(stage), "again": lambda: lab.commit(stage)}
    steps["abort"] = lambda: lab.store.abort(stage)  # type: ignore[assignment,return-value]
    if seed % 2:
        steps["collect"] = lab.collect  # type: ignore[assignment]
    order = random.Random(seed).sample(sorted(steps), len(steps))
    failures = dict(zip(order, await asyncio.gather(*(attempt(steps[name]) for name in order)), strict=True))
    lab.jetstream.random = None
    committed = None in (failures["commit"], failures["again"])
    if committed:
        assert await lab.read() == DATA
        await lab.collect()
        assert await lab.read() == DATA
    else:
        with pytest.raises(BlobNotFoundError):
            await lab.store.stat(DIGEST)
        await lab.collect()
        assert await lab.subjects() == set()
    if in_order:
        assert not (committed and failures["abort"] is None)


async def test_a_repeated_commit_is_not_answered_by_what_only_a_lagging_copy_has(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lab.commit(await lab.stage())
    second = await lab.stage()
    assert not (await lab.commit(second)).created
    layout = lab.objects.bucket.layout
    stale = await lab.jetstream.last(layout.stream, layout.meta(DIGEST.hex))
    await lab.store.delete(DIGEST)

    async def last(*_: str) -> Any:
        return stale

    monkeypatch.setattr(lab.jetstream, "last", last)
    with pytest.raises(UploadExpiredError):
        await lab.commit(second)
