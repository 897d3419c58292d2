"""The scenarios, in the order of the table of faults."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Final

from tests.faults.nemesis import clients, combinations, partitions, power, servers, storage
from tests.faults.nemesis.checker import PASSING
from tests.faults.nemesis.disk import MIB
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

_PROXIES: Final = Shape(network="proxies")
_SPACES: Final = Shape(network="namespaces")
_DISKS: Final = Shape(disk=512)
_FULL: Final = PASSING | {storage.FULL}

_SERVERS: Final = (
    Scenario(name="kill-leader", row="kill -9 of the leader", shape=Shape(), schedule=servers.kill_leader),
    Scenario(
        name="kill-follower", row="kill -9 of a follower", shape=Shape(), schedule=servers.kill_follower
    ),
    Scenario(name="kill-all", row="kill -9 of all servers", shape=Shape(), schedule=servers.kill_all),
    Scenario(name="kill-r1", row="kill -9 of the only server, R1", shape=_BOX(), schedule=servers.kill_all),
    *(
        Scenario(
            name=f"pause-leader-{seconds}",
            row=f"SIGSTOP of the leader, {seconds} s",
            shape=Shape(),
            schedule=partial(servers.pause_leader, seconds=float(seconds)),
            is_long=seconds > 15,
        )
        for seconds in (5, 15, 60)
    ),
    *(
        Scenario(
            name=f"pause-follower-{seconds}",
            row=f"SIGSTOP of a follower, {seconds} s",
            shape=Shape(),
            schedule=partial(servers.pause_follower, seconds=float(seconds)),
            is_long=seconds > 15,
        )
        for seconds in (15, 60)
    ),
    Scenario(
        name="lagging-follower",
        row="lagging follower, asked at once",
        shape=Shape(),
        schedule=servers.lagging_follower,
    ),
    Scenario(
        name="replicas",
        row="R1 to R3 to R1",
        shape=Shape(replicas=1),
        schedule=servers.change_replicas,
    ),
    Scenario(
        name="peer-removed",
        row="peer removed, R3 on five servers",
        shape=Shape(nodes=5),
        schedule=servers.remove_peers,
    ),
    *(
        Scenario(
            name=f"upgrade-{version}",
            row=f"rolling upgrade from nats-server {version}",
            shape=Shape(server=version),
            schedule=servers.upgrade,
            is_long=True,
        )
        for version in ("2.11.11", "2.12.8")
    ),
)

_POWER: Final = (
    Scenario(
        name="power-r1",
        row="power loss, R1",
        shape=_BOX(disk=512),
        schedule=power.cut_all,
    ),
    Scenario(name="power-one", row="power loss of one node, R3", shape=_DISKS, schedule=power.cut_one),
    Scenario(name="power-all", row="power loss of all nodes, R3", shape=_DISKS, schedule=power.cut_all),
    Scenario(
        name="power-control-r1",
        row="control: power loss, R1, default fsync",
        shape=_BOX(disk=512, sync="2m", timeout=1.0),
        schedule=power.cut_all,
        loses=True,
    ),
    Scenario(
        name="power-control-r3",
        row="control: power loss of all nodes, R3, default fsync",
        shape=Shape(disk=512, sync="2m", timeout=1.0),
        schedule=power.cut_all,
        loses=True,
    ),
)

_NETWORK: Final = (
    *(
        Scenario(name=f"{name}{suffix}", row=f"{row}{how}", shape=shape, schedule=schedule)
        for name, row, schedule in (
            ("partition", "partition: the leader alone", partitions.isolate_leader),
            ("one-way", "partition, one-way", partitions.one_way),
            ("clients-only", "partition, clients from the leader", partitions.clients_only),
        )
        for suffix, how, shape in (("", "", _PROXIES), ("-packets", " (packets dropped)", _SPACES))
    ),
    *(
        Scenario(
            name=f"minority-5{suffix}",
            row=f"partition: two of five with the leader{how}",
            shape=replace(shape, nodes=5, replicas=5),
            schedule=partitions.minority,
            is_long=True,
        )
        for suffix, how, shape in (("", "", _PROXIES), ("-packets", " (packets dropped)", _SPACES))
    ),
    Scenario(name="slow-links", row="latency and stalls", shape=_PROXIES, schedule=partitions.slow_links),
    Scenario(
        name="torn-connections",
        row="connections reset in mid-chunk",
        shape=replace(_PROXIES, orders={"large": 0.3}),
        schedule=partitions.torn_connections,
    ),
)

_STORAGE: Final = (
    Scenario(
        name="bucket-full",
        row="bucket at its max_bytes",
        shape=Shape(max_bytes=48 * MIB, orders={"large": 0.4, "pause": 0.05}),
        schedule=storage.fill_bucket,
        explained=_FULL,
    ),
    *(
        Scenario(
            name=f"disk-{name}-r{shape.replicas}",
            row=f"{row}, R{shape.replicas}",
            shape=shape,
            schedule=schedule,
            explained=_FULL,
        )
        for name, row, schedule in (
            ("full", "disk full", storage.fill_disk),
            ("fails", "disk fails", storage.fail_disk),
            ("read-only", "disk turns read-only", storage.read_only_disk),
        )
        for shape in (_BOX(disk=512), _DISKS)
    ),
    *(
        Scenario(
            name=f"rot-{harm.__name__.replace('_', '-')}",
            row=f"bit rot: {row}",
            shape=Shape(),
            schedule=partial(storage.rot, harm=harm),
            explained=PASSING | {"blob_corrupt"},
            trusts_absence=False,
        )
        for harm, row in (
            (storage.flip_in_blocks, "a bit of a stream block"),
            (storage.flip_in_index, "a bit of the index"),
            (storage.flip_in_raft_log, "a bit of each Raft log"),
            (storage.truncate_blocks, "a block truncated"),
        )
    ),
)

_CLIENTS: Final = (
    Scenario(
        name="rolling-workers",
        row="rolling restart of workers",
        shape=Shape(orders={"once": 0.6}),
        schedule=clients.rolling_workers,
        explained=frozenset(),
    ),
    Scenario(name="killed-workers", row="kill -9 of workers", shape=Shape(), schedule=clients.killed_workers),
    Scenario(
        name="slow-reader",
        row="one slow reader among a hundred",
        shape=Shape(clients=4, orders={"lanes": 25, "pause": 1.0, "puts": 0.15, "large": 0.3}),
        schedule=clients.slow_reader,
        after=clients.nobody_is_fat,
        explained=frozenset(),
    ),
    Scenario(
        name="cancelling",
        row="cancelled callers",
        shape=Shape(orders={"cancels": 0.5, "large": 0.3, "pause": 0.05}),
        schedule=clients.cancelling,
        after=clients.nothing_is_left,
        explained=frozenset(),
    ),
)

_COMBINED: Final = (
    Scenario(
        name="combined-3",
        row="seeded combinations, three servers",
        shape=replace(_PROXIES, disk=512),
        schedule=combinations.combined,
        is_long=True,
    ),
    Scenario(
        name="combined-5",
        row="seeded combinations, five servers, R3",
        shape=replace(_PROXIES, nodes=5, disk=512),
        schedule=combinations.combined,
        is_long=True,
    ),
)

SCENARIOS: Final = (SHORT, *_POWER, *_SERVERS, *_NETWORK, *_STORAGE, *_CLIENTS, *_COMBINED)
