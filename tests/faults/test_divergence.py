"""Bit rot on one server of three: found by reading each copy, repaired from a whole one, never served."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from natsblob.broker.connection import Access, connect
from natsblob.broker.consumers import Copies
from natsblob.broker.embedded import EmbeddedServer
from natsblob.broker.jetstream import JetStream
from natsblob.digest import Digest
from natsblob.errors import BlobCorruptError, BlobError, BlobNotFoundError, UnavailableError
from natsblob.maintenance import replicas
from natsblob.maintenance.collect import Collector
from natsblob.maintenance.doctor.check import Status
from natsblob.maintenance.doctor.copies import Figures, check_copies, differing
from natsblob.maintenance.repair import Repairer, Say
from natsblob.maintenance.replicas import Comparer, nodes_of
from natsblob.maintenance.verify import verify
from natsblob.objectstore import writer
from natsblob.objectstore.bucket import Bucket, BucketConfig
from natsblob.objectstore.objects import Objects
from natsblob.store.jetstream import JetStreamStore
from natsblob.testing.payloads import pattern
from natsblob.testing.servers import EmbeddedCluster, temporary_cluster
from tests.integration.cli_process import Cli

CHUNK = 32 * 1024
SIZES = (0, 5, CHUNK, 6 * CHUNK - 5)
PATIENCE = 60.0


async def once(data: bytes) -> AsyncIterator[bytes]:
    yield data


@dataclass
class Rig:
    """A bucket, what was put into it, and what looks after it."""

    bucket: Bucket
    store: JetStreamStore
    copies: Copies
    comparer: Comparer
    blobs: dict[Digest, bytes]

    @classmethod
    async def make(cls, url: Access, replicas: int, name: str = "blobs") -> AsyncGenerator[Rig, None]:
        async with await connect(url) as connection:
            bucket = Bucket(JetStream(connection), name, "blob")
            await bucket.create(BucketConfig(name=name, replicas=replicas))
            objects = Objects(bucket, chunk_size=CHUNK)
            copies = Copies(connection, bucket.layout.stream)
            comparer = Comparer(objects, copies)
            rig = cls(bucket, JetStreamStore(objects), copies, comparer, {})
            for number in range(6):
                for size in SIZES:
                    await rig.put(pattern(size, seed=str(number)))
            yield rig

    def repairer(self, say: Say) -> Repairer:
        return Repairer(self.bucket, self.comparer, self.copies, patience=PATIENCE, say=say)

    async def put(self, data: bytes) -> Digest:
        digest = (await self.store.put(once(data))).digest
        self.blobs[digest] = data
        return digest

    async def read(self, digest: Digest) -> bytes:
        return b"".join([chunk async for chunk in self.store.chunks(digest)])

    async def lose_chunk(self, digest: Digest) -> None:
        """Remove one chunk of a blob from every copy."""
        connection = self.bucket.jetstream.connection
        stream = self.bucket.layout.stream
        entry = await Objects(self.bucket).find(digest.hex)
        assert entry is not None
        subject = self.bucket.layout.chunks(entry.info.nuid)
        last = await self.bucket.jetstream.last_at_leader(stream, subject)
        assert last is not None
        request = json.dumps({"seq": last.seq}).encode()
        reply = await connection.request(f"$JS.API.STREAM.MSG.DELETE.{stream}", request, timeout=5)
        assert json.loads(reply.data)["success"]

    async def consumers(self) -> list[str]:
        connection = self.bucket.jetstream.connection
        subject = f"$JS.API.CONSUMER.NAMES.{self.bucket.layout.stream}"
        return list(json.loads((await connection.request(subject, timeout=5)).data)["consumers"] or [])

    async def group(self) -> dict[str, bool]:
        return nodes_of(await self.bucket.info())

    async def lead(self, node: str) -> None:
        async with asyncio.timeout(PATIENCE):
            while next(iter(await self.group())) != node:
                with contextlib.suppress(BlobError):
                    await self.copies.lead(node)
                await asyncio.sleep(0.2)


@pytest_asyncio.fixture
async def rig(fresh_cluster: EmbeddedCluster) -> AsyncIterator[Rig]:
    async for made in Rig.make(Access(tuple(fresh_cluster.urls)), replicas=3):
        yield made


@pytest_asyncio.fixture
async def single(server: EmbeddedServer, request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    async for made in Rig.make(Access((server.url,)), replicas=1, name=request.node.name):
        yield made


def flip_a_bit(server: EmbeddedServer) -> None:
    """In the middle of what a stopped server holds of the bucket."""
    assert not server.running
    blocks = [path for path in server.store_dir.rglob("*.blk") if "OBJ_blobs" in path.parts]
    largest = max(blocks, key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)


def break_a_record(server: EmbeddedServer, *, forget: bool) -> None:
    """Lose what lies behind the first tenth of a block; with `forget` so that it is not even counted.

    A block behind which there is another: what the last one lacks is fetched from the leader.
    """
    blocks = [path for path in server.store_dir.rglob("*.blk") if "OBJ_blobs" in path.parts]
    first, *others = sorted(blocks)
    assert others
    data = bytearray(first.read_bytes())
    # A record begins with its length, its sequence, its time and the length of its subject: 22 bytes.
    data[data.index(b"$O.blobs.", len(data) // 10) - 21] ^= 0x10
    first.write_bytes(data)
    if forget:
        (first.parent / "index.db").unlink()


async def rot(cluster: EmbeddedCluster, server: EmbeddedServer) -> None:
    await server.stop()
    flip_a_bit(server)
    await server.start()
    await cluster.settled()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that is behind here is damaged: it need not get long. What is unnamed is due at once."""
    monkeypatch.setattr(replicas, "CATCH_UP", 2.0)
    monkeypatch.setattr(writer, "NAMING", timedelta(0))


class Operator:
    """Stops and starts the server that a repair names."""

    def __init__(self, server: EmbeddedServer) -> None:
        self._server = server
        self._tasks: list[asyncio.Task[None]] = []

    def __call__(self, text: str) -> None:
        if self._server.name in text and text.startswith(("stop", "start")):
            deed = self._server.stop if text.startswith("stop") else self._server.start
            self._tasks.append(asyncio.create_task(deed()))

    async def done(self) -> None:
        await asyncio.gather(*self._tasks)
        assert len(self._tasks) == 2


@pytest.mark.cluster
@pytest.mark.parametrize("online", [False, True], ids=["one server stopped", "online"])
async def test_a_bit_flipped_on_each_server_in_turn_is_found_and_repaired(
    rig: Rig, fresh_cluster: EmbeddedCluster, tmp_path: Path, online: bool
) -> None:
    cli = Cli(tmp_path, NATS_URL=",".join(fresh_cluster.urls))
    for server in fresh_cluster.servers[: 1 if online else None]:
        await rot(fresh_cluster, server)

        found = await rig.comparer.compare()
        assert found.diverge
        assert [node.name for node in found.nodes if not node.is_good] == [server.name]
        assert found.damage
        assert all(one.bad == (server.name,) and len(one.good) == 2 for one in found.damage)

        await rig.lead(server.name)
        for digest, data in rig.blobs.items():
            assert await rig.read(digest) == data

        if online:
            ran = await asyncio.to_thread(cli, "repair", "--online", "--json")
            assert ran.code == 0, ran.err
        else:
            operator = Operator(server)
            assert (await rig.repairer(operator).repair()).agree
            await operator.done()

    for server in fresh_cluster.servers:
        await rig.lead(server.name)
        for digest, data in rig.blobs.items():
            assert await rig.read(digest) == data
    assert (await rig.comparer.compare()).agree
    assert int((await rig.bucket.info()).config["num_replicas"]) == 3
    assert await rig.consumers() == []


@pytest.mark.cluster
@pytest.mark.parametrize("forgets", [False, True], ids=["it counts them", "it does not count them"])
async def test_a_leader_that_has_lost_names_does_not_deny_what_others_hold(
    rig: Rig, fresh_cluster: EmbeddedCluster, forgets: bool
) -> None:
    for number in range(10):
        await rig.put(pattern(1024 * 1024, seed=f"filler {number}"))
    server = fresh_cluster.servers[0]
    await server.stop()
    break_a_record(server, forget=forgets)
    await server.start()
    await fresh_cluster.settled()
    await rig.lead(server.name)
    objects = Objects(rig.bucket, chunk_size=CHUNK)
    store = JetStreamStore(objects)
    collector = Collector(objects, expiry=timedelta(0), interval=60)
    lost = [digest for digest in rig.blobs if await objects.newest(digest.hex) is None]
    assert lost

    absent = Digest.of(b"never put")
    assert await store.missing([*rig.blobs, absent]) == [absent]
    for digest, data in rig.blobs.items():
        assert (await store.stat(digest)).size == len(data)
        assert await rig.read(digest) == data
    if forgets:
        for listing in (store.list(), anext(verify(objects))):
            with pytest.raises(UnavailableError):
                await listing
        entries = (await objects.find_many([digest.hex for digest in rig.blobs])).values()
        nuids = {entry.info.nuid for entry in entries}
        with contextlib.suppress(UnavailableError):  # the damaged copy was asked for some of it
            assert await objects.named_chunks(nuids) == nuids
    else:
        assert {info.digest for info in (await store.list()).blobs} == rig.blobs.keys()
        assert {blob.digest async for blob in verify(objects)} == {digest.hex for digest in rig.blobs}
        for _ in range(4):
            with contextlib.suppress(UnavailableError):  # the damaged copy was asked for all names
                assert (await collector.collect()).uploads == 0

    again, gone = lost[:2]
    assert (await store.put(once(rig.blobs[again]))).digest == again
    await store.delete(gone)
    for digest, data in rig.blobs.items() - {(gone, rig.blobs[gone])}:
        assert await rig.read(digest) == data
    with pytest.raises(BlobNotFoundError):
        await store.stat(gone)


@pytest.mark.cluster
async def test_a_spare_server_takes_the_place_of_a_damaged_copy() -> None:
    async with (
        temporary_cluster(4) as cluster,
        contextlib.aclosing(Rig.make(Access(tuple(cluster.urls)), replicas=3)) as made,
    ):
        rig = await anext(made)
        before = await rig.group()
        damaged = cluster.named(list(before)[1])
        await rot(cluster, damaged)
        assert (await rig.repairer(lambda _: None).repair()).agree
        after = await rig.group()
        assert len(after) == 3
        assert before.keys() - after.keys() == {damaged.name}
        for digest, data in rig.blobs.items():
            assert await rig.read(digest) == data


@pytest.mark.cluster
async def test_copies_agree_while_blobs_come_and_go(rig: Rig) -> None:
    stop = asyncio.Event()

    async def churn() -> None:
        number = 0
        while not stop.is_set():
            digest = await rig.put(pattern(3 * CHUNK, seed=f"churn {number}"))
            if number % 2:
                await rig.store.delete(digest)
                del rig.blobs[digest]
            number += 1

    churning = asyncio.create_task(churn())
    try:
        for _ in range(3):
            found = await rig.comparer.compare()
            assert found.agree, found
    finally:
        stop.set()
        await churning


@pytest.mark.cluster
async def test_without_a_whole_copy_nothing_is_changed(rig: Rig, fresh_cluster: EmbeddedCluster) -> None:
    lost = next(digest for digest, data in rig.blobs.items() if len(data) > CHUNK)
    await rig.lose_chunk(lost)
    before = await rig.group()
    found = await rig.comparer.compare()
    assert [(one.name, one.good) for one in found.damage] == [(lost.hex, ())]
    with pytest.raises(BlobCorruptError):
        await rig.repairer(lambda _: None).repair()
    assert await rig.group() == before


@pytest.mark.cluster
async def test_a_server_that_is_down_is_not_judged(rig: Rig, fresh_cluster: EmbeddedCluster) -> None:
    down = fresh_cluster.named(list(await rig.group())[-1])
    await down.stop()
    async with asyncio.timeout(PATIENCE):
        while (await rig.group())[down.name]:  # noqa: ASYNC110 - servers decide
            await asyncio.sleep(0.1)
    found = await rig.comparer.compare()
    assert not found.diverge
    assert not found.agree
    assert [node.name for node in found.nodes if not node.read] == [down.name]
    with pytest.raises(UnavailableError):
        await rig.repairer(lambda _: None).repair()
    assert len(await rig.group()) == 3


@pytest.mark.cluster
async def test_the_doctor_compares_what_servers_say(rig: Rig, fresh_cluster: EmbeddedCluster) -> None:
    monitors = [f"http://127.0.0.1:{seat.monitor_port}" for seat in fresh_cluster._seats]
    connection = rig.bucket.jetstream.connection
    check = await check_copies(connection, monitors, rig.bucket.layout.stream)
    assert check is not None
    assert check.status is Status.OK
    assert await check_copies(connection, monitors[:1], rig.bucket.layout.stream) is None


@pytest.mark.parametrize(
    ("now", "different"),
    [
        ({"a": Figures(9, 0, 9), "b": Figures(9, 0, 9), "c": Figures(9, 0, 9)}, []),
        ({"a": Figures(9, 0, 9), "b": Figures(4, 0, 4), "c": Figures(9, 0, 9)}, ["b"]),
        ({"a": Figures(9, 0, 9), "b": Figures(7, 2, 9), "c": Figures(9, 0, 9)}, ["b"]),
        ({"a": Figures(12, 0, 12), "b": Figures(9, 0, 9), "c": Figures(12, 0, 12)}, []),
    ],
    ids=["equal", "behind", "gaps", "writes go on"],
)
def test_servers_that_count_differently(now: dict[str, Figures], different: list[str]) -> None:
    before = dict.fromkeys("abc", Figures(9, 0, 9))
    assert differing(before, now) == different


async def test_a_copy_is_read_whole_and_its_readers_go_away(single: Rig) -> None:
    found = await single.comparer.compare()
    assert found.agree
    assert found.blobs == len(single.blobs)
    assert await single.consumers() == []


async def test_a_cancelled_comparison_leaves_no_consumer(single: Rig) -> None:
    async def reading() -> None:
        async with single.copies.opened(list(await single.group()) or ["-"]):
            opened.set()
            await asyncio.Event().wait()

    opened = asyncio.Event()
    task = asyncio.create_task(reading())
    await opened.wait()
    assert len(await single.consumers()) == 1
    task.cancel()
    await asyncio.wait({task})
    assert await single.consumers() == []


async def test_verify_reads_every_blob_and_resumes(single: Rig) -> None:
    lost = next(digest for digest, data in single.blobs.items() if len(data) > CHUNK)
    await single.lose_chunk(lost)
    objects = Objects(single.bucket)
    found = [blob async for blob in verify(objects)]
    assert [blob.digest for blob in found] == sorted(digest.hex for digest in single.blobs)
    assert [blob.digest for blob in found if blob.outcome == "corrupt"] == [lost.hex]
    half = Digest.parse(found[len(found) // 2].digest)
    assert [blob async for blob in verify(objects, after=half)] == found[len(found) // 2 + 1 :]


async def test_verify_keeps_to_its_rate(single: Rig) -> None:
    total = sum(map(len, single.blobs.values()))
    began = asyncio.get_running_loop().time()
    async for _ in verify(Objects(single.bucket), rate=total):
        pass
    assert asyncio.get_running_loop().time() - began >= 0.5


async def test_the_command_says_by_its_exit_code_what_it_found(single: Rig, tmp_path: Path) -> None:
    connection = single.bucket.jetstream.connection
    cli = Cli(tmp_path, NATS_URL=connection.url, NATSBLOB_BUCKET=single.bucket.name)
    assert (await asyncio.to_thread(cli, "verify")).code == 0
    assert (await asyncio.to_thread(cli, "verify", "--replicas")).code == 0
    await single.lose_chunk(next(digest for digest, data in single.blobs.items() if len(data) > CHUNK))
    assert (await asyncio.to_thread(cli, "verify")).code == 4
    ran = await asyncio.to_thread(cli, "verify", "--replicas", "--json")
    assert ran.code == 4
    assert len(json.loads(ran.lines[0])["damage"]) == 1
    assert (await asyncio.to_thread(cli, "repair")).code == 4
