"""One nats-server of a cluster under test, at its place in a network and with its disk."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

import anyio

from natsblob.broker.embedded import ServerProcess, find_server
from natsblob.errors import SetupError
from tests.faults.nemesis.network import Network

OLD_SERVERS: Final = Path(sys.prefix) / "servers"
"""Where `make faults LONG=1` puts other versions of nats-server, where it can get them."""
START_DEADLINE: Final = 60.0
GREETING_DEADLINE: Final = 2.0
_POLL: Final = 0.05


def server_binary(version: str = "") -> Path:
    """The nats-server of this version; the one that is installed where none is named."""
    return OLD_SERVERS / version / "bin" / "nats-server" if version else find_server()


class Node(ServerProcess):
    """A server named `n<number>`. Its log and its lock stay in `home`; what it stores is in `data`.

    `sync` is its `sync_interval`. `data` may be a file system that goes away and comes back while the
    server is down.
    """

    def __init__(
        self, number: int, home: Path, data: Path, network: Network, *, sync: str, binary: Path
    ) -> None:
        super().__init__((), home)
        self.number = number
        self.name = f"n{number}"
        self.data = data
        self._network = network
        self._sync = sync
        self.binary = binary
        """What runs when it is started next."""

    @property
    def url(self) -> str:
        """Where the test itself reaches it, whatever is cut between others."""
        return f"nats://{self._network.host(self.number)}:{self._network.client_port(self.number)}"

    async def start(self) -> None:
        """Start it, and return when it greets; `SetupError` where it does not."""
        await self.spawn()
        with anyio.move_on_after(START_DEADLINE):
            while not await self._greets():
                if not self.running:
                    break
                await anyio.sleep(_POLL)
            else:
                return
        raise SetupError(f"{self.name} does not answer. It said:\n{self.last_words()}")

    def _prepare(self) -> list[str]:
        config = self.store_dir / "server.conf"
        config.write_text(self._config(), encoding="utf-8")
        return [*self._network.command(self.number), str(self.binary), "-c", str(config)]

    def _config(self) -> str:
        network, number = self._network, self.number
        host = network.host(number)
        lines = [
            f"server_name: {self.name}",
            f'listen: "{host}:{network.client_port(number)}"',
            f'http: "{host}:{network.monitor_port(number)}"',
            f"log_file: {json.dumps(str(self.log))}",
            "max_pending: 256MB",
            # More than the disk may have: that one is full is for the disk to say.
            "jetstream {",
            f"  store_dir: {json.dumps(str(self.data))}",
            f"  sync_interval: {self._sync}",
            "  max_file_store: 20GB",
            "}",
        ]
        others = [node for node in network.nodes if node != number]
        if others:
            routes = ", ".join(f'"nats://{network.route(number, other)}"' for other in others)
            lines.append(
                f'cluster {{ name: test, listen: "{host}:{network.route_port(number)}", no_advertise: true,'
                f"{network.advertised(number)} routes: [{routes}] }}"
            )
        return "\n".join(lines) + "\n"

    async def _greets(self) -> bool:
        with suppress(OSError, ValueError), anyio.move_on_after(GREETING_DEADLINE):
            reader, writer = await asyncio.open_connection(
                self._network.host(self.number), self._network.client_port(self.number)
            )
            try:
                verb, _, info = (await reader.readline()).partition(b" ")
            finally:
                writer.close()
            return verb == b"INFO" and json.loads(info).get("server_name") == self.name
        return False
