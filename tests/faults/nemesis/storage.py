"""Disks that are full, fail or rot, and a bucket that is full."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from natsblob.broker.consumers import Copies
from natsblob.maintenance.repair import Repairer
from natsblob.maintenance.replicas import Comparer
from natsblob.objectstore.objects import Objects
from tests.faults.nemesis.node import Node
from tests.faults.nemesis.world import SETTLE, World

LASTING: Final = 8.0
FULL: Final = "insufficient_storage"
ROOM: Final = 1024 * 1024 * 1024


async def fill_bucket(world: World) -> None:
    """The bucket reaches its `max_bytes`, and later it is given more."""
    with world.fault("the bucket is full"):
        await world.load.until(FULL, 10, within=90)
        async with world.bucket() as bucket:
            config = (await bucket.info()).config
            await bucket.jetstream.update({**config, "max_bytes": ROOM})


async def fill_disk(world: World) -> None:
    """The disk of the leader is full for a while; then there is room, and the server is started again."""
    leader = await world.leader()
    disk = world.disks[leader.number]
    with world.fault(f"the disk of {leader.name} is full"):
        disk.fill()
        await world.lasting(LASTING)
        disk.empty()
        await leader.stop()
        await leader.start()


async def fail_disk(world: World) -> None:
    """Every call on the leader's disk fails; it is mounted again, and the server started."""
    await _break_disk(world, "fails", lambda node: _fail(world, node))


async def read_only_disk(world: World) -> None:
    """The leader's disk turns read-only; it is mounted again, and the server started."""
    await _break_disk(world, "is read-only", lambda node: world.disks[node.number].turn_read_only())


async def _fail(world: World, node: Node) -> None:
    world.disks[node.number].fail()


async def _break_disk(world: World, what: str, harm: Callable[[Node], Awaitable[None]]) -> None:
    leader = await world.leader()
    with world.fault(f"the disk of {leader.name} {what}"):
        await harm(leader)
        await world.lasting(LASTING)
        await leader.kill()
        await world.disks[leader.number].replace()
        await leader.start()


# Bit rot. What a stopped server has on its disk is edited, and then it leads.


def flip_in_blocks(node: Node) -> None:
    """One bit in the middle of the stream's largest block."""
    _flip(_largest(node, "streams/OBJ_*/msgs/*.blk"))


def flip_in_index(node: Node) -> None:
    """One bit in the middle of the stream's index."""
    _flip(_largest(node, "streams/OBJ_*/msgs/index.db"))


def flip_in_raft_log(node: Node) -> None:
    """One bit in the middle of each Raft log."""
    for path in node.data.glob("jetstream/$SYS/_js_/*/msgs/*.blk"):
        if path.stat().st_size:
            _flip(path)


def truncate_blocks(node: Node) -> None:
    """The stream's last block loses its last third."""
    path = max(node.data.glob("jetstream/*/streams/OBJ_*/msgs/*.blk"), key=lambda one: int(one.stem))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size * 2 // 3)


def _largest(node: Node, pattern: str) -> Path:
    return max(node.data.glob(f"jetstream/*/{pattern}"), key=lambda path: path.stat().st_size)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


async def rot(world: World, *, harm: Callable[[Node], None]) -> None:
    """One server's files rot while it is stopped; then it leads, is found out and gets a fresh copy."""
    await world.load.until_acknowledged(60, within=90)
    node = world.rng.choice(world.nodes)
    with world.fault(f"{harm.__name__} of {node.name}, which then leads"):
        await node.stop()
        harm(node)
        await node.start()
        await world.settled()
        async with world.bucket() as bucket:
            copies = Copies(bucket.jetstream.connection, bucket.layout.stream)
            await copies.lead(node.name)
            await world.lasting(LASTING)
            comparer = Comparer(Objects(bucket), copies)
            found = await comparer.compare()
            world.told.append("found" if found.diverge else "the copies agree: mended by the server")
            repairer = Repairer(bucket, comparer, copies, patience=SETTLE, say=world.told.append, online=True)
            await repairer.repair()
