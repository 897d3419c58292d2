"""What the commands read from and write to, where that is not an ordinary file in an ordinary place."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from natsblob.broker.embedded import EmbeddedServer
from natsblob.testing.payloads import cut, pattern
from tests.integration.cli_process import DEADLINE, Cli, serving

DATA = pattern(200_000)
DIGEST = hashlib.sha256(DATA).hexdigest()
EMPTY = hashlib.sha256(b"").hexdigest()


@pytest.fixture(scope="module")
def natsblob(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    cli = Cli(tmp_path_factory.mktemp("home"), NATSBLOB_SERVER=server.url, NATSBLOB_PREFIX="files")
    with serving(cli):
        yield cli


def put_from(natsblob: Cli, stdin: int, *arguments: str) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    command = natsblob.command("put", *(arguments or ("-",)))
    return subprocess.Popen(command, stdin=stdin, stdout=pipe, stderr=pipe, env=natsblob.env)


# What is put


@pytest.mark.parametrize("blocking", [True, False])
def test_standard_input_is_read_to_its_end_whether_it_blocks_or_not(natsblob: Cli, blocking: bool) -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, blocking)
    putting = put_from(natsblob, reading)
    os.close(reading)
    for piece in cut(DATA, 30_000):
        os.write(writing, piece)
    os.close(writing)
    out, err = putting.communicate(timeout=DEADLINE)
    assert (putting.returncode, out.decode().split()) == (0, [DIGEST]), err


def test_a_socket_as_standard_input_is_read_to_its_end(natsblob: Cli) -> None:
    ours, theirs = socket.socketpair()
    theirs.settimeout(0)
    putting = put_from(natsblob, theirs.fileno())
    theirs.close()
    ours.sendall(DATA)
    ours.close()
    out, err = putting.communicate(timeout=DEADLINE)
    assert out.decode().split() == [DIGEST], err


@pytest.mark.parametrize("name", ["fifo", "/dev/stdin"])
def test_a_fifo_is_read_to_its_end(natsblob: Cli, tmp_path: Path, name: str) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    path = fifo if name == "fifo" else Path(name)
    if name == "fifo":
        putting = put_from(natsblob, subprocess.DEVNULL, str(path))
        threading.Thread(target=fifo.write_bytes, args=(DATA,)).start()
        out, err = putting.communicate(timeout=DEADLINE)
    else:
        putting = put_from(natsblob, subprocess.PIPE, str(path))
        out, err = putting.communicate(DATA, timeout=DEADLINE)
    assert out.decode().split() == [DIGEST], err


def test_empty_input_is_the_empty_blob(natsblob: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    assert natsblob.good("put", "-").lines == [EMPTY]
    assert natsblob.good("put", tmp_path / "empty", "/dev/null").lines == [EMPTY] * 2


def test_standard_input_that_is_closed_or_write_only_is_an_error(natsblob: Cli, tmp_path: Path) -> None:
    quoted = " ".join(natsblob.command("put", "-"))
    for redirection in ("<&-", f"0>{tmp_path / 'out'}"):
        ran = subprocess.run(
            ["/bin/sh", "-c", f"{quoted} {redirection}"], env=natsblob.env, capture_output=True, check=False
        )
        assert (ran.returncode, ran.stdout) == (1, b"")
        assert b"standard input" in ran.stderr
        assert b"defect" not in ran.stderr


def test_sparse_files_and_files_without_a_size_are_read_to_their_end(natsblob: Cli, tmp_path: Path) -> None:
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        file.truncate(3_000_000)
        file.seek(1_500_000)
        file.write(b"x")
    digests = natsblob.good("put", sparse, "/proc/version").lines
    assert digests[0] == hashlib.sha256(sparse.read_bytes()).hexdigest()
    assert digests[1] == hashlib.sha256(Path("/proc/version").read_bytes()).hexdigest()


@pytest.mark.parametrize("arguments", [("",), ("-", "-")])
def test_no_name_and_standard_input_twice_are_usage_errors(natsblob: Cli, arguments: tuple[str]) -> None:
    ran = natsblob("put", *arguments, stdin=DATA)
    assert (ran.code, ran.out) == (2, b"")


def test_what_cannot_be_read_is_named_and_nothing_is_put(natsblob: Cli, tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(b"good")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "directory").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        for name in ("missing", "dangling", "loop", "directory", "socket", "x" * 300, "good/under"):
            ran = natsblob("put", tmp_path / "good", tmp_path / name)
            assert (ran.code, ran.out) == (1, b""), name
            assert name in ran.err.replace("\n", "")
            assert "defect" not in ran.err


def test_names_that_are_not_utf8_are_put_and_got(natsblob: Cli, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"n\xffme")
    path.write_bytes(DATA)
    (line,) = natsblob.good("put", "--json", path).lines
    assert json.loads(line)["digest"] == DIGEST
    copy = tmp_path / os.fsdecode(b"c\xffpy")
    natsblob.good("get", DIGEST, "--json", "-o", copy)
    assert copy.read_bytes() == DATA
