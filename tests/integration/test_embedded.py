"""The embedded server: it starts, refuses clearly, keeps its data, and leaves nothing running."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import nats
import pytest
from nats.js.api import StorageType
from nats.js.errors import ServerError

from natsblob.broker.embedded import (
    EmbeddedServer,
    PortTakenError,
    default_store_dir,
    find_server,
    guard,
)
from natsblob.errors import SetupError, UnavailableError
from natsblob.testing.servers import EmbeddedCluster, temporary_server

PARENT = """
import asyncio, sys
from pathlib import Path
from natsblob.broker.embedded import EmbeddedServer

async def main():
    async with EmbeddedServer(Path(sys.argv[1])) as server:
        print(server.pid, server.url, flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


async def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    with anyio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - another process decides
            await anyio.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and waits to be reaped does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def fake_server(directory: Path, version: str) -> Path:
    directory.mkdir(parents=True)
    script = directory / "nats-server"
    script.write_text(f"#!/bin/sh\necho nats-server: v{version}\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return script


async def store_one(url: str) -> None:
    async with await nats.connect(url) as client:
        js = client.jetstream()
        await js.add_stream(name="KEEP", subjects=["keep"], storage=StorageType.FILE)
        await js.publish("keep", b"kept")


async def stored(url: str) -> int:
    async with await nats.connect(url) as client:
        return (await client.jetstream().stream_info("KEEP")).state.messages


class TestFindServer:
    def test_the_package_serves_where_nothing_is_on_path(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "/nonexistent")
        assert os.access(find_server(), os.X_OK)

    def test_one_on_path_comes_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        script = fake_server(tmp_path / "new", "2.11.0")
        monkeypatch.setenv("PATH", f"{script.parent}:/bin")
        assert find_server() == script

    @pytest.mark.parametrize("version", ["2.9.25", "2.10.29", "1.4.1"])
    def test_an_old_one_on_path_is_passed_over(
        self, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        script = fake_server(tmp_path / "old", version)
        monkeypatch.setenv("PATH", f"{script.parent}:/bin")
        assert find_server() != script

    @pytest.mark.parametrize(
        "script",
        [
            "printf '\\377\\376'",
            "while :; do echo nats-server; done",
            "sleep 1000 & sleep 1000",
            "exit 1",
            "kill -9 $$",
            "echo v99",
        ],
    )
    def test_one_that_says_no_version_is_passed_over(
        self, script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        other = tmp_path / "nats-server"
        other.write_text(f"#!/bin/sh\n{script}\n")
        other.chmod(0o755)
        monkeypatch.setattr("natsblob.broker.embedded._VERSION_DEADLINE", 2.0)
        monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
        assert find_server() != other

    @pytest.mark.parametrize("content", [b"", b"#!/nonexistent\n", b"\x7fELF\xff"])
    def test_one_that_cannot_run_is_passed_over(
        self, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        other = tmp_path / "nats-server"
        other.write_bytes(content)
        other.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
        assert find_server() != other

    def test_none_at_all_is_a_setup_error(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        script = fake_server(tmp_path / "old", "2.9.25")
        monkeypatch.setenv("PATH", f"{script.parent}:/bin")
        monkeypatch.setattr("natsblob.broker.embedded._packaged_server", lambda: None)
        with pytest.raises(SetupError):
            find_server()


class TestStoreDir:
    def test_follows_xdg(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
        assert default_store_dir() == tmp_path / "natsblob"

    @pytest.mark.parametrize("value", ["", "relative/path"])
    def test_ignores_what_is_not_absolute(
        self, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_DATA_HOME", value)
        monkeypatch.setenv("HOME", str(tmp_path))
        assert default_store_dir() == tmp_path / ".local/share/natsblob"

    async def test_one_with_odd_characters_works(self, tmp_path: Path) -> None:
        async with EmbeddedServer(tmp_path / 'a "b" $c é#{d}') as server:
            await store_one(server.url)
        assert any((tmp_path / 'a "b" $c é#{d}' / "jetstream").rglob("*.blk"))

    async def test_one_whose_name_is_no_text_works(self, tmp_path: Path) -> None:
        async with EmbeddedServer(tmp_path / "\udcff\udcfe") as server:
            await store_one(server.url)

    @pytest.mark.parametrize("kind", ["file", "beneath a file", "of another version"])
    async def test_one_that_cannot_be_used_is_named(self, tmp_path: Path, kind: str) -> None:
        store = tmp_path / "store"
        match kind:
            case "file":
                store.touch()
            case "beneath a file":
                store.touch()
                store = store / "more"
            case "of another version":
                (store / "jetstream").parent.mkdir()
                (store / "jetstream").touch()
        with pytest.raises(SetupError) as caught:
            async with EmbeddedServer(store):
                pass
        assert "Error" not in caught.value.message

    async def test_is_for_its_owner_only(self, tmp_path: Path) -> None:
        async with EmbeddedServer(tmp_path / "store") as own:
            assert stat.S_IMODE(own.store_dir.stat().st_mode) == 0o700

    async def test_one_that_cannot_be_written_is_a_setup_error(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(SetupError):
            await EmbeddedServer(tmp_path / "file" / "store").start()

    async def test_one_server_holds_it_alone(
        self, fresh_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("natsblob.broker.embedded.LOCK_PATIENCE", 0.1)
        config = (fresh_server.store_dir / "server.conf").read_text()
        second = EmbeddedServer(fresh_server.store_dir)
        with pytest.raises(SetupError):
            await second.start()
        assert not second.running
        assert fresh_server.running
        assert (fresh_server.store_dir / "server.conf").read_text() == config


class TestServer:
    async def test_is_durable_and_local(self, server: EmbeddedServer) -> None:
        config = (server.store_dir / "server.conf").read_text()
        assert "sync_interval: always" in config
        async with await nats.connect(server.url) as client:
            assert client.max_payload == 1024 * 1024
            await client.jetstream().account_info()
        listening = await asyncio.to_thread(_listening_addresses, server.port)
        assert listening == {"0100007F"}

    async def test_keeps_its_data_and_port(self, fresh_server: EmbeddedServer) -> None:
        url = fresh_server.url
        await store_one(url)
        await fresh_server.restart()
        assert fresh_server.url == url
        assert await stored(url) == 1
        await fresh_server.kill()
        await fresh_server.start()
        assert await stored(url) == 1

    async def test_a_chosen_port_that_is_taken_is_a_setup_error(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as stranger:
            taken = EmbeddedServer(tmp_path, port=stranger.getsockname()[1])
            with pytest.raises(PortTakenError):
                await taken.start()
            assert not taken.running

    async def test_another_server_is_not_taken_for_it(self, server: EmbeddedServer, tmp_path: Path) -> None:
        with pytest.raises(PortTakenError):
            await EmbeddedServer(tmp_path, port=server.port).start()

    async def test_many_start_at_once_on_ports_of_their_own(self, tmp_path: Path) -> None:
        async with AsyncExitStack() as stack:
            servers = [EmbeddedServer(tmp_path / str(number)) for number in range(8)]
            for server in servers:
                stack.push_async_callback(server.stop)
            await asyncio.gather(*(server.start() for server in servers))
            assert len({server.port for server in servers}) == len(servers)

    async def test_takes_further_configuration(self) -> None:
        async with (
            temporary_server(extra="max_payload: 8KB", jetstream="max_file_store: 1MB") as server,
            await nats.connect(server.url) as client,
        ):
            assert client.max_payload == 8 * 1024
            with pytest.raises(ServerError):
                await client.jetstream().add_stream(name="BIG", subjects=["big"], max_bytes=2 * 1024 * 1024)

    async def test_configuration_that_is_wrong_is_a_setup_error(self, tmp_path: Path) -> None:
        wrong = EmbeddedServer(tmp_path, extra="no_such_setting: 1")
        with pytest.raises(SetupError):
            await wrong.start()
        assert "no_such_setting" in wrong.last_words()

    async def test_a_paused_one_answers_nothing_and_comes_back(
        self, fresh_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("natsblob.broker.embedded.GREETING_DEADLINE", 0.2)
        fresh_server.pause()
        assert not await fresh_server._answers()
        fresh_server.resume()
        await fresh_server.start()

    async def test_a_paused_one_stops(self, fresh_server: EmbeddedServer) -> None:
        fresh_server.pause()
        await fresh_server.stop()
        assert not fresh_server.running

    async def test_one_that_ignores_sigterm_is_killed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("natsblob.broker.embedded.STOP_GRACE", 0.0)
        server = EmbeddedServer(tmp_path)
        await server.start()
        server.pause()
        monkeypatch.setattr(server, "resume", lambda: None)
        await server.stop()
        assert await server.wait() == -signal.SIGKILL


class TestEndings:
    async def test_wait_tells_how_it_ended(self, fresh_server: EmbeddedServer) -> None:
        ended = asyncio.create_task(fresh_server.wait())
        os.kill(fresh_server.pid, signal.SIGKILL)
        assert await asyncio.wait_for(ended, 10) == -signal.SIGKILL

    async def test_cancelled_while_running_it_stops(self, tmp_path: Path) -> None:
        server = EmbeddedServer(tmp_path)
        up = asyncio.Event()

        async def run() -> None:
            async with server:
                up.set()
                await asyncio.sleep(600)

        task = asyncio.create_task(run())
        await asyncio.wait_for(up.wait(), 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not server.running
        assert await server.wait() == 0, "it was not given the time to leave"

    async def test_cancelled_by_a_scope_it_leaves_in_peace(self, tmp_path: Path) -> None:
        server = EmbeddedServer(tmp_path)
        with anyio.CancelScope() as scope:
            async with server:
                scope.cancel()
                await anyio.sleep(600)
        assert await server.wait() == 0

    @pytest.mark.parametrize("polls", [0, 1, 5])
    async def test_cancelled_while_starting_it_leaves_nothing(
        self, polls: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server = EmbeddedServer(tmp_path)
        answers = 0

        async def never() -> bool:
            nonlocal answers
            answers += 1
            return False

        monkeypatch.setattr(server, "_answers", never)
        task = asyncio.create_task(server.start())
        await until(lambda: answers > polls)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not server.running

    @pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
    async def test_it_does_not_outlive_its_parent(self, end: signal.Signals, tmp_path: Path) -> None:
        parent = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PARENT, str(tmp_path), stdout=subprocess.PIPE
        )
        try:
            assert parent.stdout is not None
            line = await asyncio.wait_for(parent.stdout.readline(), 30)
            pid, url = int(line.split()[0]), line.split()[1].decode()
            await store_one(url)
            assert os.getsid(pid) == pid, "Ctrl-C in the parent's terminal would reach it"
        finally:
            parent.send_signal(end)
            await parent.wait()
        await until(lambda: not alive(pid))
        async with EmbeddedServer(tmp_path) as again:
            assert await stored(again.url) == 1

    async def test_the_next_start_waits_for_one_that_is_leaving(self, tmp_path: Path) -> None:
        async with EmbeddedServer(tmp_path) as first:
            leaving = asyncio.create_task(first.stop())
            async with EmbeddedServer(tmp_path) as second:
                assert second.running
            await leaving

    async def test_the_portable_guard_ends_a_process_when_its_pipe_closes(self) -> None:
        child = await asyncio.create_subprocess_exec("sleep", "600")
        watch = guard(child.pid)
        assert watch.stdin is not None
        watch.stdin.close()
        assert await asyncio.wait_for(child.wait(), 10) == -signal.SIGTERM
        await until(lambda: watch.poll() is not None)


@pytest.mark.cluster
class TestCluster:
    async def test_every_server_answers_for_all(self, cluster: EmbeddedCluster) -> None:
        await cluster.settled()
        for server in cluster.servers:
            assert cluster.named(server.name) is server
            async with await nats.connect(server.url) as client:
                assert client.connected_server_version.major == 2
                await client.jetstream(timeout=20).account_info()

    async def test_agrees_again_after_the_loss_of_a_server(self, fresh_cluster: EmbeddedCluster) -> None:
        lost = fresh_cluster.servers[0]
        url = lost.url
        await lost.kill()
        await fresh_cluster.settled()
        await lost.start()
        await fresh_cluster.settled()
        assert lost.url == url

    async def test_does_not_agree_without_a_majority(
        self, fresh_cluster: EmbeddedCluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("natsblob.testing.servers.SETTLE_DEADLINE", 0.5)
        for server in fresh_cluster.servers[1:]:
            server.pause()
        with pytest.raises(UnavailableError):
            await fresh_cluster.settled()


def _listening_addresses(port: int) -> set[str]:
    """Addresses on which this port is listened to, as /proc/net/tcp writes them."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            address, _, local_port = local.partition(":")
            if state == "0A" and int(local_port, 16) == port:
                found.add(address)
    return found
