"""A network of namespaces: each server has an address and a cable of its own, and packets get lost."""

from __future__ import annotations

from typing import Final, Self

from tests.faults.nemesis.disk import run
from tests.faults.nemesis.network import CLIENTS, Network

_SUBNET: Final = "10.77.0"
_BRIDGE: Final = "hub"


class NamespaceNetwork(Network):
    """Servers in namespaces of their own, on a bridge in the namespace of the scenario, where all others are.

    For scenarios that run in namespaces of their own only: nothing is removed at the end.
    """

    async def __aenter__(self) -> Self:
        await run("mount", "-t", "tmpfs", "none", "/run")
        await run("ip", "link", "add", "name", _BRIDGE, "type", "bridge")
        await run("ip", "addr", "add", f"{self._address(CLIENTS)}/24", "dev", _BRIDGE)
        await run("ip", "link", "set", _BRIDGE, "up")
        for node in self.nodes:
            await self._plug_in(node)
        self._cuts: list[tuple[int, int]] = []
        return self

    async def _plug_in(self, node: int) -> None:
        space, cable = f"n{node}", f"cable{node}"
        await run("ip", "netns", "add", space)
        await run("ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
        await run("ip", "link", "set", cable, "master", _BRIDGE, "up")
        await run("ip", "-n", space, "addr", "add", f"{self.host(node)}/24", "dev", "eth0")
        await run("ip", "-n", space, "link", "set", "eth0", "up")
        await run("ip", "-n", space, "link", "set", "lo", "up")

    def _address(self, place: int) -> str:
        return f"{_SUBNET}.{place or 254}"

    def host(self, node: int) -> str:
        return self._address(node)

    def command(self, node: int) -> list[str]:
        return ["ip", "netns", "exec", f"n{node}"]

    async def cut(self, source: int, target: int) -> None:
        """Packets that `source` sends there go nowhere. Those of the other direction still arrive."""
        await run(*self._ip(source), "route", "add", "blackhole", f"{self._address(target)}/32")
        self._cuts.append((source, target))

    async def heal(self) -> None:
        while self._cuts:
            source, target = self._cuts.pop()
            await run(*self._ip(source), "route", "del", "blackhole", f"{self._address(target)}/32")

    def _ip(self, place: int) -> list[str]:
        return ["ip", "-n", f"n{place}"] if place != CLIENTS else ["ip"]
