"""The commands for those who run the service: serve, bucket, doctor, config, version."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

import nats
import pytest
from nats.js.object_store import ObjectStore

from natsblob.app import on_volume
from natsblob.broker.embedded import EmbeddedServer, free_port
from natsblob.config import Settings, decode, encode
from natsblob.errors import SetupError
from natsblob.testing.servers import EmbeddedCluster, temporary_server
from tests.integration.cli_process import DEADLINE, Cli, serving


@pytest.fixture
def natsblob(server: EmbeddedServer, tmp_path: Path) -> Cli:
    """The command line, on a bucket and a prefix of its own."""
    name = uuid4().hex
    return Cli(tmp_path, NATSBLOB_SERVER=server.url, NATSBLOB_PREFIX=name, NATSBLOB_BUCKET=name)


@pytest.fixture
def served(natsblob: Cli) -> Iterator[Cli]:
    """The same, with a worker."""
    with serving(natsblob):
        yield natsblob


def record(cli: Cli, *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(cli.good(*arguments, "--json").out)
    return found


# serve


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_an_embedded_service_says_when_it_is_ready_and_keeps_its_data(
    tmp_path: Path, stop: signal.Signals
) -> None:
    cli = Cli(tmp_path)
    flags = ("--embedded", "--port", "0", "--store-dir", tmp_path / "store")
    with serving(cli, *flags) as service:
        assert re.fullmatch(r"natsblob ready( [a-z]+=\S+)+", service.line)
        assert service.told.items() >= {"bucket": "blobs", "replicas": "1", "workers": "1"}.items()
        address = cli.good("put", "-", "--server", service.told["url"], stdin=b"kept").lines[0]
        service.process.send_signal(stop)
        assert service.process.wait(DEADLINE) == 0
    with serving(cli, *flags) as service:
        assert cli.good("get", address, "--server", service.told["url"]).out == b"kept"


def test_several_workers_are_ready_together(natsblob: Cli) -> None:
    with serving(natsblob, "--workers", "2") as service:
        assert service.told["workers"] == "2"
        assert natsblob.good("put", "-", stdin=b"x").lines == [sha256(b"x").hexdigest()]


def test_a_service_on_a_directory_answers_as_well(natsblob: Cli, tmp_path: Path) -> None:
    with serving(natsblob, "--disk", tmp_path / "disk", "--create-disk"):
        data = os.urandom(2_000_000)
        address = natsblob.good("put", "-", stdin=data).lines[0]
        assert natsblob.good("get", address).out == data
        assert natsblob.good("doctor").code == 0


def test_a_directory_that_is_no_volume_is_refused_and_left_as_it_is(natsblob: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("not a blob")
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.rglob("*"))
    for name in ("missing", "missing/under", "empty", "full", "file"):
        ran = natsblob("serve", "--disk", tmp_path / name)
        assert (ran.code, ran.out) == (1, b"")
        assert name in ran.err.replace("\n", "")
    assert natsblob("serve", "--disk", tmp_path / "full", "--create-disk").code == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_another_volume_is_refused(natsblob: Cli, tmp_path: Path) -> None:
    with serving(natsblob, "--disk", tmp_path / "one", "--create-disk"):
        address = natsblob.good("put", "-", stdin=b"kept").lines[0]
    volume = json.loads((tmp_path / "one" / "natsblob.json").read_text())["volume"]
    (tmp_path / "one").rename(tmp_path / "unmounted")
    with serving(natsblob, "--disk", tmp_path / "one", "--create-disk"):
        pass
    assert natsblob("serve", "--disk", tmp_path / "one", "--disk-volume", volume).code == 1
    assert natsblob("serve", "--disk-volume", volume).code == 2
    assert natsblob("serve", "--create-disk").code == 2
    with serving(natsblob, "--disk", tmp_path / "unmounted", "--disk-volume", volume, "--workers", "2"):
        assert natsblob.good("get", address).out == b"kept"


async def test_a_worker_that_is_started_anew_makes_no_volume_where_its_disk_was_lost(tmp_path: Path) -> None:
    settings = await on_volume(Settings(backend="disk", disk=tmp_path / "disk", create_disk=True))
    (tmp_path / "disk").rename(tmp_path / "unmounted")
    (tmp_path / "disk").mkdir()
    with pytest.raises(SetupError):
        await on_volume(decode(encode(settings)))
    assert list((tmp_path / "disk").iterdir()) == []


def test_a_service_that_cannot_start_says_why(natsblob: Cli) -> None:
    too_many = natsblob("serve", "--replicas", "3")
    no_server = natsblob("serve", "--server", "nats://127.0.0.1:9")
    assert (too_many.code, no_server.code) == (1, 5)
    for ran in (too_many, no_server):
        assert ran.out == b""
        assert "Traceback" not in ran.err


# bucket


def test_a_bucket_is_created_as_it_is_asked_for(natsblob: Cli) -> None:
    flags = ("--max-bytes", "1GiB", "--max-age", "30d", "--compression", "--description", "for tests")
    created = record(natsblob, "bucket", "create", *flags)
    assert created == record(natsblob, "bucket", "info")
    assert (created["max_bytes"], created["max_age"]) == (2**30, 30 * 86_400)
    assert (created["compression"], created["description"]) == (True, "for tests")
    assert (created["uploads"], created["rollups"]) == ("direct", False)


SAME = ("--max-bytes", "1GiB", "--max-age", "30d", "--compression", "--description", "first")


def test_a_bucket_that_is_there_and_the_same_is_shown(natsblob: Cli) -> None:
    first = record(natsblob, "bucket", "create", *SAME)
    assert record(natsblob, "bucket", "create", *SAME) == first
    assert record(natsblob, "bucket", "create", *SAME[:-2]) == first


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--max-bytes", "2GiB", *SAME[2:]),
        (*SAME[:2], "--max-age", "31d", *SAME[4:]),
        (*SAME[:-1], "second"),
        (*SAME, "--replicas", "3"),
        (*SAME, "--storage", "memory"),
        (*SAME, "--rollups"),
    ],
)
def test_a_bucket_that_differs_is_left_as_it_is_and_told_about(natsblob: Cli, flags: tuple[str, ...]) -> None:
    first = record(natsblob, "bucket", "create", *SAME)
    ran = natsblob("bucket", "create", *flags)
    assert (ran.code, ran.out) == (1, b"")
    assert "natsblob bucket set" in ran.err
    assert record(natsblob, "bucket", "info") == first


def test_who_writes_into_a_bucket_is_changed_there_and_back(natsblob: Cli) -> None:
    created = record(natsblob, "bucket", "create", "--rollups")
    assert (created["uploads"], created["rollups"]) == ("relayed", True)
    changed = record(natsblob, "bucket", "set", "--no-rollups", "--uploads", "direct")
    assert (changed["uploads"], changed["rollups"]) == ("direct", False)
    changed = record(natsblob, "bucket", "set", "--rollups")
    assert (changed["uploads"], changed["rollups"]) == ("relayed", True)


def test_a_bucket_that_is_not_there(natsblob: Cli) -> None:
    for command in (["info"], ["set", "--replicas", "1"], ["adopt"]):
        assert natsblob("bucket", *command).code == 3


def test_more_replicas_than_servers_are_refused(natsblob: Cli) -> None:
    natsblob.good("bucket", "create")
    assert natsblob("bucket", "set", "--replicas", "3").code == 1
    assert record(natsblob, "bucket", "info")["replicas"] == 1


@pytest.mark.cluster
def test_replicas_are_changed_and_waited_for(cluster: EmbeddedCluster, tmp_path: Path) -> None:
    cli = Cli(tmp_path, NATSBLOB_SERVER=",".join(cluster.urls), NATSBLOB_BUCKET=uuid4().hex)
    cli.good("bucket", "create")
    grown = record(cli, "bucket", "set", "--replicas", "3")
    assert grown["replicas"] == 3
    assert list(grown["followers"].values()) == ["current", "current"]
    shrunk = record(cli, "bucket", "set", "--replicas", "1")
    assert (shrunk["replicas"], shrunk["followers"]) == (1, {})


# adopt


@asynccontextmanager
async def foreign_bucket(server: EmbeddedServer, cli: Cli) -> AsyncIterator[ObjectStore]:
    """The bucket as another client makes and sees it."""
    async with await nats.connect(server.url) as nc:
        yield await nc.jetstream().create_object_store(cli.env["NATSBLOB_BUCKET"])


def adopted(cli: Cli) -> dict[str, str]:
    """What `adopt` says became of each object."""
    ran = cli("bucket", "adopt", "--json")
    return {found["name"]: found["outcome"] for found in map(json.loads, ran.lines)}


async def test_what_others_stored_is_served_by_digest_once_adopted(
    natsblob: Cli, server: EmbeddedServer
) -> None:
    photo = os.urandom(300_000)
    contents = {"photo.raw": photo, "copy.raw": photo, "notes": b"hello"}
    async with foreign_bucket(server, natsblob) as objects:
        for name, data in contents.items():
            await objects.put(name, data)
        first = await asyncio.to_thread(adopted, natsblob)
        second = await asyncio.to_thread(adopted, natsblob)
        assert (await objects.get("photo.raw")).data == contents["photo.raw"]
    assert sorted(first.values()) == ["adopted", "adopted", "present"]
    assert set(second.values()) == {"present"}
    assert first.keys() == second.keys() == contents.keys()
    with serving(natsblob):
        for data in contents.values():
            ran = await asyncio.to_thread(natsblob.good, "get", sha256(data).hexdigest())
            assert ran.out == data


async def test_an_object_that_rotted_is_not_adopted(natsblob: Cli, server: EmbeddedServer) -> None:
    async with foreign_bucket(server, natsblob) as objects, await nats.connect(server.url) as nc:
        info = await objects.put("rotten", b"as it was")
        js = nc.jetstream()
        subject = f"$O.{natsblob.env['NATSBLOB_BUCKET']}.C.{info.nuid}"
        await js.purge_stream(f"OBJ_{natsblob.env['NATSBLOB_BUCKET']}", subject=subject)
        await js.publish(subject, b"as it isn")
    ran = await asyncio.to_thread(natsblob, "bucket", "adopt", "--json")
    assert (ran.code, json.loads(ran.out)["outcome"]) == (4, "corrupt")


async def test_an_object_that_replaced_an_adopted_one_is_adopted_in_its_turn(
    natsblob: Cli, server: EmbeddedServer
) -> None:
    async with foreign_bucket(server, natsblob) as objects:
        await objects.put("page", b"first")
        await asyncio.to_thread(adopted, natsblob)
        await objects.put("page", b"second")
        assert await asyncio.to_thread(adopted, natsblob) == {"page": "adopted"}
        await objects.put("other", b"first")
        assert (await asyncio.to_thread(adopted, natsblob))["other"] == "adopted"
    with serving(natsblob):
        ran = await asyncio.to_thread(natsblob.good, "get", sha256(b"first").hexdigest())
    assert ran.out == b"first"


# doctor


def checks(cli: Cli, *flags: str) -> tuple[int, dict[str, str]]:
    """The exit code of the doctor, and the status of each check."""
    ran = cli("doctor", "--json", *flags)
    found = [json.loads(line) for line in ran.lines]
    for check in found:
        assert check["found"]
        assert check["means"]
        assert bool(check["todo"]) or check["status"] == "ok"
    return ran.code, {check["name"]: check["status"] for check in found}


def test_a_service_in_order(served: Cli) -> None:
    blobs = served.good("ls").out
    code, found = checks(served)
    fsync = found.pop("fsync")
    assert (code, set(found.values()), fsync) == (0, {"ok"}, "warn")
    assert found.keys() >= {"connection", "jetstream", "permissions", "bucket", "replicas", "replies"}
    assert served.good("ls").out == blobs


def test_what_is_amiss_is_found(natsblob: Cli, served: Cli) -> None:
    assert checks(natsblob, "--server", "nats://127.0.0.1:9") == (1, {"connection": "fail"})
    code, found = checks(natsblob, "--prefix", "nobody")
    assert (code, found["responders"]) == (1, "fail")
    code, found = checks(natsblob, "--bucket", "nowhere")
    assert (code, found["bucket"], found["responders"]) == (1, "fail", "warn")


def test_people_get_the_same_in_words(served: Cli) -> None:
    in_full = served.good("doctor").out.decode()
    in_short = served.good("doctor", "--quiet").out.decode()
    assert "round trip" in in_full
    assert "round trip" not in in_short
    assert "fsync" in in_short


@pytest.mark.parametrize(("more", "status"), [("", "ok"), ("sync_interval: 10s", "warn")])
async def test_how_servers_write_to_disk_is_seen_by_their_monitoring(
    tmp_path: Path, more: str, status: str
) -> None:
    port = free_port()
    async with temporary_server(extra=f'http: "127.0.0.1:{port}"', jetstream=more) as server:
        cli = Cli(tmp_path, NATSBLOB_SERVER=server.url)
        _, found = await asyncio.to_thread(checks, cli, "--monitor", f"http://127.0.0.1:{port}")
    assert found["fsync"] == status


ACCOUNTS = """
accounts {
  BLOB { jetstream: enabled, users: [ { user: worker, password: pw } ]
         exports: [ { service: "blob.>" RESPONSES } ] }
  TENANT { imports: [ { service: { account: BLOB, subject: "blob.>" } } ]
           users: [ { user: tenant, password: pw, permissions: { publish: ["blob.>"] } } ] }
}
"""


@pytest.mark.parametrize(("responses", "status"), [(", response_type: Stream", "ok"), ("", "fail")])
async def test_an_export_that_lets_one_reply_through_is_found(
    tmp_path: Path, responses: str, status: str
) -> None:
    async with temporary_server(extra=ACCOUNTS.replace("RESPONSES", responses)) as server:
        worker, tenant = (
            Cli(tmp_path, NATSBLOB_SERVER=server.url, NATSBLOB_USER=user, NATSBLOB_PASSWORD="pw")
            for user in ("worker", "tenant")
        )
        with serving(worker):
            code, found = await asyncio.to_thread(checks, tenant)
    assert found["replies"] == status
    assert code == (0 if status == "ok" else 1)
    # Clients may not use JetStream, and need not.
    assert found["jetstream"] == "warn"


async def test_a_worker_that_may_not_create_its_bucket_names_it(tmp_path: Path) -> None:
    permissions = 'permissions: { publish: { deny: ["$JS.API.STREAM.CREATE.>"] } }'
    denied = f"authorization {{ users: [ {{ user: a, password: pw, {permissions} }} ] }}"
    async with temporary_server(extra=denied) as server:
        cli = Cli(tmp_path, NATSBLOB_SERVER=server.url, NATSBLOB_USER="a", NATSBLOB_PASSWORD="pw")
        ran = await asyncio.to_thread(cli, "serve", "--bucket", "missing")
    assert ran.code == 6
    assert "natsblob bucket create --bucket missing" in ran.err


@pytest.mark.parametrize(
    ("denied", "status"),
    [
        ('publish: { deny: ["$JS.API.STREAM.PURGE.>"] }', "fail"),
        ('publish: { deny: ["$O.blobs.M.>"] }', "fail"),
        ('publish: { deny: ["$JS.API.STREAM.PURGE.>", "$JS.API.CONSUMER.>"] }', "fail"),
        ('publish: { deny: ["$JS.API.CONSUMER.CREATE.>"] }', "warn"),
        ('publish: { deny: ["$JS.API.CONSUMER.MSG.NEXT.>"] }', "warn"),
        ('publish: { deny: ["$JS.API.CONSUMER.DELETE.>"] }', "warn"),
        ('publish: { deny: ["$JS.API.STREAM.MSG.DELETE.>"] }', "warn"),
        ('subscribe: { deny: ["$O.blobs.C.>"] }', "warn"),
        ('subscribe: { deny: ["nothing"] }', "ok"),
    ],
)
async def test_a_permission_that_workers_lack_is_found(tmp_path: Path, denied: str, status: str) -> None:
    user = f"user: a, password: pw, permissions: {{ {denied} }}"
    async with temporary_server(extra=f"authorization {{ users: [ {{ {user} }} ] }}") as server:
        cli = Cli(tmp_path, NATSBLOB_SERVER=server.url, NATSBLOB_USER="a", NATSBLOB_PASSWORD="pw")
        _, found = await asyncio.to_thread(checks, cli)
    assert found["permissions"] == status


# config, version, help


def test_settings_are_shown_with_their_sources_and_without_secrets(tmp_path: Path) -> None:
    (tmp_path / "conf.toml").write_text('bucket = "mine"\n')
    cli = Cli(tmp_path, NATSBLOB_USER="me", NATSBLOB_PASSWORD="hush", NATS_URL="nats://else:4222")
    ran = cli.good("config", "show", "--json", "--prefix", "pre", "--config", tmp_path / "conf.toml")
    shown = {line["name"]: line for line in map(json.loads, ran.lines)}
    assert (shown["bucket"]["value"], shown["prefix"]["value"]) == ("mine", "pre")
    sources = {name: shown[name]["source"] for name in ("bucket", "prefix", "server", "user", "timeout")}
    assert sources == {
        "bucket": str(tmp_path / "conf.toml"),
        "prefix": "--prefix",
        "server": "NATS_URL",
        "user": "NATSBLOB_USER",
        "timeout": "default",
    }
    assert b"hush" not in ran.out
    in_words = cli.good("config", "show", "--quiet")
    assert b"hush" not in in_words.out
    assert {line.split()[0] for line in in_words.lines} == {"server", "user", "password"}


def test_versions(tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    number = cli.good("--version").lines
    assert cli.good("version", "--quiet").lines == number
    assert [record(cli, "version")["natsblob"]] == number


@pytest.mark.parametrize(
    "command",
    [[], ["put"], ["get"], ["serve"], ["bucket"], ["bucket", "adopt"], ["doctor"], ["config", "show"]],
)
def test_help_is_on_standard_output(tmp_path: Path, command: list[str]) -> None:
    ran = Cli(tmp_path).good(*command, "--help")
    assert ran.err == ""
    assert ran.lines[0].startswith(" ".join(["Usage: natsblob", *command]))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(tmp_path: Path, shell: str) -> None:
    assert "natsblob" in Cli(tmp_path).good("completion", shell).out.decode()
