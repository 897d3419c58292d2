"""A server in the simulation: takes publishes and JetStream API requests for one stream."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Callable
from datetime import timedelta
from random import Random
from typing import Any, Final

import msgspec

from natsblob.broker.jetstream import EXPECTED_LAST
from natsblob.broker.message import DESCRIPTION, Message
from natsblob.objectstore.bucket import UPLOADS_KEY
from natsblob.wire import MESSAGE_ID, STATUS, Headers
from tests.simulation.consumers import FIT, Consumers
from tests.simulation.network import Network, matches, packed
from tests.simulation.stream import EPOCH, Copy, Record, Stream, ViolationError

_API: Final = "$JS.API."
_PASSING: Final = (
    (503, 10008, "JetStream system temporarily unavailable"),
    (429, 10167, "too many requests"),
)
_IN_PROCESS: Final = (400, 10164, "wrong last sequence")
_SAME_IN_PROCESS: Final = (409, 10158, "duplicate message id is in process")
_UNDECIDED: Final = 8.0


class Server:
    """The stream's API (ADR-1, ADR-31) as the code under test uses it; leaders may be missing for a while."""

    def __init__(self, network: Network, stream: Stream, random: Random) -> None:
        self.stream = stream
        self.clock_offset = 0.0
        self.has_leader = True
        self._network = network
        self._random = random
        self._in_process: dict[str, str] = {}
        """Subjects on which a message is not decided, and its id."""
        self._consumers = Consumers(network, stream, random)

    def take(self, message: Message) -> None:
        self.expire()
        subject = message.subject
        if subject.startswith(_API):
            self._call(message, subject.removeprefix(_API))
        elif subject.startswith("$O."):
            self._network.route(message)
            self._store(message)
        elif not self._network.route(message):
            self._send(message.reply, b"", {STATUS: "503"})

    def expire(self) -> None:
        self.stream.expire(at=asyncio.get_running_loop().time(), stamp=self._now())

    def _store(self, message: Message) -> None:
        if not self._available(message, as_ack=True):
            return
        subject = message.subject
        if EXPECTED_LAST in message.headers:
            in_process = self._in_process.get(subject)
            if in_process is not None:
                is_same = in_process == message.headers.get(MESSAGE_ID)
                self._answer(message.reply, _error(*(_SAME_IN_PROCESS if is_same else _IN_PROCESS)))
                return
            if self._random.random() < self._network.faults.undecided:
                self._in_process[subject] = message.headers.get(MESSAGE_ID, "")
                delay = _UNDECIDED * self._random.random()
                asyncio.get_running_loop().call_later(delay, self._decide, message, subject)
                return
        self._append(message, subject)

    def _decide(self, message: Message, subject: str) -> None:
        del self._in_process[subject]
        self._append(message, subject)

    def _append(self, message: Message, subject: str) -> None:
        now = asyncio.get_running_loop().time()
        outcome = self.stream.append(
            subject, message.headers, message.data, at=now, stamp=now + self.clock_offset
        )
        if len(outcome) == 3:
            self._answer(message.reply, _error(*outcome))
        else:
            seq, duplicate = outcome
            ack = {"stream": self.stream.layout.stream, "seq": seq, "duplicate": duplicate}
            self._answer(message.reply, ack)

    def _call(self, message: Message, operation: str) -> None:
        stream = self.stream.layout.stream
        verb, _, rest = operation.partition(f".{stream}")
        if verb == "DIRECT.GET":
            self._read(message, rest.removeprefix("."))
            return
        if verb == "CONSUMER.MSG.NEXT":
            if self._random.random() < self._network.faults.refused:
                self._send(message.reply, b"", {STATUS: "503"})
            else:
                request = msgspec.json.decode(message.data)
                self._consumers.next(rest.removeprefix("."), request, message.reply)
            return
        if not self._available(message, as_ack=False):
            return
        body = msgspec.json.decode(message.data) if message.data else {}
        answers: dict[str, Callable[[dict[str, Any]], object]] = {
            "STREAM.INFO": self._info,
            "STREAM.PURGE": self._purge,
            "STREAM.MSG.GET": self._message,
            "STREAM.MSG.DELETE": self._remove,
            "CONSUMER.CREATE": self._consumers.create,
            "CONSUMER.DELETE": lambda _: self._consumers.delete(rest.removeprefix(".")),
        }
        self._answer(message.reply, answers[verb](body))

    def _available(self, message: Message, *, as_ack: bool) -> bool:
        random = self._random
        if self.has_leader and random.random() >= self._network.faults.refused:
            return True
        if not self.has_leader and random.random() < 0.5:
            return False  # a request to a stream without a leader is often not answered at all
        if random.random() < 0.5:
            self._send(message.reply, b"", {STATUS: "503"})
        else:
            self._answer(message.reply, _error(*_PASSING[random.randrange(2) if as_ack else 0]))
        return False

    def _info(self, body: dict[str, Any]) -> object:
        leader = self._leader()
        state: dict[str, Any] = {
            "messages": len(leader.records),
            "first_seq": min(leader.records, default=leader.last_seq + 1),
            "last_seq": leader.last_seq,
        }
        if leader.records:
            state["last_ts"] = self._stamp(leader.records[max(leader.records)].time)
        total = 0
        if pattern := body.get("subjects_filter"):
            found = {s: len(seqs) for s, seqs in sorted(leader.by_subject.items()) if matches(pattern, s)}
            total = len(found)
            state["subjects"] = dict(list(found.items())[body.get("offset", 0) :])
        max_age = int(self.stream.max_age * 1e9)
        config = {
            "num_replicas": len(self.stream.replicas),
            "max_age": max_age,
            "metadata": {UPLOADS_KEY: "direct"},
            "max_bytes": self.stream.max_bytes,
        }
        created = self._stamp(float(self.stream.generation))
        now = self._stamp(self._now())
        return {"ts": now, "created": created, "config": config, "state": state, "total": total}

    def _purge(self, body: dict[str, Any]) -> object:
        now = asyncio.get_running_loop().time()
        keep, before = body.get("keep", 0), body.get("seq", 0)
        return {"success": True, "purged": self.stream.purge(body["filter"], keep, before=before, at=now)}

    def _message(self, body: dict[str, Any]) -> object:
        leader = self._leader()
        if "next_by_subj" in body:
            record = next(iter(leader.first_from(body["next_by_subj"], body["seq"])), None)
        else:
            record = leader.at(body["seq"]) if "seq" in body else leader.last(body["last_by_subj"])
        if record is None:
            return _error(404, 10037, "no message found")
        lines = "".join(f"{name}: {value}\r\n" for name, value in record.headers.items())
        stored = {
            "subject": record.subject,
            "seq": record.seq,
            "time": self._stamp(record.time),
            "hdrs": b64encode(f"NATS/1.0\r\n{lines}\r\n".encode()).decode(),
            "data": b64encode(record.data).decode(),
        }
        return {"message": stored}

    def _remove(self, body: dict[str, Any]) -> object:
        now = asyncio.get_running_loop().time()
        if self._leader().at(body["seq"]) is None:
            return _error(404, 10057, "no message found")
        self.stream.remove(body["seq"], at=now)
        return {"success": True}

    def _read(self, message: Message, last_of: str) -> None:
        """A direct read, by whichever replica takes it."""
        random = self._random
        number = random.randrange(len(self.stream.replicas))
        copy = self.stream.at_replica(number, asyncio.get_running_loop().time())
        if random.random() < self._network.faults.refused:
            self._send(message.reply, b"", {STATUS: "408", DESCRIPTION: "Bad Request"})
            return
        body: dict[str, Any] = {} if last_of else msgspec.json.decode(message.data)
        if "multi_last" in body:
            found = [record for subject in body["multi_last"] if (record := copy.last(subject)) is not None]
            self._frames(message.reply, copy, sorted(found, key=lambda record: record.seq), 0)
        elif "batch" in body:
            if body["batch"] > self._network.max_pending and "max_bytes" not in body:
                raise ViolationError(f"{body['batch']} chunks were asked for at once, without flow control")
            found = copy.first_from(body["next_by_subj"], body["seq"])
            counted = copy.counted(body["next_by_subj"]) if body["seq"] <= 1 else len(found)
            most = FIT if "max_bytes" in body else body["batch"]
            self._frames(message.reply, copy, found[:most], counted)
        else:
            single = copy.last(last_of) if last_of else copy.at(body["seq"])
            if single is None:
                self._send(message.reply, b"", {STATUS: "404", DESCRIPTION: "Message Not Found"})
            else:
                self._frame(message.reply, single, None)

    def _frames(self, reply: str, copy: Copy, records: list[Record], pending: int) -> None:
        if not records:
            self._send(reply, b"", {STATUS: "404", DESCRIPTION: "Message Not Found"})
            return
        before = 0
        for number, record in enumerate(records, 1):
            self._frame(reply, record, (max(0, pending - number), before))
            before = record.seq
        end = {
            STATUS: "204",
            DESCRIPTION: "EOB",
            "Nats-UpTo-Sequence": str(copy.last_seq),
            "Nats-Num-Pending": str(max(0, pending - len(records))),
            "Nats-Last-Sequence": str(before),
        }
        self._send(reply, b"", end)

    def _frame(self, reply: str, record: Record, place: tuple[int, int] | None) -> None:
        """A stored message; in a batch with how many come after it, and the sequence of the one before."""
        headers = {
            **record.headers,
            "Nats-Stream": self.stream.layout.stream,
            "Nats-Subject": record.subject,
            "Nats-Sequence": str(record.seq),
            "Nats-Time-Stamp": self._stamp(record.time),
        }
        if place is not None:
            headers["Nats-Num-Pending"], headers["Nats-Last-Sequence"] = map(str, place)
        self._send(reply, record.data, headers)

    def _answer(self, reply: str, body: object) -> None:
        self._send(reply, msgspec.json.encode(body), {})

    def _send(self, reply: str, data: bytes, headers: Headers) -> None:
        if reply:
            self._network.route(packed(reply, "", data, headers))

    def _leader(self) -> Copy:
        return self.stream.leader(asyncio.get_running_loop().time())

    def _now(self) -> float:
        return asyncio.get_running_loop().time() + self.clock_offset

    def _stamp(self, time: float) -> str:
        return (EPOCH + timedelta(seconds=time)).isoformat()


def _error(code: int, err_code: int, description: str) -> dict[str, Any]:
    return {"error": {"code": code, "err_code": err_code, "description": description}}
