"""The window of acknowledged publishes against acks that are late, lost, repeated and refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest

from natsblob import wire
from natsblob.broker import publish
from natsblob.broker.connection import Connection
from natsblob.broker.message import Message
from natsblob.broker.publish import Elsewhere, Place, PublishWindow
from natsblob.errors import BlobError, ConflictError, DeadlineError, InsufficientStorageError

THROTTLED = {"error": {"code": 429, "err_code": 10167, "description": "too many requests"}}
SEALED = {"error": {"code": 400, "err_code": 10109, "description": "invalid operation on sealed stream"}}
FULL = {"error": {"code": 503, "err_code": 10077, "description": "maximum bytes exceeded"}}


class Script(Connection):
    """A stream that stores what is published once for each message id, and answers as it is told."""

    def __init__(self, react: Callable[[Script, int, str, int], None]) -> None:
        self._waiting = {}
        self._publishing = {}
        self._next_token = 0
        self._inbox = "_INBOX.x"
        self.epoch = 0
        self.stored: dict[str, bytes] = {}
        self.sent: list[int] = []
        self._react = react

    async def publish(
        self,
        subject: str,
        data: bytes | memoryview = b"",
        *,
        reply: str = "",
        headers: dict[str, str] | None = None,
    ) -> None:
        assert headers is not None
        index = int(headers[wire.CHUNK])
        again = self.sent.count(index)
        self.sent.append(index)
        await asyncio.sleep(0)
        self._react(self, index, reply, again)

    def store(self, index: int, reply: str) -> None:
        """Take the chunk and answer it."""
        self.stored[str(index)] = b""
        self.answer(reply, {"stream": "S", "seq": index + 1})

    def answer(self, reply: str, body: object) -> None:
        self._dispatch(Message(reply, "", json.dumps(body).encode(), {}))

    @property
    def listeners(self) -> int:
        return len(self._waiting)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "ACK_TIMEOUT", 0.02)


async def run(script: Script, chunks: int = 20, *, window: int = 4, patience: float = 5.0) -> list[int]:
    """Publish and finish; the sequences that the window reports."""
    with PublishWindow(script, "s", message_id="m", window=window, patience=patience) as publisher:
        for index in range(chunks):
            await publisher.send(str(index).encode())
            assert publisher.sent - publisher.answered <= window
        await publisher.finish()
        assert publisher.answered == chunks
    assert script.listeners == 0
    return list(publisher.seqs)


EXPECTED = list(range(1, 21))


async def test_every_chunk_is_answered() -> None:
    script = Script(lambda script, index, reply, _again: script.store(index, reply))
    assert await run(script) == EXPECTED
    assert script.sent == list(range(20))


async def test_lost_acks_are_asked_for_again() -> None:
    def react(script: Script, index: int, reply: str, again: int) -> None:
        if again or index % 3:
            script.store(index, reply)

    assert await run(Script(react)) == EXPECTED


async def test_acks_that_come_late_twice_or_in_another_order() -> None:
    def react(script: Script, index: int, reply: str, _again: int) -> None:
        delay = 0.004 if index % 2 else 0.0
        loop = asyncio.get_running_loop()
        loop.call_later(delay, script.store, index, reply)
        loop.call_later(delay * 2, script.store, index, reply)

    assert await run(Script(react)) == EXPECTED


async def test_what_is_throttled_is_sent_again() -> None:
    def react(script: Script, index: int, reply: str, again: int) -> None:
        if index == 7 and not again:
            script.answer(reply, THROTTLED)
        else:
            script.store(index, reply)

    script = Script(react)
    assert await run(script) == EXPECTED
    assert script.sent.count(7) == 2


@pytest.mark.parametrize(("body", "error"), [(SEALED, ConflictError), (FULL, InsufficientStorageError)])
async def test_what_is_refused_for_good_ends_it(body: object, error: type[BlobError]) -> None:
    def react(script: Script, index: int, reply: str, _again: int) -> None:
        if index == 5:
            script.answer(reply, body)
        else:
            script.store(index, reply)

    script = Script(react)
    with pytest.raises(error):
        await run(script)
    assert script.listeners == 0
    assert max(script.sent) < 10


async def test_patience_ends() -> None:
    script = Script(lambda *_: None)
    with pytest.raises(DeadlineError):
        await run(script, patience=0.1)
    assert script.listeners == 0


async def test_an_interruption_sends_the_unanswered_again() -> None:
    def react(script: Script, index: int, reply: str, again: int) -> None:
        if index == 3 and not again:
            script.epoch += 1
        elif index != 2 or again:
            script.store(index, reply)

    script = Script(react)
    assert await run(script) == EXPECTED
    assert script.sent.count(2) >= 2


async def test_answers_that_make_no_sense_are_ignored() -> None:
    def react(script: Script, index: int, reply: str, _again: int) -> None:
        script.answer(f"{reply}9", {"stream": "S", "seq": 99})
        script.answer(f"{reply}.x", {"stream": "S", "seq": 99})
        script.answer("_INBOX.x.unknown.1", {"stream": "S", "seq": 99})
        script.store(index, reply)

    assert await run(Script(react)) == EXPECTED


@pytest.mark.parametrize("step", range(0, 60, 3))
async def test_a_cancellation_anywhere_leaves_no_listener(step: int) -> None:
    def react(script: Script, index: int, reply: str, _again: int) -> None:
        asyncio.get_running_loop().call_later(0.001, script.store, index, reply)

    script = Script(react)
    task = asyncio.create_task(run(script))
    for _ in range(step):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert script.listeners == 0


def elsewhere_after(answers: int, message_id: str) -> Elsewhere:
    """Sends the chunks to another place once, at the first trouble with so many answered."""
    moved: list[BlobError] = []

    async def elsewhere(trouble: BlobError, silent: float, answered: Callable[[], int]) -> Place | None:
        assert silent >= 0
        if moved or answered() < answers:
            return None
        moved.append(trouble)
        return Place("elsewhere", message_id, 4)

    return elsewhere


async def test_chunks_that_nobody_answers_go_elsewhere_all_of_them() -> None:
    """Late answers of the first place say nothing of the second."""
    first: list[str] = []

    def react(script: Script, index: int, reply: str, again: int) -> None:
        if not again:
            first.append(reply)
            return
        for late in first:
            script.store(int(late.rpartition(".")[2]), late)
        script.answer(reply, {"stream": "S", "seq": 100 + index})

    script = Script(react)
    with PublishWindow(
        script, "s", message_id="m", window=4, patience=5.0, elsewhere=elsewhere_after(0, "other")
    ) as publisher:
        for index in range(8):
            await publisher.send(str(index).encode())
        await publisher.finish()
        assert list(publisher.seqs[:4]) == [100, 101, 102, 103]
        assert publisher.answered == 8
    assert script.listeners == 0


async def test_an_upload_that_goes_on_elsewhere_keeps_what_is_answered() -> None:
    def react(script: Script, index: int, reply: str, again: int) -> None:
        if index < 2 or again:
            script.store(index, reply)

    script = Script(react)
    with PublishWindow(
        script, "s", message_id="m", window=4, patience=5.0, elsewhere=elsewhere_after(2, "m")
    ) as publisher:
        for index in range(4):
            await publisher.send(str(index).encode())
        await publisher.finish()
    assert script.sent == [0, 1, 2, 3, 2, 3]


async def test_what_is_refused_for_now_is_sent_again_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(publish, "ACK_TIMEOUT", 5.0)
    held: list[tuple[int, str]] = []

    def react(script: Script, index: int, reply: str, again: int) -> None:
        if index == 1 and not again:
            script.answer(reply, THROTTLED)
        elif index == 3:
            held.append((index, reply))
            for one in held:
                script.store(*one)
        else:
            held.append((index, reply))

    assert await run(script := Script(react), 4) == [1, 2, 3, 4]
    assert sorted(script.sent) == [0, 1, 1, 2, 3]
