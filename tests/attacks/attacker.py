"""A client that does one bad thing over and over, at a fixed rate, in a process of its own.

python -m tests.attacks.attacker PORT NAME SECONDS
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from random import Random
from typing import Any, Final

from tests.fuzz.link import Answer, Link

_ENDS_IN: Final = 5.0


class Attacker:
    """Connections without a client library, and the answers that come to their inbox."""

    def __init__(self, port: int, prefix: str = "blob", bucket: str = "blobs") -> None:
        self.port = port
        self.prefix = prefix
        self.bucket = bucket
        self.random = Random(8)
        self._waiting: dict[str, asyncio.Future[Answer]] = {}
        self._count = 0
        self.link: Link
        self.second: Link

    async def connect(self) -> None:
        self.link = await Link.open(self.port, self._take, "_INBOX.evil.>")
        self.second = await Link.open(self.port, self._take)

    def _take(self, subject: str, answer: Answer) -> None:
        waiting = self._waiting.pop(subject, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    async def reconnected(self) -> None:
        """Connect again if the server has cut a connection."""
        if self.link.ended.done() or self.second.ended.done():
            await self.connect()

    def publish(
        self, subject: bytes | str, body: bytes = b"", block: bytes = b"", reply: bytes = b""
    ) -> None:
        self.link.send(written(subject, body, block, reply))

    async def request(self, subject: bytes | str, body: Any = b"", block: bytes = b"") -> Answer | None:
        """The answer, if one comes within five seconds."""
        self._count += 1
        reply = f"_INBOX.evil.{self._count}"
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[reply] = answered
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.publish(subject, data, block, reply.encode())
        try:
            async with asyncio.timeout(5):
                found: Answer = await answered
                return found
        except TimeoutError:
            self._waiting.pop(reply, None)
            return None

    async def open(self, **body: Any) -> dict[str, Any]:
        """What `put.open` answers; empty if it is refused."""
        answer = await self.request(f"{self.prefix}.put.open", body)
        opened: dict[str, Any] = json.loads(answer.data) if answer and not answer.is_error else {}
        return opened

    async def chunk(self, opened: dict[str, Any], index: int, data: bytes, block: bytes) -> int:
        """The sequence of a chunk that was acknowledged."""
        answer = await self.request(opened["chunk_subject"], data, block)
        try:
            return int(json.loads(answer.data)["seq"]) if answer else 0
        except (ValueError, KeyError):
            return 0

    def token(self) -> str:
        return "".join(
            self.random.choices("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", k=22)
        )


def written(subject: bytes | str, body: bytes, block: bytes, reply: bytes) -> bytes:
    """A PUB or HPUB."""
    target = subject.encode() if isinstance(subject, str) else subject
    if reply:
        target += b" " + reply
    if block:
        return b"HPUB %s %d %d\r\n%s%s\r\n" % (target, len(block), len(block) + len(body), block, body)
    return b"PUB %s %d\r\n%s\r\n" % (target, len(body), body)


async def attack(port: int, name: str, seconds: float) -> int:
    """Run it; how often it was done."""
    from tests.attacks.catalogue import ATTACKS  # its attacks are made of what is above

    chosen = ATTACKS[name]
    attacker = Attacker(port)
    await attacker.connect()
    began, done, running = time.monotonic(), 0, set[asyncio.Task[None]]()
    while (passed := time.monotonic() - began) < seconds:
        for _ in range(int(passed * chosen.rate) - done):
            task = asyncio.create_task(chosen.once(attacker))
            running.add(task)
            task.add_done_callback(running.discard)
            done += 1
        await attacker.reconnected()
        await asyncio.sleep(0.005)
    if running:
        await asyncio.wait(running, timeout=_ENDS_IN)
    return done


def main() -> int:
    port, name, seconds = sys.argv[1:]
    sys.stdout.write(f"{asyncio.run(attack(int(port), name, float(seconds)))}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
