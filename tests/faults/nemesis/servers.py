"""Servers that die, stand still, lag, change places and are replaced by newer ones."""

from __future__ import annotations

import asyncio
from typing import Final

from natsblob.broker.consumers import Copies
from tests.faults.nemesis.node import server_binary
from tests.faults.nemesis.world import World

DOWN: Final = 3.0
"""Seconds for which a server that was killed stays away."""


async def kill_leader(world: World, *, times: int = 2) -> None:
    """Kill whoever leads, and later whoever leads then."""
    for _ in range(times):
        leader = await world.leader()
        with world.fault(f"SIGKILL of the leader {leader.name}"):
            await leader.kill()
            await world.lasting(DOWN)
            await leader.start()
        await world.recovered()


async def kill_follower(world: World) -> None:
    follower = world.rng.choice(await world.followers())
    with world.fault(f"SIGKILL of the follower {follower.name}"):
        await follower.kill()
        await world.lasting(DOWN)
        await follower.start()


async def kill_all(world: World) -> None:
    """Kill all servers in one moment, twice."""
    for _ in range(2):
        with world.fault("SIGKILL of all servers"):
            await asyncio.gather(*(node.kill() for node in world.nodes))
            await world.lasting(DOWN)
            await asyncio.gather(*(node.start() for node in world.nodes))
        await world.recovered()


async def pause_leader(world: World, *, seconds: float) -> None:
    """Stop the leader for a while; it does not know, when it goes on, that others have gone on without it."""
    leader = await world.leader()
    with world.fault(f"SIGSTOP of the leader {leader.name} for {seconds:g} s"):
        leader.pause()
        await world.lasting(seconds)
        leader.resume()


async def pause_follower(world: World, *, seconds: float) -> None:
    """Stop a follower for a while: the others are a majority, and do not need it."""
    follower = world.rng.choice(await world.followers())
    with world.fault(f"SIGSTOP of the follower {follower.name} for {seconds:g} s"):
        follower.pause()
        await world.lasting(seconds)
        follower.resume()


async def lagging_follower(world: World) -> None:
    """Again and again a follower misses some puts, and is asked for them when it has just gone on."""
    with world.fault("SIGSTOP of one follower after the other"):
        for _ in range(8):
            follower = world.rng.choice(await world.followers())
            follower.pause()
            await world.lasting(world.rng.uniform(1.0, 4.0))
            follower.resume()
            await world.lasting(1.0)


async def change_replicas(world: World) -> None:
    """From one replica to three and back, twice."""
    with world.fault("R1 to R3 to R1, twice"):
        for replicas in (3, 1, 3, 1):
            async with world.bucket() as bucket:
                await bucket.change(replicas=replicas)
            await world.settled(replicas)
            await world.load.until_acknowledged(10, within=60)


async def remove_peers(world: World) -> None:
    """A follower is removed from the bucket, and then the leader; others take their places."""
    for which in ("follower", "leader"):
        node = await world.leader() if which == "leader" else world.rng.choice(await world.followers())
        with world.fault(f"{which} {node.name} is removed from the bucket"):
            async with world.bucket() as bucket:
                copies = Copies(bucket.jetstream.connection, bucket.layout.stream)
                assert await copies.replace(node.name)
            await world.settled()
        await world.recovered()


async def upgrade(world: World) -> None:
    """One server after the other is stopped and started as the installed version."""
    with world.fault(f"upgrade from {world.shape.server}"):
        for node in world.nodes:
            await node.stop()
            node.binary = server_binary()
            await node.start()
            await world.settled()
        await world.load.until_acknowledged(20, within=60)
