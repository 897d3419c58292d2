"""TLS, certificates of clients, NKEYs and JWTs, with workers, commands and the SDK as users set them up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import natsblob
from natsblob.broker.embedded import EmbeddedServer
from natsblob.cli.exits import Exit
from natsblob.testing.payloads import pattern
from natsblob.testing.servers import temporary_server
from tests.integration.cli_process import Cli, serving
from tests.integration.credentials import Authority, Operator, user_key

LARGE = pattern(3 * 1024 * 1024 + 5)
PATIENCE = 30.0


class Setup:
    """Files with certificates, keys and seeds, and the configuration of a server that wants them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority(folder)
        self.server_pair = self.authority.signed("server")
        self.client_pair = self.authority.signed("client")
        self.user = user_key()
        self.operator = Operator()
        self.seed = self.user.file(folder / "user.nk")
        self.creds = self.operator.creds(folder / "user.creds")

    def tls(self, more: str = "", cert: str = "server") -> str:
        cert_file, key_file = self.folder / f"{cert}.pem", self.folder / f"{cert}.key"
        files = f'cert_file: "{cert_file}", key_file: "{key_file}", ca_file: "{self.authority.file}"'
        return f"tls {{ {files}, {more} }}\n"

    @property
    def nkey(self) -> str:
        return f"authorization {{ users: [ {{ nkey: {self.user.public} }} ] }}\n"

    def kinds(self) -> dict[str, tuple[str, dict[str, str]]]:
        """Configurations of a server, and the variables with which a user gets in."""
        ca = {"NATSBLOB_TLS_CA": str(self.authority.file)}
        pair = {
            "NATSBLOB_TLS_CERT": str(self.client_pair.cert),
            "NATSBLOB_TLS_KEY": str(self.client_pair.key),
        }
        return {
            "tls": (self.tls(), ca),
            "mtls": (self.tls("verify: true"), {**ca, **pair}),
            "tls-first": (self.tls("handshake_first: auto"), {**ca, "NATSBLOB_TLS_FIRST": "true"}),
            "nkey": (self.nkey, {"NATSBLOB_NKEY": str(self.seed)}),
            "nkey-over-tls": (self.nkey + self.tls(), {**ca, "NATSBLOB_NKEY": str(self.seed)}),
            "jwt": (self.operator.config(), {"NATSBLOB_CREDS": str(self.creds)}),
            "jwt-over-mtls": (
                self.operator.config() + self.tls("verify: true"),
                {**ca, **pair, "NATSBLOB_CREDS": str(self.creds)},
            ),
        }


KINDS = ["tls", "mtls", "tls-first", "nkey-over-tls", "jwt", "jwt-over-mtls"]


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return Setup(tmp_path_factory.mktemp("secrets"))


def address(server: EmbeddedServer, config: str) -> str:
    return server.url.replace("nats://", "tls://") if "tls {" in config else server.url


@asynccontextmanager
async def running(config: str, tmp_path: Path) -> AsyncIterator[tuple[EmbeddedServer, Cli]]:
    """A server with this configuration, and commands that know where it is."""
    async with temporary_server(extra=config) as server:
        yield server, Cli(tmp_path, NATSBLOB_SERVER=address(server, config))


def access(variables: dict[str, str], url: str) -> natsblob.Access:
    """The same as the variables say, for the SDK."""
    names = {name.removeprefix("NATSBLOB_").lower(): value for name, value in variables.items()}
    first = names.pop("tls_first", "") == "true"
    return natsblob.Access((url,), tls_first=first, **names)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_blob_goes_in_and_out_also_after_the_server_was_restarted(
    setup: Setup, kind: str, tmp_path: Path
) -> None:
    config, variables = setup.kinds()[kind]
    source = tmp_path / "large"
    source.write_bytes(LARGE)
    async with running(config, tmp_path) as (server, cli):
        cli.env.update(variables)
        with serving(cli) as worker:
            assert worker.told["url"] == address(server, config)
            put = await asyncio.to_thread(cli.good, "put", source)
            digest = put.lines[0].split()[0]
            async with natsblob.connect(
                access(variables, address(server, config)), timeout=PATIENCE
            ) as blobs:
                assert await blobs.get(digest) == LARGE
                await server.restart()
                assert (await blobs.put(b"afterwards")).created
                assert await blobs.get(digest) == LARGE
            assert worker.process.poll() is None


@pytest.fixture(scope="module")
def wrong(setup: Setup) -> dict[str, list[dict[str, str]]]:
    """What does not let anybody in, for each kind of server: files in place of the right ones, or none."""
    Authority(setup.folder, "stranger").signed("strange")
    setup.authority.signed("expired", days=(-2, -1))
    user_key().file(setup.folder / "other.nk")
    setup.operator.creds(setup.folder / "expired.creds", seconds=-60)
    setup.operator.creds(setup.folder / "forged.creds", key=user_key())
    Operator().creds(setup.folder / "foreign.creds")
    pairs = [("", ""), ("strange.pem", "strange.key"), ("expired.pem", "expired.key")]
    return {
        "tls": [{"NATSBLOB_TLS_CA": name} for name in ("stranger.pem", "")],
        "mtls": [{"NATSBLOB_TLS_CERT": cert, "NATSBLOB_TLS_KEY": key} for cert, key in pairs],
        "nkey": [{"NATSBLOB_NKEY": name} for name in ("other.nk", "")],
        "jwt": [{"NATSBLOB_CREDS": f"{name}.creds"} for name in ("expired", "forged", "foreign")],
    }


@pytest.mark.parametrize("kind", ["tls", "mtls", "nkey", "jwt"])
async def test_who_is_not_let_in(
    setup: Setup, wrong: dict[str, list[dict[str, str]]], kind: str, tmp_path: Path
) -> None:
    """With TLS 1.3, why the server does not like a certificate may get lost: it says so and hangs up."""
    errors: tuple[type[natsblob.BlobError], ...] = (natsblob.NotAllowedError,)
    codes = [Exit.NOT_ALLOWED]
    if kind == "mtls":
        errors, codes = (*errors, natsblob.UnavailableError), [*codes, Exit.NOBODY]
    config, variables = setup.kinds()[kind]
    async with running(config, tmp_path) as (server, cli):
        for spoiled in wrong[kind]:
            files = {name: value and str(setup.folder / value) for name, value in spoiled.items()}
            given = {**variables, **files}
            with pytest.raises(errors):
                async with natsblob.connect(
                    access({name: value for name, value in given.items() if value}, address(server, config))
                ):
                    pass
            cli.env.update(given)
        for command in ("serve", "ls"):
            ran = await asyncio.to_thread(cli, command)
            assert ran.code in codes, ran.err
            assert ran.out == b""


@pytest.mark.parametrize("cert", ["late", "elsewhere"])
async def test_a_server_that_cannot_show_who_it_is(setup: Setup, cert: str, tmp_path: Path) -> None:
    setup.authority.signed("late", days=(-2, -1))
    setup.authority.signed("elsewhere", address="127.0.0.2")
    async with running(setup.tls(cert=cert), tmp_path) as (_, cli):
        cli.env.update({"NATSBLOB_TLS_CA": str(setup.authority.file)})
        assert (await asyncio.to_thread(cli, "serve")).code == Exit.NOT_ALLOWED


@pytest.mark.parametrize("variables", [{}, {"NATSBLOB_TLS_CA": "ca.pem"}])
async def test_a_password_is_never_sent_in_the_clear_where_tls_was_asked_for(
    setup: Setup, variables: dict[str, str], tmp_path: Path
) -> None:
    """A server, or somebody between, that says nothing of TLS: other clients of NATS would just go on."""
    received = bytearray()

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b'INFO {"server_id":"x","version":"2.15.1","max_payload":1048576,"auth_required":true}\r\n'
        )
        while data := await reader.read(1000):
            received.extend(data)
        writer.close()

    listening = await asyncio.start_server(greet, "127.0.0.1")
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        scheme = "nats" if variables else "tls"
        cli = Cli(
            tmp_path,
            NATSBLOB_SERVER=f"{scheme}://127.0.0.1:{port}",
            NATSBLOB_USER="u",
            NATSBLOB_PASSWORD="pw",
        )
        cli.env.update({name: str(setup.folder / value) for name, value in variables.items()})
        ran = await asyncio.to_thread(cli, "ls")
    assert received == b""
    assert ran.code == Exit.NOT_ALLOWED


FILES = {"nkey": "NATSBLOB_NKEY", "creds": "NATSBLOB_CREDS", "tls_ca": "NATSBLOB_TLS_CA"}
WRONG: dict[str, Callable[[bytes], bytes] | None] = {
    # what is in the file instead of a seed
    "missing": None,
    "empty": lambda _: b"",
    "text": lambda _: b"nonsense\n",
    "binary": lambda _: b"\xff\xfe",
    "cut": lambda seed: seed[:-1],
    "twice": lambda seed: seed + seed,
    "mistyped": lambda seed: seed.replace(seed[20:21], b"1"),
}


@pytest.mark.parametrize("content", WRONG)
@pytest.mark.parametrize("kind", FILES)
async def test_a_file_that_is_missing_or_something_else(
    server: EmbeddedServer, tmp_path: Path, kind: str, content: str
) -> None:
    path, seed = tmp_path / "secret", user_key().seed
    write = WRONG[content]
    if write is not None:
        path.write_bytes(write(seed))
    with pytest.raises(natsblob.SetupError) as raised:
        async with natsblob.connect(natsblob.Access((server.url,), **{kind: str(path)})):  # type: ignore[arg-type]
            pass
    assert str(path) in raised.value.message
    assert seed[:20].decode() not in raised.value.message


@pytest.mark.parametrize("variable", list(FILES.values()))
async def test_a_command_with_a_file_that_is_something_else(
    server: EmbeddedServer, tmp_path: Path, variable: str
) -> None:
    ran = await asyncio.to_thread(Cli(tmp_path, NATSBLOB_SERVER=server.url, **{variable: __file__}), "ls")
    assert (ran.code, ran.out) == (Exit.FAILURE, b"")
    assert __file__ in ran.err


def test_a_key_that_asks_for_a_password_is_refused_and_nobody_is_asked(setup: Setup) -> None:
    pair = setup.authority.signed("locked", password=b"secret")
    with pytest.raises(natsblob.SetupError):
        natsblob.Access(tls_cert=str(pair.cert), tls_key=str(pair.key)).options()
