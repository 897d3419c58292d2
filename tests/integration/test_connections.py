"""Connections that end: whatever a server says or does, another one is made (ADR 0016)."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from uuid import uuid4

import pytest

import natsblob
from natsblob.app import run_worker
from natsblob.broker.client import DirectClient
from natsblob.broker.connection import Access, Connection, connect
from natsblob.broker.embedded import EmbeddedServer
from natsblob.config import Settings
from natsblob.errors import BlobError, NotAllowedError, TooLargeError, UnavailableError
from natsblob.service.worker import Worker
from natsblob.testing.servers import temporary_store_dir
from natsblob.testing.services import running_worker
from tests.integration.credentials import Authority, Nkey, Operator, user_key
from tests.integration.raw import service

DEADLINE = 20.0

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Scripted:
    """A server that greets, answers pings, and does to its first connection what a test says."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.connections = 0
        self.url = ""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        first = self.connections == 1
        try:
            writer.write(
                b'INFO {"server_id":"X","version":"2.15.1","headers":true,"max_payload":1048576}\r\n'
            )
            while line := await reader.readline():
                if line.startswith(b"PING"):
                    writer.write(b"PONG\r\n")
                elif first and line.startswith(b"PUB begin "):
                    await self._script(reader, writer)
                    first = False
        except ConnectionError:
            pass
        finally:
            writer.close()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield
        finally:
            server.close()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not holds():  # noqa: ASYNC110 - a server decides
            await asyncio.sleep(0.02)


FINAL_WORDS = [
    b"-ERR 'Authorization Violation'",
    b"-ERR 'User Authentication Expired'",
    b"-ERR 'User Authentication Revoked'",
    b"-ERR 'Account Authentication Expired'",
    b"-ERR 'Authentication Timeout'",
    b"-ERR 'Stale Connection'",
    b"-ERR 'Slow Consumer'",
    b"-ERR 'Maximum Connections Exceeded'",
    b"-ERR 'maximum account active connections exceeded'",
    b"-ERR 'Maximum Payload Violation'",
    b"-ERR 'Maximum Control Line Exceeded'",
    b"-ERR 'Unknown Protocol Operation'",
    b"-ERR 'Parser Error'",
    b"-ERR 'Secure Connection - TLS Required'",
    b"-ERR 'Server Shutdown'",
    b"-ERR 'Invalid Client Protocol'",
    b"-ERR 'Attempted To Connect To Route Port'",
    b"-ERR 'something that no version says today'",
    b"-ERR without quotes",
    b"-ERR ''",
    b"-ERR",
    b"-err 'Authorization Violation'",
    b"-ERR '" + b"x" * 100_000 + b"'",
    b"-ERR '\xff\xfe'",
    b"",
]


@pytest.mark.parametrize("words", FINAL_WORDS, ids=lambda words: words[:40].decode("ascii", "replace"))
async def test_whatever_a_server_says_at_the_end_is_no_end(words: bytes) -> None:
    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(words + b"\r\n" if words else b"")
        await writer.drain()
        writer.close()

    await reconnects_after(script)


MALFORMED = [
    b"MSG\r\n",
    b"MSG a\r\n",
    b"MSG a 1\r\n",
    b"MSG a 1 x\r\n",
    b"MSG a 1 -5\r\n",
    b"MSG a 1 1_0\r\n0123456789\r\n",
    b"MSG a 1 +5\r\n01234\r\n",
    b"MSG a -1 5\r\n01234\r\n",
    b"MSG a 1 r q 5\r\n01234\r\n",
    b"MSG a 1 %s\r\n" % (b"9" * 5000),
    b"MSG a 1 200000000\r\n",
    b"MSG a 1 9223372036854775807\r\n",
    b"HMSG a 1 12 5\r\n",
    b"HMSG a 1 5\r\n",
    b"HMSG a 1 -1 5\r\n",
    b"HMSG a 1 209715200 209715200\r\n",
    b"INFO {\r\n",
    b"INFO\r\n",
    b"INFO []\r\n",
    b"INFO 5\r\n",
    b'INFO {"max_payload":"many"}\r\n',
    b'INFO {"max_payload":-1}\r\n',
    b'INFO {"max_payload":0}\r\n',
    b'INFO {"connect_urls":5}\r\n',
    b'INFO {"connect_urls":[5]}\r\n',
    b'INFO {"connect_urls":["[::1"]}\r\n',
    b"INFO " + b"[" * 100_000 + b"\r\n",
    b"INFO \xff\r\n",
    b"\r\n",
    b"\n",
    b"\x00\x01\x02\r\n",
    b"GARBAGE\r\n",
    b"CONNECT {}\r\n",
    b"x" * 2_000_000,
]


@pytest.mark.parametrize("line", MALFORMED, ids=lambda line: line[:30].decode("ascii", "replace"))
async def test_a_line_that_makes_no_sense_is_no_end(line: bytes) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            writer.write(line)
            await writer.drain()
            await reader.read()

    await reconnects_after(script)


async def reconnects_after(script: Script) -> None:
    server = Scripted(script)
    async with server.running(), await connect(Access((server.url,))) as connection:
        await connection.publish("begin")
        await until(lambda: server.connections == 2 and connection.is_connected)
        await connection.flush()
        assert not connection.closed.is_set()
        assert connection.usable.is_set()


@pytest.mark.parametrize(
    "line",
    [
        b"PONG\r\n",
        b"+OK\r\n",
        b"+ok\r\n",
        b"PING\r\n",
        b"ping\r\n",
        b"INFO {}\r\n",
        b"-ERR 'Invalid Subject'\r\n",
    ],
)
async def test_what_is_odd_but_harmless_is_taken(line: bytes) -> None:
    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(line * 3)

    server = Scripted(script)
    async with server.running(), await connect(Access((server.url,))) as connection:
        await connection.publish("begin")
        for _ in range(3):
            await connection.flush()
        assert server.connections == 1


async def test_a_new_limit_counts_at_once() -> None:
    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"max_payload":100}\r\n')

    server = Scripted(script)
    async with server.running(), await connect(Access((server.url,))) as connection:
        await connection.publish("begin")
        await until(lambda: connection.max_payload == 100)
        with pytest.raises(TooLargeError):
            await connection.publish("a", bytes(60), headers={"Blob-Chunk": "x" * 50})
        await connection.flush()
        assert server.connections == 1


async def test_a_flush_without_a_connection_proves_nothing() -> None:
    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = Scripted(script)
    async with server.running(), await connect(Access((server.url,))) as connection:
        await connection.publish("begin")
        await connection.interruption.wait()
        with pytest.raises(UnavailableError):
            await connection.flush()


async def test_a_subject_that_is_too_long_is_refused_here_and_not_by_the_server(
    server: EmbeddedServer,
) -> None:
    async with await connect(Access((server.url,))) as connection:
        before = connection.epoch
        for publish in (
            connection.publish("a" * 5000),
            connection.publish("a", reply="a" * 5000),
            connection.publish("a" * 2100, reply="b" * 2100, headers={"A": "b"}),
        ):
            with pytest.raises(BlobError):
                await publish
        await connection.flush()
        assert connection.epoch == before


@pytest.mark.parametrize("headers", [None, {"Blob-Chunk": "0"}, {"Blob-Chunk": "0", "Status": "204 EOB"}])
async def test_head_and_payload_count_together(
    server: EmbeddedServer, headers: dict[str, str] | None
) -> None:
    async with await connect(Access((server.url,))) as connection:
        before = connection.epoch
        most = connection.max_payload
        while not await fits(connection, most, headers):
            most -= 1
        assert most >= connection.max_payload - 100
        await connection.flush()
        assert connection.epoch == before


async def fits(connection: Connection, size: int, headers: dict[str, str] | None) -> bool:
    try:
        await connection.publish("nobody.listens", bytes(size), headers=headers)
    except TooLargeError:
        return False
    return True


# --- real servers, reconfigured while they run ------------------------------------------------------------


class Reloaded:
    """A server whose configuration is changed while it runs."""

    def __init__(self, server: EmbeddedServer, folder: Path) -> None:
        self.server = server
        self._included = folder / "changing.conf"

    @property
    def url(self) -> str:
        return self.server.url

    def reload(self, config: str) -> None:
        self._included.write_text(config)
        self.server._child.send_signal(signal.SIGHUP)


@asynccontextmanager
async def reloadable(config: str) -> AsyncIterator[Reloaded]:
    async with AsyncExitStack() as stack:
        directory = stack.enter_context(temporary_store_dir())
        (directory / "changing.conf").write_text(config)
        server = EmbeddedServer(directory, extra='include "changing.conf"\n')
        yield Reloaded(await stack.enter_async_context(server), directory)


def accounts(storage: str = "right", storage_permissions: str = "", service_permissions: str = "") -> str:
    return (
        "accounts { A { jetstream: enabled, users: [\n"
        f"  {{user: service, password: service {service_permissions}}},\n"
        f"  {{user: storage, password: {storage} {storage_permissions}}},\n"
        "  {user: client, password: client}\n"
        "] } }\n"
    )


WORKER = {
    "user": "service",
    "password": "service",
    "storage_user": "storage",
    "storage_password": "right",
}


async def test_a_worker_without_its_storage_leaves_the_queue_group_and_comes_back() -> None:
    async with reloadable(accounts()) as server:
        access = Access((server.url,), user="client", password="client")
        async with (
            running_worker(server.url, **WORKER) as worker,
            natsblob.connect(access, timeout=30) as client,
        ):
            info = await client.put(b"content")
            server.reload(accounts("wrong"))
            async with await connect(access) as connection:
                await until_refused(connection)
                with pytest.raises(natsblob.NoRespondersError):
                    await connection.request("blob.stat", str(info.digest).encode(), timeout=5)
            server.reload(accounts())
            assert await client.get(info.digest) == b"content"
            assert worker.running


async def until_refused(connection: Connection) -> None:
    """Wait until nobody takes requests."""
    async with asyncio.timeout(DEADLINE):
        while True:
            try:
                await connection.request("blob.caps", timeout=5)
            except natsblob.NoRespondersError:
                return
            await asyncio.sleep(0.1)


async def test_a_worker_whose_requests_were_forbidden_for_a_while_hears_them_again() -> None:
    forbidden = ', permissions: {subscribe: {deny: "blob.>"}}'
    async with reloadable(accounts()) as server:
        access = Access((server.url,), user="client", password="client")
        async with running_worker(server.url, **WORKER), natsblob.connect(access, timeout=30) as client:
            info = await client.put(b"content")
            server.reload(accounts(service_permissions=forbidden))
            async with await connect(access) as connection:
                await until_refused(connection)
            server.reload(accounts())
            assert await client.get(info.digest) == b"content"


async def test_a_storage_that_may_not_hear_answers_for_a_while_is_no_storage_for_as_long() -> None:
    deaf = ', permissions: {subscribe: {deny: "_INBOX.>"}}'
    async with reloadable(accounts()) as server:
        access = Access((server.url,), user="client", password="client")
        async with running_worker(server.url, **WORKER), natsblob.connect(access, timeout=30) as client:
            info = await client.put(b"content")
            server.reload(accounts(storage_permissions=deaf))
            async with await connect(access) as connection:
                await until_refused(connection)
            server.reload(accounts())
            assert await client.get(info.digest) == b"content"


async def test_a_limit_that_is_lowered_while_a_client_runs_costs_it_one_interruption() -> None:
    async with reloadable("max_payload: 1MB\n") as server, await connect(Access((server.url,))) as connection:
        server.reload("max_payload: 64KB\n")
        await until_lowered(connection, 65536)
        assert not connection.closed.is_set()
        with pytest.raises(TooLargeError):
            await connection.publish("a", bytes(70_000))
        before = connection.epoch
        await connection.flush()
        assert connection.epoch == before


async def until_lowered(connection: Connection, limit: int) -> None:
    async with asyncio.timeout(DEADLINE):
        while connection.max_payload != limit:
            with suppress(BlobError):
                await connection.publish("a", bytes(70_000))
                await connection.flush()
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("spoiled", ["expired", "missing", "garbage", "cut", "empty"])
async def test_credentials_are_read_again_however_long_they_were_unusable(
    tmp_path: Path, spoiled: str
) -> None:
    operator = Operator()
    path = operator.creds(tmp_path / "user.creds", seconds=3)
    async with AsyncExitStack() as stack:
        directory = stack.enter_context(temporary_store_dir())
        server = await stack.enter_async_context(EmbeddedServer(directory, extra=operator.config()))
        connection = await stack.enter_async_context(await connect(Access((server.url,), creds=str(path))))
        good = path.read_bytes()
        match spoiled:
            case "missing":
                path.unlink()
            case "garbage":
                path.write_bytes(b"\xff" * 100)
            case "cut":
                path.write_bytes(good[: len(good) // 2])
            case "empty":
                path.write_bytes(b"")
        async with asyncio.timeout(DEADLINE):
            await connection.interruption.wait()
        await asyncio.sleep(0.6)
        operator.creds(path)
        async with asyncio.timeout(DEADLINE):
            await connection.usable.wait()
        await connection.flush()


async def test_a_client_that_is_refused_says_so() -> None:
    async with reloadable(accounts()) as server:
        access = Access((server.url,), user="client", password="client")
        async with await connect(access) as connection:
            server.reload(accounts().replace("password: client", "password: other"))
            await connection.interruption.wait()
            with pytest.raises(UnavailableError) as refusal:
                await connection.request("blob.caps", timeout=2)
            assert connection.trouble in refusal.value.message


async def test_more_subscriptions_than_an_account_may_have_are_refused() -> None:
    limited = "accounts { A { users: [{user: a, password: b}], limits: {max_subscriptions: 4} } }\n"
    async with reloadable(limited) as server, AsyncExitStack() as stack:
        connection = await stack.enter_async_context(
            await connect(Access((server.url,), user="a", password="b"))
        )

        async def subscribe() -> None:
            for number in range(8):
                await stack.enter_async_context(connection.subscribe(f"a.{number}", lambda _: None))

        with pytest.raises((UnavailableError, NotAllowedError)):
            await subscribe()
        await connection.flush()


async def test_two_may_subscribe_to_one_subject_at_a_time(server: EmbeddedServer) -> None:
    async with await connect(Access((server.url,))) as connection, AsyncExitStack() as stack:
        both = [connection.subscribe("twice", lambda _: None) for _ in range(2)]
        await asyncio.gather(*(stack.enter_async_context(one) for one in both))


async def test_an_nkey_that_was_replaced_is_read_again(tmp_path: Path) -> None:
    old, new = user_key(), user_key()
    seed = old.file(tmp_path / "user.nk")

    def allowing(key: Nkey) -> str:
        return f"authorization {{ users: [ {{ nkey: {key.public} }} ] }}\n"

    async with (
        reloadable(allowing(old)) as server,
        await connect(Access((server.url,), nkey=str(seed))) as connection,
    ):
        server.reload(allowing(new))
        async with asyncio.timeout(DEADLINE):
            await connection.interruption.wait()
            new.file(seed)
            await connection.usable.wait()
        await connection.flush()


async def test_a_certificate_that_was_replaced_is_read_again(tmp_path: Path) -> None:
    old, new = Authority(tmp_path, "old"), Authority(tmp_path, "new")
    server_pair, pair = old.signed("server"), old.signed("client")

    def trusting(authority: Authority) -> str:
        files = f'cert_file: "{server_pair.cert}", key_file: "{server_pair.key}"'
        return f'tls {{ {files}, ca_file: "{authority.file}", verify: true }}\n'

    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(reloadable(trusting(old)))
        access = Access((server.url,), tls_ca=str(old.file), tls_cert=str(pair.cert), tls_key=str(pair.key))
        connection = await stack.enter_async_context(await connect(access))
        server.reload(trusting(new))
        await server.server.kill()
        await server.server.start()
        async with asyncio.timeout(DEADLINE):
            await connection.interruption.wait()
            while not connection.trouble:  # noqa: ASYNC110 - the server refuses the certificate
                await asyncio.sleep(0.05)
            new.signed("client")
            await connection.usable.wait()
        await connection.flush()


async def test_many_uploads_that_are_read_back_hold_up_nobody(server: EmbeddedServer) -> None:
    async with service(server.url, commit_check="readback", chunk_size=4096, request_timeout=5.0) as raw:
        large = await raw.upload(*(b"%4096d" % number for number in range(200)))
        small = [await raw.upload(b"%d" % number) for number in range(3)]
        asking = [raw.ask("put.status", {"upload": large.id}) for _ in range(60)]
        answers = asyncio.gather(*asking, large.commit())
        for upload in small:
            async with asyncio.timeout(DEADLINE):
                assert (await upload.commit()).code == 0
        for answer in await answers:
            assert answer.code in (0, 408, 429)


async def test_a_worker_ends_if_a_defect_keeps_it_from_taking_requests_again(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def defect(*_: object) -> None:
        raise ValueError

    monkeypatch.setattr(Worker, "_while_there", defect)
    name = uuid4().hex
    settings = Settings(server=(server.url,), storage="memory", prefix=f"t{name}", bucket=name)
    async with asyncio.timeout(DEADLINE):
        with pytest.raises(UnavailableError):
            await run_worker(settings, asyncio.Event(), ready=lambda _: None)


async def test_a_connection_ends_if_a_defect_keeps_it_from_subscribing_again(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def defect(*_: object) -> None:
        raise ValueError

    monkeypatch.setattr(DirectClient, "subscribe_again", defect)
    async with (
        await connect(Access((server.url,))) as connection,
        connection.subscribe("heard", lambda _: None),
    ):
        connection.refused(NotAllowedError('Permissions Violation for Subscription to "heard"'))
        async with asyncio.timeout(DEADLINE):
            await connection.closed.wait()
