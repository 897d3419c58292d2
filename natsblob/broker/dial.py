"""Reaching a host by whichever of its addresses answers first, as RFC 8305 has it ("happy eyeballs")."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from itertools import chain, zip_longest
from typing import Any, Final

STAGGER: Final = 0.25
"""Seconds that an address is given before the next one is tried beside it."""


async def dial(host: str, port: int) -> socket.socket:
    """A connected socket, which the caller owns. `OSError` if no address of the host takes a connection."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    waiting = deque(_families_in_turn(found))
    attempts: set[asyncio.Task[socket.socket]] = set()
    failure: BaseException = OSError(f"{host} has no address")
    try:
        while waiting or attempts:
            if waiting:
                attempts.add(asyncio.create_task(_connected(*waiting.popleft())))
            done, _ = await asyncio.wait(
                attempts, timeout=STAGGER if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            for attempt in done:
                attempts.discard(attempt)
                if (error := attempt.exception()) is None:
                    attempts |= done - {attempt}
                    return attempt.result()
                failure = error
        raise failure
    finally:
        for attempt in attempts:
            attempt.add_done_callback(_close_late)
            attempt.cancel()


def _families_in_turn(found: list[Any]) -> list[tuple[int, Any]]:
    """The addresses in the order that the resolver gave, with IPv6 and IPv4 taking turns."""
    first = found[0][0] if found else None
    families: tuple[list[tuple[int, Any]], list[tuple[int, Any]]] = ([], [])
    for family, _, _, _, address in found:
        families[family != first].append((family, address))
    return [one for one in chain.from_iterable(zip_longest(*families)) if one is not None]


async def _connected(family: int, address: Any) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        one.setblocking(False)  # noqa: FBT003
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(one, address)
    except BaseException:
        one.close()
        raise
    return one


def _close_late(attempt: asyncio.Task[socket.socket]) -> None:
    """Nobody waits for this one any more."""
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()
