"""Environments of a command: locales, names, closed streams, interrupts, directories that are gone."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from natsblob.broker.embedded import EmbeddedServer
from tests.integration.cli_process import DEADLINE, Cli, serving

ABSENT = "ab" * 32
NAME = "r\udcffé✓"
"""A name of a file that is not UTF-8."""
PLAIN = [
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"PYTHONIOENCODING": "ascii:strict"},
    {"PYTHONIOENCODING": "latin-1"},
]


@pytest.fixture(scope="module")
def natsblob(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    home = tmp_path_factory.mktemp("home")
    cli = Cli(home, NATSBLOB_SERVER=server.url, NATSBLOB_PREFIX="env", NATSBLOB_BUCKET="env")
    with serving(cli):
        yield cli


def ended(cli: Cli, shell: str, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    """How a command ends that a shell starts: "$@" in `shell` stands for it."""
    ran = subprocess.run(
        ["/bin/sh", "-c", shell, "sh", *cli.command(*arguments)],
        env=cli.env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=DEADLINE,
        check=False,
    )
    assert b"Traceback" not in ran.stderr
    assert b"defect" not in ran.stderr
    return ran


@pytest.mark.parametrize("variables", PLAIN)
def test_a_plain_locale_shows_what_it_can(natsblob: Cli, tmp_path: Path, variables: dict[str, str]) -> None:
    cli = Cli(tmp_path, **{**natsblob.env, **variables})
    file = tmp_path / NAME
    file.write_bytes(b"x")
    assert ended(cli, '"$@"', "put", file).returncode == 0
    assert ended(cli, '"$@"', "put", "--json", file).returncode == 0
    assert ended(cli, '"$@"', "get", sha256(b"x").hexdigest(), "--json", "-o", file).returncode == 0
    assert b"round trip" in ended(cli, '"$@"', "doctor").stdout
    assert len(ended(cli, '"$@"', "completion", "fish").stdout) > 500
    assert ended(cli, '"$@"', "put", tmp_path / f"missing{NAME}").returncode == 1
    for option in ("--server", "--prefix", "--bucket", "--context"):
        assert ended(cli, '"$@"', "ls", option, NAME).returncode == 2
    assert ended(cli, '"$@"', NAME).returncode == 2


def test_settings_that_are_not_unicode_reach_worker_processes(natsblob: Cli, tmp_path: Path) -> None:
    folder = tmp_path / NAME
    folder.mkdir()
    with serving(natsblob, "--disk", folder, "--create-disk", "--workers", "2", "--prefix", "odd") as service:
        assert service.told["workers"] == "2"


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_defect(natsblob: Cli, closed: str) -> None:
    for arguments in (
        ["ls"],
        ["has", ABSENT],
        ["doctor"],
        ["config", "show"],
        ["--help"],
        ["completion", "zsh"],
    ):
        ended(natsblob, f'"$@" {closed}', *arguments)


@pytest.mark.parametrize("arguments", [["ls"], ["config", "show"], ["--help"], ["completion", "bash"]])
def test_output_that_cannot_be_written_is_a_failure(natsblob: Cli, arguments: list[str]) -> None:
    natsblob("put", "-", stdin=b"listed")
    assert ended(natsblob, 'ulimit -f 0; "$@" > "$HOME/full"', *arguments).returncode == 1
    ours, theirs = os.pipe()
    os.close(ours)
    ran = subprocess.run(
        natsblob.command(*arguments), env=natsblob.env, stdout=theirs, stderr=subprocess.PIPE, check=False
    )
    os.close(theirs)
    assert (ran.returncode, ran.stderr) == (141, b"")


def test_a_directory_that_is_gone_is_not_needed(natsblob: Cli, tmp_path: Path) -> None:
    gone = 'mkdir "$HOME/gone" && cd "$HOME/gone" && rmdir "$HOME/gone" && "$@"'
    assert ended(natsblob, gone, "has", ABSENT).returncode == 3
    assert ended(natsblob, gone, "has", ABSENT, "--creds", "relative").returncode == 2


@pytest.mark.parametrize("home", ["/nonexistent", "", "/etc/hostname"])
def test_a_home_that_is_none_is_not_needed(natsblob: Cli, home: str) -> None:
    cli = Cli(Path("/"), **{**natsblob.env, "HOME": home})
    assert ended(cli, '"$@"', "has", ABSENT).returncode == 3


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_service_that_is_still_starting_can_be_stopped(tmp_path: Path, stop: signal.Signals) -> None:
    """Here it never gets further: nobody listens at its server."""
    cli = Cli(tmp_path, NATSBLOB_SERVER="nats://127.0.0.1:9", NATSBLOB_LOG_LEVEL="debug")
    for pause in (0.0, 0.2, 1.0, 2.0):
        with subprocess.Popen(
            cli.command("serve"), env=cli.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(pause)
            process.send_signal(stop)
            try:
                # 1: Python itself had not begun; 128 and more: the service had not.
                assert process.wait(DEADLINE) in (0, 1, -stop, 128 + stop)
            finally:
                process.kill()
            assert process.stderr is not None
            assert b"natsblob/" not in process.stderr.read()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_terminal_that_is_closed_stops_a_service_and_all_beneath_it(tmp_path: Path, workers: str) -> None:
    flags = ("--embedded", "--port", "0", "--store-dir", tmp_path / "store", "--workers", workers)
    with serving(Cli(tmp_path), *flags) as service:
        children = (
            Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children").read_text().split()
        )
        assert len(children) == (1 if workers == "1" else 3)
        service.process.send_signal(signal.SIGHUP)
        assert service.process.wait(DEADLINE) == 0
    assert not any(Path(f"/proc/{child}").exists() for child in children)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_service_runs_without_a_standard_output(natsblob: Cli, workers: str) -> None:
    command = natsblob.command("serve", "--workers", workers, "--prefix", "silent")
    with subprocess.Popen(
        ["/bin/sh", "-c", 'exec "$@" >&-', "sh", *command], env=natsblob.env, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if b"worker.ready" in line:
                break
        assert natsblob("has", "--prefix", "silent", ABSENT).code == 3
        process.terminate()
        process.stderr.read()
        assert process.wait(DEADLINE) == 0


def test_modules_in_the_current_directory_are_not_taken_for_pythons(natsblob: Cli, tmp_path: Path) -> None:
    (tmp_path / "asyncio.py").write_text("raise SystemExit('mine')")
    command = natsblob.command("serve", "--workers", "2", "--prefix", "elsewhere")
    command.insert(1, "-P")
    with subprocess.Popen(
        command, env=natsblob.env, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"natsblob ready")
        process.terminate()
