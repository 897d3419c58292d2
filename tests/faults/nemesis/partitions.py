"""Cuts in the network, and connections that are slow or break."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tests.faults.nemesis.network import CLIENTS, Link, ProxyNetwork, jitter
from tests.faults.nemesis.node import Node
from tests.faults.nemesis.world import World

LASTING: Final = 12.0
"""Seconds: long enough for the majority to elect another leader, which takes 4 to 9."""
NOTICED: Final = 30.0
"""Seconds: a connection on which nothing comes back is given up after 10 to 15."""


async def isolate_leader(world: World, *, seconds: float = LASTING) -> None:
    """The leader is alone; workers and clients reach all servers."""
    leader = await world.leader()
    await _split(world, [leader], world.others(leader), "the leader alone", seconds)


async def minority(world: World) -> None:
    """As many servers as there may be without a majority, the leader among them, with some of the clients."""
    leader = await world.leader()
    others = world.others(leader)
    world.rng.shuffle(others)
    small = [leader, *others[: (len(world.nodes) - 1) // 2 - 1]]
    await _split(world, small, world.others(*small), "a minority with the leader", LASTING)


async def one_way(world: World) -> None:
    """First nothing gets from the leader to the other servers, then from them to the leader."""
    for hears in (True, False):
        leader = await world.leader()
        with world.fault(
            f"{leader.name} {'hears but is not heard' if hears else 'is heard but does not hear'}"
        ):
            for other in world.others(leader):
                ends = (leader.number, other.number)
                await world.network.cut(*(ends if hears else reversed(ends)))
            await world.lasting(LASTING)
            await world.network.heal()
        await world.recovered()


async def clients_only(world: World) -> None:
    """Workers and clients do not reach the leader; the servers see nothing of it."""
    leader = await world.leader()
    with world.fault(f"workers and clients are cut off from the leader {leader.name}"):
        await world.network.split([CLIENTS], [leader.number])
        await world.lasting(NOTICED)
        await world.network.heal()


async def _split(world: World, one: Sequence[Node], other: Sequence[Node], what: str, seconds: float) -> None:
    names = " ".join(node.name for node in one)
    with world.fault(f"partition: {what} ({names})"):
        await world.network.split([node.number for node in one], [node.number for node in other])
        await world.lasting(seconds)
        await world.network.heal()


async def slow_links(world: World) -> None:
    """Delays between everybody, and moments in which nothing gets through, as when packets are lost."""
    links = list(_proxies(world).links.values())
    with world.fault("up to 30 ms more for each piece of a stream, and stalls of up to 1 s"):
        for link in links:
            link.delay = jitter(world.rng, 0.03)
        for _ in range(20):
            link = world.rng.choice(links)
            link.cut()
            await world.lasting(world.rng.uniform(0.1, 1.0))
            for held in links:
                held.release()
        await world.network.heal()


async def torn_connections(world: World) -> None:
    """Connections of workers, clients and servers are reset in the middle of a chunk, or all at once."""
    network = _proxies(world)
    with world.fault("connections are reset in the middle of chunks"):
        for _ in range(15):
            links: Sequence[Link] = (
                network.client_links if world.rng.random() < 0.7 else [*network.links.values()]
            )
            link = world.rng.choice(links)
            if world.rng.random() < 0.8:
                link.tear(world.rng.randrange(1_000, 16_000))
            else:
                link.reset()
            await world.lasting(world.rng.uniform(0.3, 1.2))
        await world.network.heal()


def _proxies(world: World) -> ProxyNetwork:
    assert isinstance(world.network, ProxyNetwork)
    return world.network
