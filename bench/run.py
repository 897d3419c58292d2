"""A run: servers and a worker as a deployment says, and all peers on them in alternating rounds."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from itertools import count
from typing import Final, Self, TypeAlias

import nats
from nats.js import JetStreamContext
from nats.js.api import ObjectStoreConfig
from nats.js.errors import NotFoundError

from bench.meter import Meter
from bench.peers.driver import Order
from bench.processes import BARE_BUCKET, PEERS_BUCKET, Kind, PeerError, PeerProcess, running
from bench.profiles import Deployment, Profile, Workload
from bench.results import Key, Results, Sample
from natsblob.broker.embedded import EmbeddedServer
from natsblob.testing.servers import temporary_cluster, temporary_server
from natsblob.testing.services import running_worker

_WARM_UP: Final = Workload(4096, count=20, queries=20)
_CLEARED_AT_ONCE: Final = 32
_PATIENCE: Final = 60.0
_QUERIES: Final = ("has", "info")

Save: TypeAlias = Callable[[Results, Mapping[str, str]], None]

_runs = count(1)


def _forget(_results: Results, _configuration: Mapping[str, str]) -> None:
    """Keeps nothing."""


class Worker:
    """The worker of a service, which may be replaced by one that remembers nothing."""

    def __init__(self, url: str, replicas: int) -> None:
        self._url = url
        self._replicas = replicas
        self._running = AsyncExitStack()
        self.pid = 0

    async def __aenter__(self) -> Self:
        worker = running_worker(self._url, replicas=self._replicas)
        self.pid = (await self._running.enter_async_context(worker)).pid
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._running.aclose()

    async def renew(self) -> None:
        await self._running.aclose()
        await self.__aenter__()


@dataclass(frozen=True, slots=True)
class Stage:
    """What peers are measured on."""

    deployment: Deployment
    servers: Sequence[EmbeddedServer]
    worker: Worker
    jetstream: JetStreamContext
    version: str

    @property
    def server_pids(self) -> list[int]:
        return [server.pid for server in self.servers]

    @property
    def configuration(self) -> str:
        """Version and configuration of the first server."""
        server = self.servers[0]
        config = (server.store_dir / "server.conf").read_text()
        return f"nats-server {self.version}, {self.deployment}\n{config}"

    async def tidy(self, bucket: str) -> None:
        """Take everything out of a bucket, consumers that a client has left behind included."""
        stream = f"OBJ_{bucket}"
        while consumers := await self.jetstream.consumers_info(stream):  # a page of them
            for consumer in consumers:
                with suppress(NotFoundError):  # it expires by itself as well
                    await self.jetstream.delete_consumer(stream, consumer.name)
        await self.jetstream.purge_stream(stream)


async def run(profile: Profile, kinds: list[Kind], save: Save = _forget) -> tuple[Results, dict[str, str]]:
    """Measure all that the profile asks for; beside the results, how nats-server was set up for each.

    `save` is given what there is after each workload: a run may be cut short.
    """
    results = Results()
    configuration: dict[str, str] = {}
    for deployment in profile.deployments:
        async with stage(deployment) as place, running(kinds, place.servers[0].url) as peers:
            configuration[str(deployment)] = place.configuration
            for peer in peers:
                await _round(peer, place, _WARM_UP, Results(), 0)
            for workload in profile.workloads:
                fit = [peer for peer in peers if _fits(peer.kind, workload, profile)]
                if not fit:
                    continue
                for number in range(profile.rounds):
                    _tell(f"{deployment}: {workload}, round {number + 1} of {profile.rounds}")
                    turn = number % len(fit)
                    for peer in fit[turn:] + fit[:turn]:
                        await _round(peer, place, workload, results, number)
                save(results, configuration)
    return results, configuration


@asynccontextmanager
async def stage(deployment: Deployment) -> AsyncIterator[Stage]:
    """Servers, a worker, and buckets for the peers."""
    jetstream = "" if deployment.sync == "always" else f"sync_interval: {deployment.sync}"
    async with AsyncExitStack() as stack:
        if deployment.replicas == 1:
            servers = [await stack.enter_async_context(temporary_server(jetstream=jetstream))]
        else:
            cluster = temporary_cluster(deployment.replicas, jetstream=jetstream)
            servers = (await stack.enter_async_context(cluster)).servers
        url = servers[0].url
        worker = await stack.enter_async_context(Worker(url, deployment.replicas))
        nc = await stack.enter_async_context(await nats.connect(url))
        found = nc.connected_server_version
        version = f"{found.major}.{found.minor}.{found.patch}"
        place = Stage(deployment, servers, worker, nc.jetstream(timeout=_PATIENCE), version)
        for bucket in (PEERS_BUCKET, BARE_BUCKET):
            config = ObjectStoreConfig(bucket=bucket, replicas=deployment.replicas)
            await place.jetstream.create_object_store(bucket, config)
        yield place


def _fits(kind: Kind, workload: Workload, profile: Profile) -> bool:
    small_enough = workload.size <= profile.largest.get(kind.name, kind.largest)
    able = "has_batch" in kind.verbs if workload.batches else True
    return small_enough and able and not (kind.serial_only and workload.at_once > 1)


async def _round(peer: PeerProcess, place: Stage, workload: Workload, results: Results, number: int) -> None:
    """Put, get and ask, as far as the peer can; then its bucket is empty again."""
    run_name = f"run{next(_runs)}"
    put = Key(place.deployment, workload, "put", peer.kind.name)
    for verb, operations in _verbs(workload).items():
        key = put._replace(verb=verb)
        if put in results.failures:  # nothing is there for the others to read
            break
        if verb == "has_cold":
            await place.worker.renew()
        asked = "has_batch" if verb == "has_cold" else verb
        if asked not in peer.kind.verbs or not operations or key in results.failures:
            continue
        order = Order(asked, workload.size, operations, min(workload.at_once, operations), run_name)
        try:
            sample = await _measured(peer, place, order)
            if asked == "has_batch" or not workload.batches:  # else the put only prepares
                results.add(key, number, sample)
        except PeerError as error:
            results.fail(key, str(error))
    if "clear" in peer.kind.verbs:
        at_once = min(_CLEARED_AT_ONCE, workload.count)
        try:
            await peer.order(Order("clear", workload.size, workload.count, at_once, run_name))
        except PeerError as error:
            results.fail(put._replace(verb="clear"), str(error))
    else:
        await place.tidy(peer.kind.bucket)


def _verbs(workload: Workload) -> dict[str, int]:
    """Operations by verb, in order."""
    if workload.batches:
        return {"put": workload.count, "has_cold": 1, "has_batch": workload.batches}
    moves = dict.fromkeys(("put", "get"), workload.count)
    return moves | dict.fromkeys(_QUERIES, workload.queries)


async def _measured(peer: PeerProcess, place: Stage, order: Order) -> Sample:
    roles = {"client": [await peer.pid()], "server": place.server_pids}
    if peer.kind.uses_worker:
        roles["worker"] = [place.worker.pid]
    meter = Meter(roles)
    answer = await peer.order(order)
    usage = meter.read()
    if "cpu" in answer:  # without what it took to make up data to put
        usage["client"] = replace(usage["client"], cpu=answer["cpu"])
    return Sample(
        operations=order.count,
        seconds=answer["seconds"],
        usage=usage,
        latencies=answer.get("latencies") or (),
        first_bytes=answer.get("first_bytes") or (),
        held=answer.get("held", order.size if order.verb == "put" else 0),
    )


def _tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
