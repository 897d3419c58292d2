"""Ephemeral consumers in the simulation: each reads the copy of the server that it was placed on."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from natsblob.wire import STATUS
from tests.simulation.network import Network, packed
from tests.simulation.stream import EPOCH, Record, Stream, ViolationError

FIT: Final = 3
"""Messages that fit an answer which is bounded in bytes."""


@dataclass(slots=True)
class Consumer:
    replica: int
    next_seq: int
    subject: str | None
    headers_only: bool
    place: int = 0


class Consumers:
    """Pull consumers of one stream without acks, as `natsblob.broker.consumers` makes them."""

    def __init__(self, network: Network, stream: Stream, random: Random) -> None:
        self._network = network
        self._stream = stream
        self._random = random
        self._consumers: dict[str, Consumer] = {}
        self._made = 0

    def create(self, body: dict[str, Any]) -> object:
        config = body["config"]
        replica = self._random.randrange(len(self._stream.replicas))
        self._made += 1
        name = f"c{self._made}"
        self._consumers[name] = Consumer(
            replica, config["opt_start_seq"], config.get("filter_subject"), config.get("headers_only", False)
        )
        return {
            "name": name,
            "num_pending": len(self._behind(self._consumers[name])),
            "cluster": {"name": "simulated", "leader": f"n{replica}"},
        }

    def delete(self, name: str) -> object:
        return {"success": self._consumers.pop(name, None) is not None}

    def next(self, name: str, request: dict[str, int], inbox: str) -> None:
        """Send the next messages, and a status unless they are as many as were asked for."""
        batch = request["batch"]
        consumer = self._consumers.get(name)
        if consumer is None:
            self._network.route(packed(inbox, "", b"", {STATUS: "503"}))
            return
        is_bounded = consumer.headers_only or "max_bytes" in request
        if batch > self._network.max_pending and not is_bounded:
            raise ViolationError(f"{batch} chunks were asked for at once, without flow control")
        found = self._behind(consumer)
        most = min(batch, FIT) if "max_bytes" in request else batch
        for number, record in enumerate(found[:most], 1):
            self._send(name, consumer, record, len(found) - number, inbox)
        if len(found) > most and most < batch:
            self._network.route(packed(inbox, "", b"", {STATUS: "409"}))
        elif len(found) < batch:
            self._network.route(packed(inbox, "", b"", {STATUS: "404"}))

    def _behind(self, consumer: Consumer) -> list[Record]:
        copy = self._stream.at_replica(consumer.replica, asyncio.get_running_loop().time())
        pattern = consumer.subject or f"$O.{self._stream.layout.bucket}.>"
        return copy.first_from(pattern, consumer.next_seq)

    def _send(self, name: str, consumer: Consumer, record: Record, pending: int, inbox: str) -> None:
        consumer.next_seq = record.seq + 1
        consumer.place += 1
        place = f"1.{record.seq}.{consumer.place}.{int((EPOCH.timestamp() + record.time) * 1e9)}.{pending}"
        reply = f"$JS.ACK.{self._stream.layout.stream}.{name}.{place}"
        headers, data = record.headers, record.data
        if consumer.headers_only:
            headers, data = {**headers, "Nats-Msg-Size": str(len(data))}, b""
        self._network.route(packed(record.subject, reply, data, headers), to=inbox)
