"""The scenarios, in the order of the table of faults."""

from __future__ import annotations

from functools import partial
from typing import Final

from tests.faults.nemesis import partitions, power, servers
from tests.faults.nemesis.scenario import Scenario
from tests.faults.nemesis.world import Shape, World

_BOX = partial(Shape, nodes=1, replicas=1)


async def _in_short(world: World) -> None:
    """What the tests of every day do to a cluster."""
    await servers.kill_leader(world, times=1)
    await servers.pause_leader(world, seconds=5.0)
    await world.recovered()
    await partitions.isolate_leader(world, seconds=8.0)


SHORT: Final = Scenario(
    name="short", row="one after the other", shape=Shape(network="proxies"), schedule=_in_short
)

SCENARIOS: Final = (
    SHORT,
    Scenario(
        name="power-r1",
        row="power loss, R1",
        shape=_BOX(disk=512),
        schedule=power.cut_all,
    ),
    Scenario(
        name="power-control-r1",
        row="control: power loss, R1, default fsync",
        shape=_BOX(disk=512, sync="2m", timeout=1.0),
        schedule=power.cut_all,
        loses=True,
    ),
    Scenario(name="kill-leader", row="kill -9, leader", shape=Shape(), schedule=servers.kill_leader),
    Scenario(
        name="pause-leader-5",
        row="SIGSTOP of the leader, 5 s",
        shape=Shape(),
        schedule=partial(servers.pause_leader, seconds=5.0),
    ),
    Scenario(
        name="partition-leader",
        row="partition: the leader alone",
        shape=Shape(network="proxies"),
        schedule=partitions.isolate_leader,
    ),
    Scenario(
        name="partition-leader-ip",
        row="partition: the leader alone, at the IP level",
        shape=Shape(network="namespaces"),
        schedule=partitions.isolate_leader,
    ),
    Scenario(
        name="one-way",
        row="partition, one-way",
        shape=Shape(network="proxies"),
        schedule=partitions.one_way,
    ),
    Scenario(
        name="clients-only",
        row="partition, clients from the leader",
        shape=Shape(network="proxies"),
        schedule=partitions.clients_only,
    ),
    Scenario(
        name="slow-links",
        row="latency and stalls",
        shape=Shape(network="proxies"),
        schedule=partitions.slow_links,
    ),
    Scenario(
        name="torn-connections",
        row="connections reset in mid-chunk",
        shape=Shape(network="proxies"),
        schedule=partitions.torn_connections,
    ),
)
