"""What the commands read from and write to, where that is not an ordinary file in an ordinary place."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import stat
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


# Where it is got to


@pytest.fixture(scope="module")
def stored(natsblob: Cli) -> str:
    return natsblob.good("put", "-", stdin=DATA).lines[0]


RANGES = pytest.mark.parametrize("arguments", [(), ("--length", "100"), ("--offset", "199000")])


def expected(arguments: tuple[str, ...]) -> bytes:
    given = dict(zip(arguments[::2], map(int, arguments[1::2]), strict=True))
    return DATA[given.get("--offset", 0) :][: given.get("--length", len(DATA))]


@RANGES
def test_get_into_a_fifo(natsblob: Cli, stored: str, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(fifo.read_bytes()))
    reader.start()
    natsblob.good("get", stored, "-o", fifo, *arguments)
    reader.join(DEADLINE)
    assert received == [expected(arguments)]
    assert fifo.is_fifo()


@RANGES
@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_get_to_standard_output_by_its_path(
    natsblob: Cli, stored: str, tmp_path: Path, name: str, arguments: tuple[str, ...]
) -> None:
    assert natsblob.good("get", stored, "-o", name, *arguments).out == expected(arguments)
    with (tmp_path / "out").open("wb") as out:
        out.write(b"head")
        out.flush()
        command = natsblob.command("get", stored, "-o", name, *arguments)
        assert subprocess.run(command, stdout=out, env=natsblob.env, check=False).returncode == 0
    assert (tmp_path / "out").read_bytes() == b"head" + expected(arguments)


@RANGES
def test_get_through_a_link_keeps_the_link_and_the_mode(
    natsblob: Cli, stored: str, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    (tmp_path / "file").write_bytes(b"before")
    (tmp_path / "file").chmod(0o600)
    (tmp_path / "link").symlink_to("file")
    natsblob.good("get", stored, "-o", tmp_path / "link", *arguments)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == expected(arguments)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_get_into_a_directory_or_a_link_to_one(natsblob: Cli, stored: str, tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to("directory")
    for name in ("directory", "directory/", "link", "link/"):
        natsblob.good("get", stored, "-o", f"{tmp_path}/{name}")
        assert (tmp_path / "directory" / stored).read_bytes() == DATA
        (tmp_path / "directory" / stored).unlink()


@RANGES
def test_get_to_what_cannot_be_written_names_it_and_leaves_it(
    natsblob: Cli, stored: str, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_bytes(b"before")
    (tmp_path / "directory" / stored).mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    for name in ("dangling", "loop", "file/", "file/under", "new/", "no/file", "directory", "x" * 256):
        ran = natsblob("get", stored, "-o", f"{tmp_path}/{name}", *arguments)
        assert ran.code == 1, name
        assert name in ran.err.replace("\n", "")
        assert "defect" not in ran.err
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_bytes() == b"before"


def test_get_to_no_name_is_a_usage_error(natsblob: Cli, stored: str) -> None:
    assert natsblob("get", stored, "-o", "").code == 2


@RANGES
def test_get_beyond_what_may_be_written_names_the_file_and_leaves_it(
    natsblob: Cli, stored: str, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    (tmp_path / "file").write_bytes(b"before")
    command = " ".join(natsblob.command("get", stored, "-o", tmp_path / "file", *arguments))
    ran = subprocess.run(
        ["/bin/sh", "-c", f"ulimit -f 1; {command}"], env=natsblob.env, capture_output=True, check=False
    )
    if len(expected(arguments)) <= 512:
        assert ran.returncode == 0
        return
    assert ran.returncode == 1
    assert str(tmp_path / "file").encode() in ran.stderr.replace(b"\n", b"")
    assert (tmp_path / "file").read_bytes() == b"before"


def test_get_with_the_longest_name(natsblob: Cli, stored: str, tmp_path: Path) -> None:
    path = tmp_path / ("x" * 255)
    natsblob.good("get", stored, "-o", path)
    assert path.read_bytes() == DATA
