"""Servers that die, and servers that stand still."""

from __future__ import annotations

from typing import Final

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


async def pause_leader(world: World, *, seconds: float) -> None:
    """Stop the leader for a while; it does not know, when it goes on, that others have gone on without it."""
    leader = await world.leader()
    with world.fault(f"SIGSTOP of the leader {leader.name} for {seconds:g} s"):
        leader.pause()
        await world.lasting(seconds)
        leader.resume()
