"""Reading windows of frames that come out of order, twice, damaged, too few, or not at all."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import aclosing

import pytest

from natsblob import wire
from natsblob.broker import frames
from natsblob.broker.connection import Connection
from natsblob.broker.frames import read_frames
from natsblob.broker.message import Message
from natsblob.errors import BlobCorruptError, BlobError, DeadlineError, UnavailableError

CHUNKS = [f"chunk {index}".encode() for index in range(23)]

Frames = list[tuple[int, bytes]]
Change = Callable[[Frames, int], Frames | None]
"""What comes of the frames of the n-th asking; `None` for nothing at all, not even the end."""


class Wire(Connection):
    """Only inboxes."""

    def __init__(self) -> None:
        self._waiting = {}
        self._next_token = 0
        self._inbox = "_INBOX.x"
        self.epoch = 0

    @property
    def listeners(self) -> int:
        return len(self._waiting)


class Source:
    """Answers each asking with what `change` makes of the right frames, and then an end frame."""

    def __init__(self, wire_: Wire, change: Change = lambda frames, _: frames) -> None:
        self._wire = wire_
        self._change = change
        self.asked: list[tuple[int, int, int]] = []
        self.why: BlobError | None = None

    async def ask(self, first: int, count: int, reply: str, attempt: int) -> None:
        if self.why is not None and attempt >= 2:
            raise self.why
        right = [(index, CHUNKS[index]) for index in range(first, first + count)]
        changed = self._change(right, len(self.asked))
        self.asked.append((first, count, attempt))
        if changed is None:
            return
        sent = [Message(reply, "", data, {wire.CHUNK: str(index)}) for index, data in changed]
        sent.append(Message(reply, "", b"", {wire.STATUS: "204"}))
        for message in sent:
            asyncio.get_running_loop().call_soon(self._wire._dispatch, message)

    def place(self, frame: Message) -> int | None:
        index = wire.chunk_index(frame.headers)
        return index if index is not None and frame.data == CHUNKS[index % len(CHUNKS)] else None

    def end(self, frame: Message) -> BlobError | None:
        return None if frame.status == "204" else UnavailableError("ended early")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "STALL_TIMEOUT", 0.02)


async def read(source: Source, chunks: range = range(23), *, patience: float = 5.0) -> list[bytes]:
    found = read_frames(source._wire, source, chunks, window=5, ahead=2, patience=patience)
    async with aclosing(found):
        got = [chunk async for chunk in found]
    assert source._wire.listeners == 0
    return got


def shuffled(frames: Frames, number: int) -> Frames:
    return random.Random(number).sample(frames, len(frames))


def twice(frames: Frames, _: int) -> Frames:
    return [frame for frame in frames for _ in range(2)]


def first_only(frames: Frames, _: int) -> Frames:
    return frames[:1]


def last_only(frames: Frames, _: int) -> Frames:
    return frames[-1:]


def none_at_first(frames: Frames, number: int) -> Frames | None:
    return frames if number % 3 else None


def ends_at_first(frames: Frames, number: int) -> Frames:
    return frames if number % 2 else []


def damaged(frames: Frames, number: int) -> Frames:
    return [(index, data if (index + number) % 3 else b"junk") for index, data in frames]


def strangers(frames: Frames, _: int) -> Frames:
    return [(index + 1000, data) for index, data in frames] + [(0, CHUNKS[0]), *frames]


@pytest.mark.parametrize(
    "change",
    [shuffled, twice, first_only, last_only, none_at_first, ends_at_first, damaged, strangers],
    ids=lambda change: change.__name__,
)
async def test_what_is_missing_is_asked_for_again(change: Change) -> None:
    assert await read(Source(Wire(), change)) == CHUNKS


@pytest.mark.parametrize("chunks", [range(0), range(1), range(4, 5), range(3, 14), range(22, 23)])
async def test_ranges(chunks: range) -> None:
    source = Source(Wire())
    assert await read(source, chunks) == CHUNKS[chunks.start : chunks.stop]
    assert sum(count for _, count, _ in source.asked) == len(chunks)


async def test_windows_are_asked_for_ahead_and_no_further() -> None:
    source = Source(Wire())
    found = read_frames(source._wire, source, range(23), window=5, ahead=2, patience=5)
    async with aclosing(found):
        await anext(found)
        assert [(first, count) for first, count, _ in source.asked] == [(0, 5), (5, 5)]
    assert source._wire.listeners == 0


async def test_patience_ends() -> None:
    source = Source(Wire(), lambda _frames, _number: None)
    with pytest.raises(DeadlineError):
        await read(source, patience=0.1)
    assert source._wire.listeners == 0


async def test_a_final_reason_ends_it() -> None:
    source = Source(Wire(), lambda _frames, _number: [])
    source.why = BlobCorruptError("gone")
    with pytest.raises(BlobCorruptError):
        await read(source)
    assert source._wire.listeners == 0


async def test_an_interruption_asks_again() -> None:
    connection = Wire()

    def change(frames: Frames, number: int) -> Frames | None:
        if number == 0:
            connection.epoch += 1
            return None
        return frames

    assert await read(Source(connection, change)) == CHUNKS


async def test_frames_of_an_earlier_asking_do_no_harm() -> None:
    connection = Wire()
    late: list[tuple[str, Frames]] = []

    class Late(Source):
        async def ask(self, first: int, count: int, reply: str, attempt: int) -> None:
            for subject, earlier in late:
                for index, _ in earlier:
                    connection._dispatch(Message(subject, "", b"late", {wire.CHUNK: str(index)}))
            late.append((reply, [(index, b"") for index in range(first, first + count)]))
            await super().ask(first, count, reply, attempt)

    assert await read(Late(connection, first_only)) == CHUNKS


@pytest.mark.parametrize("step", range(0, 40, 2))
async def test_a_cancellation_anywhere_leaves_no_listener(step: int) -> None:
    source = Source(Wire(), first_only)
    task = asyncio.create_task(read(source))
    for _ in range(step):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert source._wire.listeners == 0


async def test_frames_of_no_use_keep_nobody_waiting_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "STALL_TIMEOUT", 3.0)
    wire_ = Wire()
    replies: list[str] = []

    class Silent(Source):
        async def ask(self, first: int, count: int, reply: str, attempt: int) -> None:
            await super().ask(first, count, reply, attempt)
            replies.append(reply)

    source = Silent(wire_, lambda _frames, _number: None)

    async def chatter() -> None:
        while True:
            for reply in replies:
                wire_._dispatch(Message(reply, "", b"junk", {wire.CHUNK: "0"}))
            await asyncio.sleep(0.005)

    talking = asyncio.create_task(chatter())
    try:
        with pytest.raises(DeadlineError):
            async with asyncio.timeout(5):
                await read(source, patience=0.1)
    finally:
        talking.cancel()
