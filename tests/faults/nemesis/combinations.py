"""Several faults at a time, chosen by the seed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from tests.faults.nemesis.network import CLIENTS, ProxyNetwork
from tests.faults.nemesis.node import Node
from tests.faults.nemesis.world import World

ROUNDS: Final = 6
LONGEST: Final = 12.0
"""Seconds of one fault."""


class Dice:
    """Faults of a world, chosen by its seed."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rng = world.rng
        network = world.network
        assert isinstance(network, ProxyNetwork)
        self._network = network

    async def throw(self) -> None:
        """One to three faults at a time, for a while of their own each."""
        faults: list[Callable[[Node, float], Awaitable[None]]] = [
            self._kill,
            self._pause,
            self._isolate,
            self._one_way,
            self._cut_off,
            self._tear,
            self._slow,
            self._workers,
        ]
        if self._world.disks:
            faults.append(self._power)
        chosen = self._rng.sample(faults, self._rng.randint(1, 3))
        nodes = self._rng.sample(self._world.nodes, len(chosen))
        spans = [self._rng.uniform(1.0, LONGEST) for _ in chosen]
        told = ", ".join(
            f"{fault.__name__[1:]} {node.name}" for fault, node in zip(chosen, nodes, strict=True)
        )
        with self._world.fault(told):
            await asyncio.gather(
                *(fault(node, span) for fault, node, span in zip(chosen, nodes, spans, strict=True))
            )
            await self._network.heal()

    async def _kill(self, node: Node, seconds: float) -> None:
        await node.kill()
        await self._world.lasting(seconds)
        await node.start()

    async def _power(self, node: Node, seconds: float) -> None:
        await node.kill()
        await self._world.disks[node.number].cut_power()
        await self._world.lasting(seconds)
        await node.start()

    async def _pause(self, node: Node, seconds: float) -> None:
        node.pause()
        await self._world.lasting(seconds)
        node.resume()

    async def _isolate(self, node: Node, seconds: float) -> None:
        others = [other.number for other in self._world.others(node)]
        await self._network.split([node.number], others)
        await self._world.lasting(seconds)

    async def _one_way(self, node: Node, seconds: float) -> None:
        for other in self._world.others(node):
            await self._network.cut(node.number, other.number)
        await self._world.lasting(seconds)

    async def _cut_off(self, node: Node, seconds: float) -> None:
        await self._network.split([CLIENTS], [node.number])
        await self._world.lasting(seconds)

    async def _tear(self, node: Node, seconds: float) -> None:
        for link in self._network.links.values():
            link.tear(self._rng.randrange(1_000, 16_000))
        await self._world.lasting(min(seconds, 3.0))

    async def _slow(self, node: Node, seconds: float) -> None:
        for (_, target), link in self._network.links.items():
            if target == node.number:
                link.delay = lambda: self._rng.uniform(0, 0.1)
        await self._world.lasting(seconds)

    async def _workers(self, node: Node, seconds: float) -> None:
        await self._world.kill_worker(self._rng.choice(self._world.workers))
        await self._world.lasting(min(seconds, 3.0))
        await self._world.add_worker()


async def combined(world: World) -> None:
    """Some rounds of faults, with the cluster whole and puts acknowledged in between."""
    dice = Dice(world)
    for _ in range(ROUNDS):
        await dice.throw()
        await world.recovered()
