"""Workers that come, go and die, readers that are slow, and callers that give up."""

from __future__ import annotations

import asyncio
import json
import re
import time
from typing import Final

from natsblob.broker.embedded import LOOPBACK
from natsblob.testing.servers import monitor
from tests.faults.nemesis.network import Link
from tests.faults.nemesis.world import World

MIB: Final = 1024 * 1024
SLOW: Final = 256 * 1024
"""Bytes per second that a slow reader gets."""
WORKER_MEMORY: Final = 512 * MIB
SERVER_MEMORY: Final = 1024 * MIB
"""What a process may take while one of a hundred readers is slow: nobody may collect what that one does not
fetch."""
_STORAGE: Final = " storage"
_WORKER: Final = re.compile(rf"natsblob [0-9a-f]{{16}}({_STORAGE})?")
"""How workers name their two connections."""
_LETTING_GO: Final = 75.0
"""Seconds. A worker watches an upload whose caller never heard of it for a minute."""
_LOOK_AGAIN: Final = 0.1


async def rolling_workers(world: World) -> None:
    """Each worker is replaced, twice."""
    with world.fault("rolling restart of the workers"):
        for _ in range(2 * len(world.workers)):
            await world.add_worker()
            await world.remove_worker(world.workers[0])
            await world.load.until_acknowledged(10, within=60)


async def killed_workers(world: World) -> None:
    """Workers die at any moment, and others are started in their places."""
    with world.fault("SIGKILL of one worker after the other"):
        for _ in range(6):
            await world.kill_worker(world.rng.choice(world.workers))
            await world.lasting(world.rng.uniform(0.5, 1.5))
            await world.add_worker()
            await world.load.until_acknowledged(5, within=60)


async def slow_reader(world: World) -> None:
    """One of a hundred readers gets little of what it asks for; the others are not to notice."""
    leader = await world.leader()
    target = (world.network.host(leader.number), world.network.client_port(leader.number))
    link = await world.enter(Link(target))
    link.rate = SLOW
    with world.fault("a slow reader among a hundred"):
        await world.load.start([f"nats://{LOOPBACK}:{link.port}"], lanes=4, pause=0.01, puts=0.0)
        for _ in range(40):
            world.weigh()
            await world.lasting(0.5)
    link.heal()


async def nobody_is_fat(world: World) -> list[str]:
    """Whether no worker and no server took more memory than it may."""
    complaints = []
    for kind, most in (("worker", WORKER_MEMORY), ("server", SERVER_MEMORY)):
        world.told.append(f"{kind}s took up to {world.memory[kind] / MIB:.0f} MiB")
        if world.memory[kind] > most:
            complaints.append(f"a {kind} took {world.memory[kind]} bytes")
    return complaints


async def cancelling(world: World) -> None:
    """Half of all calls are cancelled before they end."""
    with world.fault("callers that give up"):
        await world.load.until_acknowledged(200, within=120)


async def nothing_is_left(world: World) -> list[str]:
    """Whether workers hold no more subscriptions than a fresh one, and the bucket has no consumers."""
    await world.add_worker()
    give_up_at = time.monotonic() + _LETTING_GO
    while (odd := await _odd_connections(world)) and time.monotonic() < give_up_at:  # noqa: ASYNC110 - others decide
        await asyncio.sleep(_LOOK_AGAIN)
    async with world.bucket() as bucket:
        subject = f"$JS.API.CONSUMER.NAMES.{bucket.layout.stream}"
        reply = await bucket.jetstream.connection.request(subject, timeout=5)
    consumers = json.loads(reply.data)["consumers"] or []
    return [*odd, *(f"consumer {name} is left" for name in consumers)]


async def _odd_connections(world: World) -> list[str]:
    """Workers' connections with other numbers of subscriptions than that of the last worker has."""
    pages = [await monitor(world.network.monitor_port(node.number), "/connz") for node in world.nodes]
    found = [one for page in pages for one in page["connections"] if _WORKER.fullmatch(one["name"])]
    odd = []
    for kind in (True, False):
        alike = [one for one in found if one["name"].endswith(_STORAGE) == kind]
        newest = max(alike, key=lambda one: str(one["start"]))
        odd += [
            f"{one['name']} holds {one['subscriptions']} subscriptions, a fresh one {newest['subscriptions']}"
            for one in alike
            if one["subscriptions"] != newest["subscriptions"]
        ]
    return odd
