"""Streams on a chosen nats-server, messages with any header block, and whether a stream lives on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, Self

import nats
from nats.aio.client import Client

from natsblob.broker.embedded import EmbeddedServer
from natsblob.testing.servers import EmbeddedCluster
from tests.faults.nemesis.node import server_binary
from tests.integration.raw import Wire
from tests.servers.cases import Case

PATIENCE: Final = 4.0
"""Seconds for one answer."""
SETTLED: Final = 60.0
"""Seconds until streams have a leader after all servers were restarted: elections take 4 to 9."""

_ALLOWED: Final = {
    "allow_rollup_hdrs": (2, 11),
    "allow_msg_ttl": (2, 11),
    "allow_atomic": (2, 12),
    "allow_msg_schedules": (2, 12),
    "allow_batched": (2, 14),
}
"""What a stream can be told to allow, and since when."""
CONFIGS: Final = ("bucket", "open", "counter")


def stream_config(kind: str, name: str, replicas: int, version: tuple[int, ...]) -> dict[str, Any] | None:
    """As natsblob makes a bucket's stream, one that allows all, or one of counters where there are any."""
    config: dict[str, Any] = {
        "name": name,
        "subjects": [f"h.{name}.>"],
        "retention": "limits",
        "discard": "new",
        "storage": "file",
        "num_replicas": replicas,
        "allow_direct": True,
        "duplicate_window": 120_000_000_000,
    }
    if kind == "open":
        config |= {key: True for key, since in _ALLOWED.items() if version >= since}
    if kind == "counter":
        if version < (2, 12):
            return None
        config["allow_msg_counter"] = True
    if kind != "bucket":
        config["discard"] = "old"  # schedules and counters ask for it
    return config


class Servers:
    """One server, or three, of a version."""

    def __init__(self, directory: Path, version: str, replicas: int) -> None:
        binary = server_binary(version)
        self.replicas = replicas
        self.cluster = EmbeddedCluster(directory, binary=binary) if replicas > 1 else None
        self.single = EmbeddedServer(directory, binary=binary) if replicas == 1 else None

    @property
    def all(self) -> list[EmbeddedServer]:
        return self.cluster.servers if self.cluster else [server for server in (self.single,) if server]

    @property
    def urls(self) -> list[str]:
        return [server.url for server in self.all]

    async def __aenter__(self) -> Self:
        await (self.cluster or self.single).__aenter__()  # type: ignore[union-attr]
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(server.kill() for server in self.all))

    async def restart(self) -> None:
        """Restart all of them."""
        await asyncio.gather(*(server.stop() for server in self.all))
        await asyncio.gather(*(server.start() for server in self.all))
        if self.cluster:
            await self.cluster.settled()


class Lab:
    """Connections to servers that run."""

    def __init__(self, nc: Client, wire: Wire, version: tuple[int, ...], replicas: int) -> None:
        self.nc = nc
        self.wire = wire
        self.version = version
        self.replicas = replicas

    async def make(self, name: str, kind: str) -> bool:
        """A stream with a message with an id in it; `False` if this version has none of the kind."""
        config = stream_config(kind, name, self.replicas, self.version)
        if config is None:
            return False
        answer = await self.api(f"STREAM.CREATE.{name}", config)
        if "error" in answer:
            raise AssertionError(f"{self.version} {kind}: {answer['error']}")
        headers = {"Nats-Incr": "+1"} if kind == "counter" else {"Nats-Msg-Id": "seen"}
        if not await self._taken(f"h.{name}.seen", headers, SETTLED):
            raise AssertionError(f"{self.version}: a new stream ({kind}) takes no message")
        return True

    async def api(self, operation: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        data = json.dumps(body).encode() if body else b""
        try:
            message = await self.nc.request(f"$JS.API.{operation}", data, timeout=PATIENCE)
        except (TimeoutError, nats.errors.Error):
            return {"error": {"code": 503, "description": "no answer"}}
        answer: dict[str, Any] = json.loads(message.data)
        return answer

    async def send(self, name: str, kind: str, case: Case) -> str:
        """Publish it, and tell in a word what the server answered."""
        counted = "Nats-Incr: +1\r\n" if kind == "counter" and "Nats-Incr" not in case.block else ""
        state = (await self.api(f"STREAM.INFO.{name}")).get("state", {})
        inbox = self.nc.new_inbox()
        subject = f"h.{name}.{'seen' if case.value == 'duplicate' else 'a'}"
        last = state.get("last_seq", 0)
        words = {
            "last": last,
            "of_subject": 0,
            "seen": "seen",
            "stream": name,
            "subject": subject,
            "inbox": inbox,
        }
        if "{of_subject}" in case.block:
            found = await self.api(f"STREAM.MSG.GET.{name}", {"last_by_subj": subject})
            words["of_subject"] = found.get("message", {}).get("seq", 0)
        first, _, rest = (
            case.block.partition("\r\n") if case.block.startswith("!") else ("!NATS/1.0", "", case.block)
        )
        block = f"{first[1:]}\r\n{rest}{counted}\r\n".format(**words).encode()
        reply = case.reply.format(**words) or inbox
        subscription = await self.nc.subscribe(f"{inbox}.>" if case.reply else inbox)
        await self.nc.flush()
        await self.wire.publish(subject, reply, block)
        try:
            message = await subscription.next_msg(timeout=0.3 if case.reply else 1.5)
            answer = json.loads(message.data) if message.data else {}
            error = answer.get("error") or {}
            return str(error.get("err_code", "stored"))
        except (TimeoutError, nats.errors.Error):
            return "no answer"
        finally:
            await subscription.unsubscribe()

    async def takes_messages(self, name: str, kind: str, patience: float) -> bool:
        headers = {"Nats-Incr": "+1"} if kind == "counter" else {}
        return await self._taken(f"h.{name}.check", headers, patience)

    async def _taken(self, subject: str, headers: dict[str, str], patience: float) -> bool:
        deadline = asyncio.get_running_loop().time() + patience
        while asyncio.get_running_loop().time() < deadline:
            with suppress(TimeoutError, nats.errors.Error):
                message = await self.nc.request(subject, timeout=PATIENCE, headers=headers)
                if b'"seq"' in message.data and b'"error"' not in message.data:
                    return True
            await asyncio.sleep(0.1)
        return False

    async def has_leader(self, name: str) -> bool:
        """Whether it has a leader, and all copies follow."""
        cluster = (await self.api(f"STREAM.INFO.{name}")).get("cluster", {})
        if self.replicas == 1:
            return True
        copies = cluster.get("replicas") or []
        return bool(cluster.get("leader")) and all(copy["current"] for copy in copies) and len(copies) == 2


@asynccontextmanager
async def connected(servers: Servers) -> AsyncIterator[Lab]:
    async with AsyncExitStack() as stack:
        nc = await stack.enter_async_context(await nats.connect(servers.urls[0]))
        wire = await stack.enter_async_context(Wire(servers.urls[0]))
        found = nc.connected_server_version
        version = (found.major, found.minor, found.patch)
        yield Lab(nc, wire, version, servers.replicas)
