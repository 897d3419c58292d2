"""Power loss: a server's process and whatever was not flushed to its disk are gone in one moment."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from tests.faults.nemesis.node import Node
from tests.faults.nemesis.world import World

MORE: Final = 40
"""Acknowledged puts after which the power goes."""


async def cut_all(world: World) -> None:
    """All servers at a time."""
    await world.load.until_acknowledged(MORE, within=60)
    await _cut(world, world.nodes)


async def cut_one(world: World) -> None:
    """The leader, and once that is back a follower."""
    await world.load.until_acknowledged(MORE, within=60)
    await _cut(world, [await world.leader()])
    await world.recovered()
    await world.load.until_acknowledged(MORE, within=60)
    await _cut(world, [world.rng.choice(await world.followers())])


async def _cut(world: World, nodes: Sequence[Node]) -> None:
    names = ", ".join(node.name for node in nodes)
    with world.fault(f"power loss of {names}"):
        await asyncio.gather(*(node.kill() for node in nodes))
        await asyncio.gather(*(world.disks[node.number].cut_power() for node in nodes))
        await asyncio.gather(*(node.start() for node in nodes))
