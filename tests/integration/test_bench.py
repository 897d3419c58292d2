"""Measuring: `natsblob bench` on a deployment, and the peers of `make bench` on orders."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from time import perf_counter

import nats
import pytest
from nats.aio.msg import Msg

from bench import growth, memory, workers
from bench.fill import content, fill
from bench.meter import cpu_time
from bench.peers.driver import Order
from bench.processes import BARE, OURS, PeerError, PeerProcess, running
from bench.profiles import BARE_LOOP, BARE_SOCKET_VERIFIED, KIB, MIB, SERVICE, Deployment, Profile, Workload
from bench.results import Results
from bench.run import run, stage
from natsblob import client
from natsblob.broker.connection import Access, connect
from natsblob.broker.embedded import EmbeddedServer
from natsblob.digest import Digest
from natsblob.testing.services import running_worker
from tests.integration.cli_process import DEADLINE, Cli, serving

PREFIX = "benchcli"
KINDS = {kind.name: kind for kind in (*OURS, *BARE)}


@pytest.fixture(scope="module")
def natsblob(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """The command line, with a worker that answers it."""
    home = tmp_path_factory.mktemp("home")
    cli = Cli(home, NATSBLOB_SERVER=server.url, NATSBLOB_PREFIX=PREFIX, NATSBLOB_BUCKET=PREFIX)
    with serving(cli):
        yield cli


def test_each_load_is_measured_and_nothing_is_left(natsblob: Cli) -> None:
    ran = natsblob.good(
        *("bench", "--json", "--duration", "50ms", "--size", "4KiB", "--size", "9MiB"),
        *("--at-once", "1", "--at-once", "3", "--most", "20MiB"),
    )
    figures = [json.loads(line) for line in ran.lines]
    measured = {(figure["size"], figure["at_once"], figure["verb"]) for figure in figures}
    # Three of 9 MiB are more than may be stored.
    assert measured == {
        (size, at_once, verb)
        for size, at_once in ((4 * KIB, 1), (4 * KIB, 3), (9 * MIB, 1))
        for verb in ("put", "get", "has")
    }
    assert all(figure["operations"] >= figure["at_once"] for figure in figures)
    assert natsblob.good("ls").lines == []


@pytest.mark.parametrize(
    "arguments", [("--size", "1B"), ("--at-once", "0"), ("--duration", "soon"), ("--most", "1KiB")]
)
def test_what_cannot_be_measured_is_a_usage_error(natsblob: Cli, arguments: tuple[str, str]) -> None:
    assert natsblob("bench", *arguments).code == 2


async def test_an_interrupted_run_leaves_nothing(natsblob: Cli, server: EmbeddedServer) -> None:
    async with await nats.connect(server.url) as nc:
        under_way = asyncio.Semaphore(0)

        async def saw(_: Msg) -> None:
            under_way.release()

        await nc.subscribe(f"{PREFIX}.put", cb=saw)
        await nc.flush()
        measuring = await asyncio.create_subprocess_exec(
            *natsblob.command("bench", "--size", "4KiB", "--at-once", "4", "--duration", "10m"),
            env=natsblob.env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        async with asyncio.timeout(DEADLINE):
            for _ in range(20):
                await under_way.acquire()
            measuring.send_signal(signal.SIGINT)
            assert await measuring.wait() == 130
    assert (await asyncio.to_thread(natsblob.good, "ls")).lines == []


async def test_a_run_measures_every_round_of_every_peer() -> None:
    workloads = (Workload(4 * KIB, count=3, at_once=2, queries=2), Workload(2 * MIB))
    batches = Workload(4 * KIB, count=1000, at_once=32, batches=2)
    profile = Profile("a moment", (Deployment(sync="2m"),), (*workloads, batches), rounds=2)
    saved: list[int] = []

    def save(results: Results, _: Mapping[str, str]) -> None:
        saved.append(len(results.rows()))

    results, configuration = await run(profile, list(KINDS.values()), save)
    assert results.failures == {}
    assert len(saved) == 3
    assert saved == sorted(saved)
    assert "sync_interval: 2m" in configuration[str(profile.deployments[0])]
    measured = {(key.workload, key.verb, key.peer) for key in results.samples}
    for workload in workloads:
        for verb in ("put", "get"):
            assert (workload, verb, SERVICE) in measured
            assert (workload, verb, BARE_LOOP) in measured
    assert (workloads[1], "get", BARE_SOCKET_VERIFIED) in measured
    assert (workloads[0], "get", BARE_SOCKET_VERIFIED) not in measured  # it does one thing at a time
    assert {(verb, peer) for workload, verb, peer in measured if workload == batches} == {
        ("has_cold", SERVICE),
        ("has_batch", SERVICE),
    }
    for rounds in results.samples.values():
        assert set(rounds) == {0, 1}
    of_service = results.samples[next(key for key in results.samples if key.peer == SERVICE)][0]
    assert of_service.usage.keys() == {"client", "worker", "server"}
    assert len(of_service.latencies) == of_service.operations


async def test_a_peer_says_that_it_failed_and_goes_on() -> None:
    async with (
        stage(Deployment(sync="2m")) as place,
        running([KINDS[BARE_LOOP]], place.servers[0].url) as (peer,),
    ):
        order = Order("get", 4 * KIB, 1, 1, "never-put")
        with pytest.raises(PeerError):
            await peer.order(order)
        answer = await peer.order(replace(order, verb="put"))
        assert answer["seconds"] > 0


async def test_a_peer_that_ends_is_started_anew() -> None:
    echo = "read -r _; echo '{\"seconds\": 1}'; read -r _"
    peer = PeerProcess(replace(KINDS[BARE_LOOP], command=("/bin/sh", "-c", echo)), "nats://nowhere")
    order = Order("put", 1, 1, 1, "run")
    try:
        assert (await peer.order(order))["seconds"] == 1
        with pytest.raises(PeerError):
            await peer.order(order)
        assert (await peer.order(order))["seconds"] == 1
    finally:
        await peer.end()


async def test_a_bucket_is_filled_as_the_service_would(server: EmbeddedServer) -> None:
    bucket = "filled"
    async with running_worker(server.url, bucket=bucket, prefix=bucket):
        async with await connect(Access((server.url,))) as connection:
            await fill(connection, bucket, range(20), 100)
        async with client.connect(server.url, prefix=bucket) as blobs:
            for number in range(20):
                assert await blobs.get(Digest.of(content(number, 100))) == content(number, 100)
            assert len([info async for info in blobs.list()]) == 20


async def test_growth_compares_every_kind_of_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "SOME", 8)
    report = await growth.run(1_100, 1)
    small, large = report["places"]
    assert (small["blobs"], large["blobs"]) == (growth.SMALL, 1_100)
    for row in report["verbs"].values():
        assert len(row["ratios"]) == 1
        assert row["large"]["p50"] > 0
    for place in (small, large):
        assert place["chores"]["list"]["count"] == place["blobs"]
        assert place["chores"]["collect"]["count"] == 0
        assert place["chores"]["verify"]["count"] == 1_000
    assert any("list, the first page" in line for line in growth.table(report))


async def test_memory_is_measured_of_all_three() -> None:
    results = await memory.run([(2, MIB), (1, 3 * MIB)])
    assert [(one["verb"], one["at_once"]) for one in results] == [
        ("put", 2),
        ("get", 2),
        ("put", 1),
        ("get", 1),
    ]
    assert all(one[role]["peak"] > MIB for one in results for role in ("client", "worker", "server"))
    assert len(list(memory.table(results))) == 5


async def test_workers_are_held_to_their_share() -> None:
    busy = await asyncio.create_subprocess_exec(sys.executable, "-c", "while True: pass")
    try:
        async with workers.held([busy.pid], 0.1):
            used, began = cpu_time(busy.pid), perf_counter()
            await asyncio.sleep(1)
            share = (cpu_time(busy.pid) - used) / (perf_counter() - began)
        assert share < 0.3
    finally:
        busy.kill()
        await busy.wait()
