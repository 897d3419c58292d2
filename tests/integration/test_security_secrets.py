"""Passwords, tokens and seeds: in no log, error, metric, connection name or argument, whatever goes wrong."""

from __future__ import annotations

import asyncio
import subprocess
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

import natsblob
from natsblob.broker.connection import connect
from natsblob.broker.embedded import LOOPBACK, EmbeddedServer, free_port
from natsblob.config import Settings
from natsblob.testing.servers import monitor, temporary_server
from tests.integration.cli_process import DEADLINE, Cli
from tests.integration.credentials import Operator, user_key

PASSWORD = "correct-horse-battery"
TOKEN = "s3cr3t-token-of-nobody"
WRONG = "wrong-" + PASSWORD
CONTENT = b"payload-that-is-nobodys-business " * 20


@contextmanager
def worker(cli: Cli, folder: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A service that is ready; what it says goes to files in the folder."""
    with (
        (folder / "worker.err").open("wb") as errors,
        subprocess.Popen(
            cli.command("serve", *arguments), env=cli.env, stdout=subprocess.PIPE, stderr=errors
        ) as process,
    ):
        try:
            assert process.stdout is not None
            (folder / "worker.out").write_bytes(process.stdout.readline())
            yield process
        finally:
            process.terminate()
            process.wait(DEADLINE)


def arguments_of(pid: int) -> bytes:
    """The command lines of a process and of all beneath it, which everybody on the machine can read."""
    found = Path(f"/proc/{pid}/cmdline").read_bytes()
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += arguments_of(int(child))
    return found


@asynccontextmanager
async def watched_server(config: str) -> AsyncIterator[tuple[EmbeddedServer, int]]:
    port = free_port()
    async with temporary_server(extra=f'{config}\nhttp: "{LOOPBACK}:{port}"\n') as server:
        yield server, port


def kinds(folder: Path) -> dict[str, tuple[str, dict[str, str], dict[str, str], list[str]]]:
    """For each way to log in: the server's configuration, right and wrong variables, and their secrets."""
    operator, other = Operator(), user_key()
    creds = operator.creds(folder / "user.creds")
    forged = operator.creds(folder / "forged.creds", key=other)
    lines = [
        line
        for path in (creds, forged)
        for line in path.read_text().splitlines()
        if line[:3] in ("eyJ", "SUA")
    ]
    return {
        "password": (
            f'authorization {{ user: u, password: "{PASSWORD}" }}',
            {"NATSBLOB_USER": "u", "NATSBLOB_PASSWORD": PASSWORD},
            {"NATSBLOB_USER": "u", "NATSBLOB_PASSWORD": WRONG},
            [PASSWORD, WRONG],
        ),
        "token": (
            f'authorization {{ token: "{TOKEN}" }}',
            {"NATSBLOB_TOKEN": TOKEN},
            {"NATSBLOB_TOKEN": TOKEN[:-1]},
            [TOKEN[:-1]],
        ),
        "address": (
            f'authorization {{ user: u, password: "{PASSWORD}" }}',
            {"NATSBLOB_SERVER": f"nats://u:{PASSWORD}@"},
            {"NATSBLOB_SERVER": f"nats://u:{WRONG}@"},
            [PASSWORD, WRONG],
        ),
        "creds": (
            operator.config(),
            {"NATSBLOB_CREDS": str(creds)},
            {"NATSBLOB_CREDS": str(forged)},
            lines,
        ),
    }


@pytest.mark.parametrize("kind", ["password", "token", "address", "creds"])
async def test_no_secret_is_told(kind: str, tmp_path: Path) -> None:
    config, right, wrong, secrets = kinds(tmp_path)[kind]
    metrics = free_port()
    source = tmp_path / "content"
    source.write_bytes(CONTENT)
    told: dict[str, bytes] = {}
    async with watched_server(config) as (server, port):
        here = f"{LOOPBACK}:{server.port}"

        def cli(variables: dict[str, str]) -> Cli:
            server_url = variables.get("NATSBLOB_SERVER", "nats://") + here
            return Cli(tmp_path, **{**variables, "NATSBLOB_SERVER": server_url}, NATSBLOB_LOG_LEVEL="debug")

        def command(name: str, of: Cli, *arguments: str | Path) -> int:
            ran = of(*arguments)
            told[name] = ran.out + ran.err.encode()
            return ran.code

        def all_of_it() -> None:
            more = ("--workers", "2", "--metrics", f"{LOOPBACK}:{metrics}")
            with worker(cli(right), tmp_path, *more) as process:
                assert command("put", cli(right), "put", source) == 0
                assert command("missing", cli(right), "get", "0" * 64) != 0
                assert command("wrong", cli(wrong), "ls") != 0
                assert command("wrong-serve", cli(wrong), "serve") != 0
                assert command("doctor", cli(right), "doctor", "--json") in (0, 1)
                assert command("config", cli(right), "config", "show") == 0
                assert command("nonsense", cli({**right, "NATSBLOB_CHUNK_SIZE": "-1"}), "ls") != 0
                told["arguments"] = arguments_of(process.pid)
                address = f"http://{LOOPBACK}:{metrics}/metrics"
                told["metrics"] = urllib.request.urlopen(address, timeout=DEADLINE).read()

        await asyncio.to_thread(all_of_it)
        told["names"] = repr(await monitor(port, "/connz")).encode()
    for name in ("worker.out", "worker.err"):
        told[name] = (tmp_path / name).read_bytes()
    assert b'"request"' in told["worker.err"]
    assert b"natsblob_requests_total" in told["metrics"]
    for name, text in told.items():
        for secret in (*secrets, CONTENT[:30].decode()):
            assert secret.encode() not in text, name


@pytest.mark.parametrize("name", ["password", "token", "storage_password", "storage_token"])
def test_no_secret_is_in_what_a_value_looks_like(name: str) -> None:
    address = (f"nats://u:{PASSWORD}@host:1",)
    given: dict[str, Any] = {name: PASSWORD}
    assert PASSWORD not in repr(Settings(server=address, **given))
    given = {name.removeprefix("storage_"): PASSWORD}
    assert PASSWORD not in repr(natsblob.Access(address, **given))


async def test_an_error_about_an_address_tells_no_password() -> None:
    with pytest.raises(natsblob.UnavailableError) as raised:
        await connect(natsblob.Access((f"nats://u:{PASSWORD}@{LOOPBACK}:{free_port()}",)), timeout=0.3)
    assert PASSWORD not in str(raised.value)


def test_no_command_takes_a_secret_as_an_argument(tmp_path: Path) -> None:
    for command in (["serve"], ["put"], ["bucket", "create"], ["doctor"]):
        text = Cli(tmp_path, COLUMNS="200")(*command, "--help").out.decode()
        assert "--creds" in text
        assert not [word for word in ("--password", "--token", "--seed") if word in text]
