"""The server configurations that we ship, started word for word.

Where the ports that they name are in use on this machine, flags choose others; nothing else is changed.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import subprocess
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio
import nats
import pytest
import pytest_asyncio
from nats.aio.client import Client
from nats.js.api import StreamConfig

from natsblob.broker.embedded import ServerProcess, find_server, free_port, port_taken
from natsblob.testing.servers import monitor, until_settled

ROOT = Path(__file__).parents[2]
NAMES = ("n1", "n2", "n3")
ROLES = ("SERVICE", "STORAGE", "ADMIN", "UPLOADER", "TENANT", "SYSTEM")


@dataclass(frozen=True)
class Ports:
    """Where a shipped configuration listens."""

    client: int
    monitor: int
    route: int | None = None

    @property
    def free(self) -> bool:
        return not any(port_taken(port) for port in (self.client, self.monitor, self.route) if port)


def shipped(config: Path, name: str, directory: Path, flags: str = "") -> ServerProcess:
    """A server with this configuration and no other, started in `directory`."""
    command = [str(find_server()), "-c", str(config), *shlex.split(flags)]
    return ServerProcess(command, directory / f"{name}.run", cwd=directory)


@dataclass
class Cluster:
    servers: list[ServerProcess]
    ports: Sequence[Ports]

    @property
    def urls(self) -> list[str]:
        return [f"nats://127.0.0.1:{ports.client}" for ports in self.ports]

    async def settled(self) -> None:
        running = {
            name: ports.monitor
            for name, server, ports in zip(NAMES, self.servers, self.ports, strict=True)
            if server.running
        }
        with anyio.fail_after(60):
            await until_settled(running, len(NAMES))


@pytest_asyncio.fixture
async def shipped_cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    ports = [Ports(4222 + number, 8222 + number, 6222 + number) for number in range(len(NAMES))]
    flags = [""] * len(NAMES)
    if not all(seat.free for seat in ports):
        ports = [Ports(free_port(), free_port(), free_port()) for _ in NAMES]
        routes = ",".join(f"nats://127.0.0.1:{seat.route}" for seat in ports)
        flags = [
            f"-p {seat.client} -m {seat.monitor} --cluster nats://127.0.0.1:{seat.route} --routes {routes}"
            for seat in ports
        ]
    servers = [
        shipped(ROOT / "deploy" / "cluster" / f"{name}.conf", name, tmp_path, flag)
        for name, flag in zip(NAMES, flags, strict=True)
    ]
    cluster = Cluster(servers, ports)
    try:
        for server in servers:
            await server.spawn()
        await cluster.settled()
        yield cluster
    finally:
        await asyncio.gather(*(server.stop() for server in servers))


@pytest.mark.parametrize(
    "config",
    [ROOT / "nats-server.conf", *sorted((ROOT / "deploy").rglob("*.conf"))],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_the_server_accepts(config: Path) -> None:
    variables = ["NODE", *(f"NATSBLOB_{name}PASSWORD" for name in ("", *(f"{role}_" for role in ROLES)))]
    environment = os.environ | {name: f"value-of-{name}" for name in variables}
    check = subprocess.run(
        [find_server(), "-t", "-c", config], env=environment, capture_output=True, timeout=30, check=False
    )
    assert check.returncode == 0, check.stderr.decode()


@pytest.mark.cluster
async def test_the_cluster_keeps_r3_data_through_the_loss_of_a_server(shipped_cluster: Cluster) -> None:
    async with await nats.connect(shipped_cluster.urls, max_reconnect_attempts=-1) as client:
        js = client.jetstream(timeout=20)
        await js.add_stream(StreamConfig(name="OBJ_blobs", subjects=["$O.blobs.>"], num_replicas=3))
        await publish_when_led(client, "$O.blobs.C.before")
        info = await js.stream_info("OBJ_blobs")
        assert info.cluster is not None
        assert info.cluster.leader in NAMES
        leader = shipped_cluster.servers[NAMES.index(info.cluster.leader)]
        await leader.kill()
        await shipped_cluster.settled()
        await publish_when_led(client, "$O.blobs.C.while")
        await leader.spawn()
        await shipped_cluster.settled()
        assert (await js.stream_info("OBJ_blobs")).state.messages == 2


@pytest.mark.cluster
async def test_the_cluster_writes_through_to_disk(shipped_cluster: Cluster, tmp_path: Path) -> None:
    for name, ports in zip(NAMES, shipped_cluster.ports, strict=True):
        await expect_fsync(ports.monitor)
        assert (tmp_path / "data" / name / "jetstream").is_dir()


async def test_the_single_server_is_durable_and_keeps_to_this_machine(tmp_path: Path) -> None:
    ports, flags = Ports(4222, 8222), ""
    if not ports.free:
        ports = Ports(free_port(), free_port())
        flags = f"-p {ports.client} -m {ports.monitor}"
    server = shipped(ROOT / "nats-server.conf", "natsblob", tmp_path, flags)
    try:
        await server.spawn()
        await expect_fsync(ports.monitor)
        varz = await monitor(ports.monitor, "/varz")
        assert (varz["host"], varz["http_host"]) == ("127.0.0.1", "127.0.0.1")
        async with await nats.connect(f"nats://127.0.0.1:{ports.client}") as client:
            js = client.jetstream()
            await js.add_stream(name="OBJ_blobs", subjects=["$O.blobs.>"])
            await js.publish("$O.blobs.C.one", b"x")
    finally:
        await server.stop()


async def expect_fsync(monitor_port: int) -> None:
    """Wait until the server tells its settings, and see that it fsyncs every write."""
    with anyio.fail_after(30):
        while not (varz := await monitor(monitor_port, "/varz")):  # noqa: ASYNC110 - another process decides
            await anyio.sleep(0.05)
    assert varz["jetstream"]["config"]["sync_always"] is True


async def publish_when_led(client: Client, subject: str) -> None:
    """Publish once the stream has a leader; the message id makes it one message."""
    with anyio.fail_after(60):
        while True:
            try:
                await client.jetstream(timeout=2).publish(subject, b"x", headers={"Nats-Msg-Id": subject})
            except (nats.errors.Error, TimeoutError):
                await anyio.sleep(0.2)
            else:
                return
