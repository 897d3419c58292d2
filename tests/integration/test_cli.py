"""The commands for blobs, run as processes against a real server and a real worker."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import subprocess
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import nats
import pytest
from nats.aio.msg import Msg

from natsblob.broker.embedded import EmbeddedServer
from natsblob.digest import Digest
from natsblob.testing.servers import temporary_server
from tests.integration.cli_process import DEADLINE, Cli, serving

PREFIX = "cli"
BUCKET = "cli"
ABSENT = "ab" * 32
SIZES = {"empty": 0, "one": 1, "small": 5_000, "large": 3_000_000}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def natsblob(server: EmbeddedServer, home: Path) -> Iterator[Cli]:
    """The command line, with a worker that answers it."""
    cli = Cli(home, NATSBLOB_SERVER=server.url, NATSBLOB_PREFIX=PREFIX, NATSBLOB_BUCKET=BUCKET)
    with serving(cli):
        yield cli


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("files")
    paths = {name: directory / name for name in SIZES}
    for name, path in paths.items():
        path.write_bytes(os.urandom(SIZES[name]))
    return paths


def digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def stored(natsblob: Cli, files: dict[str, Path]) -> dict[str, str]:
    """The digests of the files, which are stored."""
    natsblob.good("put", *files.values())
    return {name: digest(path) for name, path in files.items()}


def test_put_prints_a_digest_a_line_in_order_and_nothing_else(natsblob: Cli, files: dict[str, Path]) -> None:
    ran = natsblob.good("put", *files.values())
    assert ran.lines == [digest(path) for path in files.values()]
    assert ran.err == ""


def test_put_takes_standard_input_from_a_pipe_and_from_a_file(natsblob: Cli, files: dict[str, Path]) -> None:
    data = os.urandom(2_500_000)
    assert natsblob.good("put", "-", stdin=data).lines == [sha256(data).hexdigest()]
    with files["large"].open("rb") as file:
        ran = subprocess.run(
            natsblob.command("put", "-"), stdin=file, capture_output=True, env=natsblob.env, check=True
        )
    assert ran.stdout.decode().split() == [digest(files["large"])]


def test_put_says_in_json_whether_a_blob_is_new(natsblob: Cli, tmp_path: Path) -> None:
    path = tmp_path / "new"
    path.write_bytes(os.urandom(100))
    first, again = (json.loads(natsblob.good("put", "--json", path).out) for _ in range(2))
    assert (first["digest"], first["size"], first["file"]) == (digest(path), 100, str(path))
    assert (first["created"], again["created"]) == (True, False)


def test_put_of_a_file_that_is_not_there_puts_nothing(natsblob: Cli, tmp_path: Path) -> None:
    path = tmp_path / "here"
    path.write_bytes(os.urandom(100))
    ran = natsblob("put", path, tmp_path / "gone")
    assert (ran.code, ran.out) == (1, b"")
    assert natsblob("has", digest(path)).code == 3


@pytest.mark.parametrize("name", SIZES)
def test_get_gives_back_the_bytes(
    natsblob: Cli, files: dict[str, Path], stored: dict[str, str], name: str, tmp_path: Path
) -> None:
    assert natsblob.good("get", stored[name]).out == files[name].read_bytes()
    assert natsblob.good("get", stored[name], "-o", "-").out == files[name].read_bytes()
    assert natsblob.good("get", stored[name], "-o", tmp_path / "copy").out == b""
    assert (tmp_path / "copy").read_bytes() == files[name].read_bytes()
    natsblob.good("get", stored[name], "-o", tmp_path)
    assert (tmp_path / stored[name]).read_bytes() == files[name].read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"copy", stored[name]}


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 0), (0, 10), (524_287, 2), (2_999_999, 50), (3_000_000, None), (1_000_000, None)],
)
def test_get_of_a_range(
    natsblob: Cli,
    files: dict[str, Path],
    stored: dict[str, str],
    offset: int,
    length: int | None,
    tmp_path: Path,
) -> None:
    wanted = files["large"].read_bytes()[offset:][:length]
    flags = ["--offset", str(offset), *(["--length", str(length)] if length is not None else [])]
    assert natsblob.good("get", stored["large"], *flags).out == wanted
    natsblob.good("get", stored["large"], *flags, "-o", tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == wanted


def test_get_beyond_the_end_fails(natsblob: Cli, stored: dict[str, str]) -> None:
    assert natsblob("get", stored["small"], "--offset", "5001").code == 1


def test_get_of_what_is_not_there_leaves_the_file_alone(natsblob: Cli, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("mine")
    assert natsblob("get", ABSENT, "-o", path).code == 3
    assert natsblob("get", ABSENT).code == 3
    assert path.read_text() == "mine"


def test_has_answers_for_each_and_tells_by_its_exit_code(natsblob: Cli, stored: dict[str, str]) -> None:
    both = natsblob("has", stored["one"], ABSENT)
    assert (both.code, both.lines) == (3, [f"{stored['one']} present", f"{ABSENT} missing"])
    assert natsblob("has", *stored.values()).code == 0
    quiet = natsblob("has", "--quiet", ABSENT)
    assert (quiet.code, quiet.out, quiet.err) == (3, b"", "")
    answers = [json.loads(line) for line in natsblob("has", "--json", ABSENT, stored["one"]).lines]
    assert [answer["exists"] for answer in answers] == [False, True]


def test_stat_tells_what_it_can_and_that_something_is_missing(natsblob: Cli, stored: dict[str, str]) -> None:
    ran = natsblob("stat", "--json", ABSENT, stored["large"])
    assert ran.code == 3
    info = json.loads(ran.out)
    assert (info["digest"], info["size"], info["chunks"]) == (stored["large"], 3_000_000, 6)
    assert stored["large"] in natsblob.good("stat", stored["large"]).out.decode()


def test_ls_lists_in_order_and_by_beginning(natsblob: Cli, stored: dict[str, str]) -> None:
    lines = natsblob.good("ls").lines
    sizes = {line.split()[0]: int(line.split()[1]) for line in lines}
    assert list(sizes) == sorted(sizes)
    assert {stored[name]: size for name, size in SIZES.items()}.items() <= sizes.items()
    assert natsblob.good("ls", "--quiet").lines == list(sizes)
    listed = [json.loads(line)["digest"] for line in natsblob.good("ls", "--json").lines]
    assert listed == list(sizes)
    begins = stored["large"][:6]
    assert natsblob.good("ls", "-q", begins).lines == [name for name in sizes if name.startswith(begins)]


def test_rm_removes_what_is_there_and_says_what_was_not(natsblob: Cli) -> None:
    data = os.urandom(100)
    address = natsblob.good("put", "-", stdin=data).lines[0]
    ran = natsblob("rm", ABSENT, address)
    assert (ran.code, ran.lines) == (3, [address])
    assert natsblob("has", address).code == 3


@pytest.mark.parametrize(
    "arguments",
    [
        ["put"],
        ["put", "--no-such-option"],
        ["get"],
        ["get", "xyz"],
        ["get", ABSENT.upper()],
        ["get", ABSENT, "--offset", "-1"],
        ["get", ABSENT, "--length", "ten"],
        ["has"],
        ["ls", "XY"],
        ["ls", "--timeout", "soon"],
        ["ls", "--prefix", "a b"],
        ["ls", "--context", "no-such-context"],
        ["ls", "--config", "no-such-file"],
        ["no-such-command"],
        ["bucket", "set"],
        ["bucket", "create", "--rollups", "--uploads", "direct"],
        ["doctor", "--monitor", "8222"],
        ["bucket", "set", "--replicas", "9"],
        ["serve", "--workers", "0"],
    ],
)
def test_nonsense_is_exit_code_2_and_a_line_or_two(natsblob: Cli, arguments: list[str]) -> None:
    ran = natsblob(*arguments)
    assert (ran.code, ran.out) == (2, b"")
    assert 1 <= len(ran.err.splitlines()) <= 2


def test_nobody_answers(natsblob: Cli) -> None:
    without_worker = natsblob("has", ABSENT, "--prefix", "nobody.here")
    without_server = natsblob("has", ABSENT, "--server", "nats://127.0.0.1:9")
    for ran in (without_worker, without_server):
        assert (ran.code, ran.out) == (5, b"")
        assert 1 <= len(ran.err.splitlines()) <= 2


async def test_credentials_that_are_refused(home: Path) -> None:
    async with temporary_server(extra='authorization { user: a, password: "right" }') as guarded:
        cli = Cli(home, NATSBLOB_SERVER=guarded.url, NATSBLOB_USER="a", NATSBLOB_PASSWORD="wrong")
        ran = await asyncio.to_thread(cli, "ls")
    assert (ran.code, ran.out) == (6, b"")
    assert "right" not in ran.err
    assert "wrong" not in ran.err


async def test_a_subject_that_is_not_allowed(home: Path) -> None:
    user = 'user: a, password: "a", permissions: { publish: ["other.>"], subscribe: ["_INBOX.>"] }'
    async with temporary_server(extra=f"authorization {{ users: [ {{ {user} }} ] }}") as guarded:
        cli = Cli(home, NATSBLOB_SERVER=guarded.url, NATSBLOB_USER="a", NATSBLOB_PASSWORD="a")
        ran = await asyncio.to_thread(cli, "ls")
    assert (ran.code, ran.out) == (6, b"")


async def test_a_service_that_hangs_is_a_timeout(natsblob: Cli, server: EmbeddedServer) -> None:
    async with await nats.connect(server.url) as nc:

        async def ignore(_: Msg) -> None:
            return

        await nc.subscribe("hangs.>", cb=ignore)
        await nc.flush()
        ran = await asyncio.to_thread(natsblob, "has", ABSENT, "--prefix", "hangs", "--timeout", "500ms")
    assert (ran.code, ran.out) == (7, b"")


async def store_corrupt(server: EmbeddedServer, digest: Digest) -> None:
    """An object that claims to be the blob of this digest, and is not."""
    async with await nats.connect(server.url) as nc:
        js = nc.jetstream()
        await js.publish(f"$O.{BUCKET}.C.corrupt", os.urandom(1000))
        info = {
            "name": digest.hex,
            "bucket": BUCKET,
            "nuid": "corrupt",
            "size": 1000,
            "chunks": 1,
            "digest": digest.adr20(),
        }
        name = urlsafe_b64encode(digest.hex.encode()).decode()
        await js.publish(f"$O.{BUCKET}.M.{name}", json.dumps(info).encode())


async def test_bytes_that_are_not_those_of_their_digest(
    natsblob: Cli, server: EmbeddedServer, tmp_path: Path
) -> None:
    address = Digest(os.urandom(32))
    await store_corrupt(server, address)
    to_stdout = await asyncio.to_thread(natsblob, "get", str(address))
    to_file = await asyncio.to_thread(natsblob, "get", str(address), "-o", tmp_path / "copy")
    await asyncio.to_thread(natsblob.good, "rm", str(address))
    assert (to_stdout.code, to_file.code) == (4, 4)
    assert not (tmp_path / "copy").exists()


async def test_an_interrupted_put_ends_at_once_and_leaves_nothing_visible(
    natsblob: Cli, server: EmbeddedServer
) -> None:
    async with await nats.connect(server.url) as nc:
        opened = asyncio.Event()

        async def saw(_: Msg) -> None:
            opened.set()

        await nc.subscribe(f"{PREFIX}.put.open", cb=saw)
        await nc.flush()
        before = (await asyncio.to_thread(natsblob.good, "ls", "-q")).lines
        put = await asyncio.create_subprocess_exec(
            *natsblob.command("put", "-"),
            env=natsblob.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert put.stdin is not None
        put.stdin.write(os.urandom(3_000_000))
        await asyncio.wait_for(opened.wait(), DEADLINE)
        put.send_signal(signal.SIGINT)  # while it waits for more, which never comes
        assert await asyncio.wait_for(put.wait(), DEADLINE) == 130
        assert put.stdout is not None
        assert put.stderr is not None
        assert await put.stdout.read() == b""
        assert b"Traceback" not in await put.stderr.read()
        put.stdin.close()
        after = (await asyncio.to_thread(natsblob.good, "ls", "-q")).lines
    assert before == after


@pytest.mark.parametrize("arguments", [["get", "large"], ["ls"]])
def test_a_reader_that_leaves_is_no_news(natsblob: Cli, stored: dict[str, str], arguments: list[str]) -> None:
    command = natsblob.command(*(stored.get(argument, argument) for argument in arguments))
    reader, writer = os.pipe()
    with subprocess.Popen(command, env=natsblob.env, stdout=writer, stderr=subprocess.PIPE) as process:
        os.close(writer)
        os.close(reader)
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 128 + signal.SIGPIPE


def test_a_terminal_gets_text_and_is_spared_binary(natsblob: Cli, stored: dict[str, str]) -> None:
    address = natsblob.good("put", "-", stdin="grüß dich\n".encode()).lines[0]
    assert on_terminal(natsblob, "get", address) == (0, "grüß dich\r\n".encode())
    code, shown = on_terminal(natsblob, "get", stored["large"])
    assert (code, shown) == (2, b"")
    code, shown = on_terminal(natsblob, "get", stored["small"], "-o", "-")
    assert code == 0
    assert shown


def on_terminal(cli: Cli, *arguments: str) -> tuple[int, bytes]:
    """The exit code of a command whose standard output is a terminal, and what that was sent."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        cli.command(*arguments), env=cli.env, stdin=subprocess.DEVNULL, stdout=theirs, stderr=subprocess.PIPE
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while block := os.read(ours, 65_536):
                shown += block
        except OSError:  # how a terminal says that everybody has left
            pass
        os.close(ours)
    return process.returncode, shown


@pytest.mark.parametrize(("variables", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colours_only_where_they_are_wanted(natsblob: Cli, variables: dict[str, str], coloured: bool) -> None:
    ours, theirs = pty.openpty()
    env = {**natsblob.env, "TERM": "xterm-256color", **variables}
    with subprocess.Popen(natsblob.command("get", "xyz"), env=env, stderr=theirs) as process:
        os.close(theirs)
        said = os.read(ours, 65_536)
        os.close(ours)
    assert process.returncode == 2
    assert (b"\x1b[3" in said) == coloured


def test_put_with_a_terminal_beside_prints_only_digests(natsblob: Cli, files: dict[str, Path]) -> None:
    ours, theirs = pty.openpty()
    command = natsblob.command("put", files["large"])
    with subprocess.Popen(command, env=natsblob.env, stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        assert process.stdout is not None
        assert process.stdout.read().decode().split() == [digest(files["large"])]
        os.close(ours)
    assert process.returncode == 0
