"""Which blobs a command is about: those of the service under its prefix, and never of another bucket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

import pytest

from natsblob.broker.embedded import EmbeddedServer
from tests.integration.cli_process import Cli, serving

DATA = b"kept" * 100_000
DIGEST = sha256(DATA).hexdigest()


@pytest.fixture
def natsblob(server: EmbeddedServer, tmp_path: Path) -> Cli:
    return Cli(tmp_path, NATSBLOB_SERVER=server.url, NATSBLOB_PREFIX=uuid4().hex)


@pytest.fixture
def served(natsblob: Cli) -> Iterator[Cli]:
    with serving(natsblob, "--bucket", natsblob.env["NATSBLOB_PREFIX"]):
        natsblob.good("put", "-", stdin=DATA)
        yield natsblob


def test_a_bucket_that_the_service_does_not_serve_is_refused(served: Cli) -> None:
    commands = [
        ["put", "-"],
        ["get", DIGEST],
        ["has", DIGEST],
        ["stat", DIGEST],
        ["ls"],
        ["rm", DIGEST],
        ["bench"],
    ]
    for command in commands:
        ran = served(*command, "--bucket", "other", stdin=b"x")
        assert (ran.code, ran.out) == (2, b"")
        assert served.env["NATSBLOB_PREFIX"] in ran.err
    variable = Cli(Path(served.env["HOME"]), **{**served.env, "NATSBLOB_BUCKET": "other"})
    assert variable("ls").code == 2
    assert served.good("ls", "--bucket", served.env["NATSBLOB_PREFIX"], "-q").lines == [DIGEST]


def test_a_service_that_is_not_there_is_told_as_that(natsblob: Cli) -> None:
    for command in (["put", "-"], ["get", DIGEST], ["has", DIGEST], ["ls"], ["rm", DIGEST]):
        assert natsblob(*command, "--prefix", "nobody", stdin=b"x").code == 5


def test_verify_reads_the_bucket_that_the_service_serves(served: Cli) -> None:
    assert [json.loads(line)["digest"] for line in served.good("verify", "--json").lines] == [DIGEST]
    assert served("verify", "--bucket", "nowhere").code == 3


@pytest.mark.parametrize("backend", ["disk", "memory"])
def test_verify_reads_what_a_service_keeps_elsewhere(natsblob: Cli, tmp_path: Path, backend: str) -> None:
    cli = Cli(tmp_path, **{**natsblob.env, "NATSBLOB_BACKEND": backend})
    flags = ("--disk", tmp_path / "disk", "--create-disk") if backend == "disk" else ()
    with serving(cli, *flags):
        natsblob.good("put", "-", stdin=DATA)
        natsblob.good("put", "-", stdin=b"small")
        found = [json.loads(line) for line in natsblob.good("verify", "--json").lines]
        assert {one["digest"]: one["outcome"] for one in found} == dict.fromkeys(
            (DIGEST, sha256(b"small").hexdigest()), "ok"
        )
        first, second = sorted(one["digest"] for one in found)
        rest = natsblob.good("verify", "--json", "--after", first, "--rate", "1GiB").lines
        assert [json.loads(line)["digest"] for line in rest] == [second]
        assert natsblob("verify", "--replicas").code == 1
        assert natsblob("repair").code == 1


def test_verify_finds_what_rotted_on_a_disk(natsblob: Cli, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with serving(natsblob, "--disk", disk, "--create-disk"):
        natsblob.good("put", "-", stdin=DATA)
        (blob,) = (path for path in disk.rglob("*") if path.is_file() and path.stat().st_size == len(DATA))
        blob.chmod(0o600)
        with blob.open("r+b") as file:
            file.seek(1000)
            file.write(b"rot")
        assert natsblob("verify").code == 4
