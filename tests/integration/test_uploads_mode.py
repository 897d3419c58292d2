"""Who writes into a bucket's stream: its configuration, older buckets, and what clients do."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import nats
import pytest
import pytest_asyncio
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import StreamConfig, SubjectTransform

import natsblob
from natsblob.app import worker
from natsblob.broker.connection import Access, connect
from natsblob.broker.embedded import EmbeddedServer
from natsblob.broker.jetstream import JetStream
from natsblob.broker.publish import ACK_TIMEOUT
from natsblob.cli.exits import Exit
from natsblob.client import way
from natsblob.config import Settings
from natsblob.errors import ConflictError
from natsblob.maintenance.move import move
from natsblob.objectstore import bucket as buckets
from natsblob.objectstore.bucket import Bucket, BucketConfig
from natsblob.testing.payloads import pattern
from natsblob.testing.servers import temporary_server
from natsblob.testing.services import running_worker
from tests.integration.cli_process import Cli
from tests.integration.raw import CHUNK, Raw, pieces, service

DATA = pattern(5 * CHUNK + 100)
CHUNKS = pieces(DATA)
DIGEST = hashlib.sha256(DATA).hexdigest()


@asynccontextmanager
async def a_bucket(server: EmbeddedServer, name: str, prefix: str = "blob") -> AsyncIterator[Bucket]:
    async with await connect(Access((server.url,))) as connection:
        yield Bucket(JetStream(connection), name, prefix)


async def make_old(nc: Client, name: str, prefix: str, **changes: Any) -> None:
    """A bucket as the first version made it."""
    ingest = f"{prefix}.chunk.{name}.*"
    config = StreamConfig(
        name=f"OBJ_{name}",
        subjects=[f"$O.{name}.C.>", f"$O.{name}.M.>", ingest],
        subject_transform=SubjectTransform(src=ingest, dest=f"$O.{name}.C.{{{{wildcard(1)}}}}"),
        discard="new",  # type: ignore[arg-type] # the client turns it into JSON as it is
        allow_direct=True,
        allow_rollup_hdrs=False,
    )
    await nc.jetstream().add_stream(replace(config, **changes))


async def edit(raw: Raw, **changes: Any) -> None:
    """What another client does that writes back the configuration that it knows."""
    info = json.loads((await raw.nc.request(f"$JS.API.STREAM.INFO.{raw.stream}", b"")).data)
    config = {**info["config"], **changes}
    answer = await raw.nc.request(f"$JS.API.STREAM.UPDATE.{raw.stream}", json.dumps(config).encode())
    assert "error" not in json.loads(answer.data)


@asynccontextmanager
async def an_older_worker(nc: Client, bucket: str) -> AsyncIterator[str]:
    """A worker of the first version, as far as it can be seen."""
    name = uuid4().hex
    identity = {"name": "natsblob", "id": name, "version": "0.1.0"}
    metadata = {"bucket": bucket, "backend": "jetstream", "protocol": "1"}

    async def answer(request: Msg) -> None:
        await request.respond(json.dumps({**identity, "metadata": metadata}).encode())

    subscription = await nc.subscribe("$SRV.INFO", cb=answer)
    for _ in range(2):
        await nc.flush()
    yield name
    await subscription.unsubscribe()


# The configuration.


@pytest.mark.parametrize(
    ("config", "mode"),
    [
        ({}, "relayed"),
        ({"metadata": {"natsblob.uploads": "direct"}}, "direct"),
        ({"metadata": {"natsblob.uploads": "relayed"}}, "relayed"),
        ({"metadata": {"natsblob.uploads": "of a later version"}}, "relayed"),
        ({"metadata": {"natsblob.uploads": "direct"}, "allow_rollup_hdrs": True}, "relayed"),
        ({"subject_transform": {"src": "x.chunk.b.*", "dest": "$O.b.C.{{wildcard(1)}}"}}, "direct"),
        ({"subject_transform": {"src": "x.chunk.b.*", "dest": "$O.c.C.{{wildcard(1)}}"}}, "relayed"),
        (
            {
                "subject_transform": {"src": "x.chunk.b.*", "dest": "$O.b.C.{{wildcard(1)}}"},
                "metadata": {"natsblob.uploads": "relayed"},
            },
            "relayed",
        ),
    ],
)
def test_who_uploads_by_the_configuration(config: dict[str, Any], mode: str) -> None:
    assert Bucket(None, "b", "blob").uploads(config) == mode  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "mode"),
    [({}, "direct"), ({"uploads": "relayed"}, "relayed"), ({"rollups": True}, "relayed")],
)
async def test_a_bucket_is_created_so(server: EmbeddedServer, given: dict[str, Any], mode: str) -> None:
    name = uuid4().hex
    async with a_bucket(server, name) as bucket:
        config = (await bucket.create(BucketConfig(name, storage="memory", **given))).config
        assert config["subjects"] == [f"$O.{name}.C.>", f"$O.{name}.M.>"]
        assert not config.get("subject_transform")
        assert bucket.uploads(config) == config["metadata"]["natsblob.uploads"] == mode


async def test_it_is_changed_while_workers_run(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "_REMEMBERED", 0.0)
    async with service(server.url) as raw, a_bucket(server, raw.bucket) as bucket:
        for mode in ("direct", "relayed", "direct"):
            changed = await bucket.change(uploads=mode)
            assert bucket.uploads(changed.config) == mode
            assert (await raw.open()).opened["relayed"] is (mode == "relayed")
            assert ("direct" in (await raw.ask("caps")).json["features"]) is (mode == "direct")
            upload = await raw.upload(*CHUNKS)
            assert (await upload.commit()).json["digest"] == DIGEST
        await bucket.change(rollups=True)
        assert (await raw.open()).opened["relayed"] is True
        with pytest.raises(ConflictError):
            await bucket.change(uploads="direct")
        await bucket.change(uploads="direct", rollups=False)
        assert (await raw.open()).opened["relayed"] is False


async def test_what_others_keep_in_the_metadata_of_a_stream_stays(server: EmbeddedServer) -> None:
    name = uuid4().hex
    async with a_bucket(server, name) as bucket:
        config = (await bucket.create(BucketConfig(name, storage="memory"))).config
        config["metadata"] = {**config["metadata"], "owner": "somebody"}
        await bucket.jetstream.update(config)
        metadata = (await bucket.change(uploads="relayed")).config["metadata"]
        assert {key: value for key, value in metadata.items() if not key.startswith("_nats.")} == {
            "natsblob.uploads": "relayed",
            "owner": "somebody",
        }


@pytest.mark.parametrize("metadata", [{}, {"natsblob.uploads": "direct"}])
async def test_a_bucket_that_another_client_edits_goes_on(
    server: EmbeddedServer, metadata: dict[str, str]
) -> None:
    """Within the time for which its configuration is remembered chunks still go into the stream."""
    async with service(server.url) as raw:
        assert (await raw.open()).opened["relayed"] is False
        await edit(raw, metadata=metadata, allow_rollup_hdrs=True, description="edited")
        upload = await raw.upload(*CHUNKS)
        assert (await upload.commit()).json["digest"] == DIGEST
        other = await raw.open(relayed=True)
        for index, chunk in enumerate(CHUNKS):
            assert (await other.send(index, chunk)).code == 0
        assert (await other.commit()).json["digest"] == DIGEST


async def test_workers_send_a_few_headers_and_never_the_one_that_stops_a_stream(
    server: EmbeddedServer,
) -> None:
    async with service(server.url) as raw:
        published = await raw.listen(f"$O.{raw.bucket}.>")
        digest = await raw.put(b"small")
        for relayed in (True, False):
            for ending in ("commit", "abort"):
                data = pattern(2 * CHUNK, f"{relayed} {ending}")
                upload = await raw.open(relayed=relayed)
                for index, chunk in enumerate(pieces(data)):
                    assert (await upload.send(index, chunk)).code == 0
                assert (await (upload.commit() if ending == "commit" else upload.abort())).code == 0
        assert await raw.put(b"small") == digest
        assert (await raw.ask("delete", digest.encode())).code == 0
        await raw.listen("nothing")
        names: set[str] = set()
        while published.pending_msgs:
            names |= (await published.next_msg()).headers.keys()  # type: ignore[union-attr]
    assert "Blob-Chunk" in names
    assert names <= {
        "Blob-Chunk",
        "Blob-Sum",
        "Nats-Msg-Id",
        "Nats-Expected-Last-Subject-Sequence",
    }


# Buckets of the first version.


async def test_an_older_bucket_takes_chunks_where_it_always_did(server: EmbeddedServer) -> None:
    name = uuid4().hex
    async with await nats.connect(server.url) as nc:
        await make_old(nc, name, f"t{name}")
        async with service(server.url, bucket=name, prefix=f"t{name}") as raw:
            upload = await raw.upload(*CHUNKS)
            assert upload.opened["chunk_subject"].startswith(f"t{name}.chunk.{name}.")
            assert upload.opened["relayed"] is False
            assert (await upload.commit()).json["digest"] == DIGEST
            relayed = await raw.open(relayed=True)
            assert (await relayed.send(0, CHUNKS[0])).code == 0


@pytest.mark.parametrize("prefix", ["same", "other"])
async def test_an_older_bucket_is_moved_while_it_is_in_use(server: EmbeddedServer, prefix: str) -> None:
    name = uuid4().hex
    own = f"t{name}"
    async with await nats.connect(server.url) as nc:
        await make_old(nc, name, own)
        async with (
            service(server.url, bucket=name, prefix=own) as raw,
            a_bucket(server, name, own if prefix == "same" else "other") as bucket,
        ):
            begun = await raw.upload(*CHUNKS[:3])
            assert await move(bucket) == []
            config = (await bucket.info()).config
            assert config["subjects"] == [f"$O.{name}.C.>", f"$O.{name}.M.>"]
            assert not config.get("subject_transform")
            assert config["metadata"]["natsblob.uploads"] == "direct"
            assert (await raw.open()).opened["chunk_subject"].startswith(f"$O.{name}.C.")
            assert (await begun.stored()).json["stored"] == [[0, 2]]
            again = (await raw.ask("put.open", {"upload": begun.id})).json
            begun.opened = again
            for index in (3, 4, 5):
                assert (await begun.send(index, CHUNKS[index])).code == 0
            assert (await begun.commit()).json["digest"] == DIGEST
            assert await move(bucket) == []


async def test_workers_of_the_first_version_keep_their_subject(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    name = uuid4().hex
    async with await nats.connect(server.url) as nc, a_bucket(server, name) as bucket:
        await make_old(nc, name, "blob")
        async with an_older_worker(nc, name) as older, an_older_worker(nc, "another bucket"):
            assert await move(bucket) == [older]
            config = (await bucket.info()).config
            assert bucket.old_ingest(config) == f"blob.chunk.{name}.*"
            assert await bucket.direct_subject("x" * 22) == f"$O.{name}.C.{'x' * 22}"
            ack = await nc.request(f"blob.chunk.{name}.stage", b"of an older client")
            assert json.loads(ack.data)["stream"] == f"OBJ_{name}"
            cli = Cli(tmp_path, NATS_URL=server.url, NATSBLOB_BUCKET=name)
            assert (await asyncio.to_thread(cli, "bucket", "adopt")).code == Exit.FAILURE
        assert await move(bucket) == []
        assert bucket.old_ingest((await bucket.info()).config) is None
        with pytest.raises(nats.errors.NoRespondersError):
            await nc.request(f"blob.chunk.{name}.stage", b"too late")
        stored = await nc.jetstream().get_last_msg(f"OBJ_{name}", f"$O.{name}.C.stage")
        assert stored.data == b"of an older client"


async def test_the_subject_of_older_workers_can_be_taken_away(server: EmbeddedServer) -> None:
    name = uuid4().hex
    async with await nats.connect(server.url) as nc, a_bucket(server, name) as bucket:
        await make_old(nc, name, "blob")
        async with an_older_worker(nc, name) as older:
            assert await move(bucket, force=True) == [older]
        assert bucket.old_ingest((await bucket.info()).config) is None


@pytest.mark.parametrize("rollups", [True, False])
async def test_a_bucket_of_another_client_is_prepared(server: EmbeddedServer, *, rollups: bool) -> None:
    name = uuid4().hex
    async with await nats.connect(server.url) as nc, a_bucket(server, name) as bucket:
        subjects = [f"$O.{name}.C.>", f"$O.{name}.M.>"]
        await nc.jetstream().add_stream(
            name=f"OBJ_{name}", subjects=subjects, allow_rollup_hdrs=rollups, allow_direct=False
        )
        assert await move(bucket) == []
        config = (await bucket.info()).config
        assert config["allow_direct"]
        assert bucket.uploads(config) == ("relayed" if rollups else "direct")


# What the SDK does.


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guarded() -> AsyncIterator[EmbeddedServer]:
    """A server where one user may use the service, and nothing else."""
    users = """
    authorization {
      users: [
        { user: all, password: all }
        { user: some, password: some, permissions {
            publish { allow: ["blob.>"] }
            subscribe { allow: ["_INBOX.some.>"] }
        } }
      ]
    }
    """
    async with temporary_server(extra=users) as server:
        yield server


async def test_a_client_that_may_not_publish_chunks_has_them_relayed(guarded: EmbeddedServer) -> None:
    everything = Settings(server=(guarded.url,), user="all", password="all", chunk_size=CHUNK)
    data = os.urandom(3_000_000)
    access = Access((guarded.url,), user="some", password="some", inbox_prefix="_INBOX.some")
    async with worker(everything), natsblob.connect(access) as blobs:
        began = time.monotonic()
        info = await blobs.put(data)
        first = time.monotonic() - began
        assert info.digest.hex == hashlib.sha256(data).hexdigest()
        assert await blobs.get(info.digest) == data
        assert first < ACK_TIMEOUT, "a refusal is heard at once"
        other = os.urandom(3_000_000)
        assert (await blobs.put(other)).created


async def test_chunks_that_nobody_answers_go_through_a_worker(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(3_000_000)

    async def nowhere(_: Bucket, stage: str, *, anew: bool = False) -> str:
        return f"nowhere.{anew}.{stage}"

    async with service(server.url) as raw, natsblob.connect(server.url, prefix=raw.prefix) as blobs:
        silent = await raw.nc.subscribe("nowhere.>")
        monkeypatch.setattr(Bucket, "direct_subject", nowhere)
        asked = await raw.listen(f"{raw.prefix}.put.open")
        put = asyncio.create_task(blobs.put(data))
        first = await asked.next_msg(timeout=5)
        began = time.monotonic()
        second = json.loads((await asked.next_msg(timeout=5)).data)
        assert time.monotonic() - began < ACK_TIMEOUT, "the chunks are published again by then"
        assert (json.loads(first.data)["relayed"], second["relayed"]) == (False, True)
        assert (await put).digest.hex == hashlib.sha256(data).hexdigest()
        assert silent.pending_msgs > 0


async def test_an_upload_in_mid_air_goes_on_when_its_subject_goes_away(server: EmbeddedServer) -> None:
    """As when a bucket is moved for an upload that began before."""
    name = uuid4().hex
    data = os.urandom(6_000_000)
    async with await nats.connect(server.url) as nc:
        await make_old(nc, name, f"t{name}")
        async with (
            service(server.url, bucket=name, prefix=f"t{name}", window_bytes=4 * CHUNK) as raw,
            natsblob.connect(server.url, prefix=raw.prefix) as blobs,
            a_bucket(server, name, raw.prefix) as bucket,
        ):
            moved = asyncio.Event()

            async def blocks() -> AsyncIterator[bytes]:
                for index, start in enumerate(range(0, len(data), 1_000_000)):
                    if index == 3:
                        await move(bucket)
                        moved.set()
                    yield data[start : start + 1_000_000]

            assert (await blobs.put(blocks())).digest.hex == hashlib.sha256(data).hexdigest()
            assert moved.is_set()


@pytest.mark.parametrize("ending", ["kill", "stop"])
async def test_a_relayed_upload_survives_its_worker(server: EmbeddedServer, ending: str) -> None:
    name = uuid4().hex
    options: dict[str, Any] = {"prefix": f"t{name}", "bucket": name, "chunk_size": CHUNK, "storage": "memory"}
    data = os.urandom(4_000_000)
    async with a_bucket(server, name) as bucket:
        await bucket.create(BucketConfig(name, storage="memory", uploads="relayed"))
    async with (
        running_worker(server.url, window_bytes=8 * CHUNK, **options) as first,
        natsblob.connect(server.url, prefix=f"t{name}") as blobs,
    ):
        taken: list[int] = []

        async def blocks() -> AsyncIterator[bytes]:
            for start in range(0, len(data), 500_000):
                taken.append(start)
                if start == 2_000_000:
                    async with asyncio.timeout(30):
                        await (first.kill() if ending == "kill" else first.stop())
                yield data[start : start + 500_000]

        async with running_worker(server.url, window_bytes=8 * CHUNK, **options):
            info = await blobs.put(blocks())  # can be read once only: so nothing begins anew
            assert info.digest.hex == hashlib.sha256(data).hexdigest()
            assert taken == sorted(set(taken))
            assert await blobs.get(info.digest) == data


async def test_a_client_that_died_is_resumed_by_its_status(server: EmbeddedServer) -> None:
    async with service(server.url, workers=2) as raw:
        upload = await raw.open(relayed=True)
        for index in (0, 1, 2):
            await upload.send(index, CHUNKS[index])
        async with await nats.connect(server.url) as nc:
            later = Raw(nc, raw.prefix, raw.bucket, raw.ids)
            stored = (await later.ask("put.status", {"upload": upload.id})).json["stored"]
            assert stored == [[0, 2]]
            opened = (await later.ask("put.open", {"upload": upload.id, "relayed": True})).json
            upload.raw, upload.opened = later, opened
            for index in (3, 4, 5):
                assert (await upload.send(index, CHUNKS[index])).code == 0
            assert (await upload.commit(marks=None)).json["digest"] == DIGEST


async def test_an_older_worker_that_knows_nothing_of_relaying(server: EmbeddedServer) -> None:
    """It ignores the fields and answers with an upload of its own: then that is used."""
    async with await nats.connect(server.url) as nc:
        name = uuid4().hex
        subject = f"$O.{name}.C"
        await nc.jetstream().add_stream(
            name=f"OBJ_{name}", subjects=[f"{subject}.>", f"$O.{name}.M.>"], allow_direct=True
        )
        stages = iter([f"lost.{name}.{'a' * 22}", f"{subject}.{'b' * 22}"])
        digest = hashlib.sha256(b"").hexdigest()
        asked: list[dict[str, Any]] = []

        async def opening(request: Msg) -> None:
            asked.append(json.loads(request.data))
            chunk_subject = next(stages)
            fields = {"upload": chunk_subject[-22:], "chunk_subject": chunk_subject}
            more = {"chunk_size": CHUNK, "window": 4, "expires": "2026-11-20T11:53:05Z"}
            answer = {**fields, **more, "commit_subject": f"t{name}.put.commit"}
            await request.respond(json.dumps(answer).encode())

        async def caps(request: Msg) -> None:
            sizes = {"chunk_size": CHUNK, "window": 4, "max_inline": CHUNK, "max_blob": 2**40, "max_batch": 9}
            of = {"version": 1, "bucket": name, "backend": "jetstream", "replicas": 1, **sizes}
            await request.respond(json.dumps({**of, "features": ["direct"]}).encode())

        async def commit(request: Msg) -> None:
            wanted = json.loads(request.data)
            info = {"size": wanted["size"], "chunks": wanted["chunks"], "chunk_size": CHUNK}
            await request.respond(json.dumps({"digest": wanted["digest"], **info, "created": True}).encode())
            asked.append(wanted)

        await nc.subscribe(f"t{name}.put.open", cb=opening)
        await nc.subscribe(f"t{name}.caps", cb=caps)
        await nc.subscribe(f"t{name}.put.commit", cb=commit)
        async with natsblob.connect(server.url, prefix=f"t{name}") as blobs:
            info = await blobs.put(DATA)
        assert info.digest.hex == DIGEST != digest
        assert [request.get("relayed") for request in asked[:2]] == [False, True]
        assert asked[-1]["upload"] == "b" * 22
    assert way.UNHEARD < 2
