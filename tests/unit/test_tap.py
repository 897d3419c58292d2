"""A tap knows all that passed, or says that it knows nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from natsblob import wire
from natsblob.broker.connection import Connection
from natsblob.broker.message import MALFORMED, Message, parse_headers
from natsblob.digest import Digest
from natsblob.hashing import ConcurrentHasher
from natsblob.service import tap as module
from natsblob.service.tap import Taps
from natsblob.testing.payloads import cut, pattern

CHUNK = 100
DATA = pattern(5 * CHUNK + 1)
CHUNKS = list(cut(DATA, CHUNK))


class Passing(Connection):
    """Hands what is published to whoever has subscribed."""

    def __init__(self) -> None:
        self.epoch = 0
        self.handlers: list[Callable[[Message], None]] = []

    @asynccontextmanager
    async def subscribe(
        self, subject: str, handler: Callable[[Message], None], queue: str = ""
    ) -> AsyncIterator[None]:
        self.handlers.append(handler)
        try:
            yield
        finally:
            self.handlers.remove(handler)

    def pass_by(self, index: int, data: bytes, **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        complete = {**wire.chunk_headers("stage", index, data), **named}
        lines = "".join(f"{name}: {value}\r\n" for name, value in complete.items())
        block = f"NATS/1.0\r\n{lines}\r\n".encode()
        for handler in self.handlers:
            handler(Message("s", "", data, parse_headers(block), block))


@pytest.fixture
def passing(monkeypatch: pytest.MonkeyPatch) -> Passing:
    monkeypatch.setattr(module, "_CATCH_UP", 0.05)
    return Passing()


async def test_an_upload_that_passes_in_order_is_known(passing: Passing) -> None:
    async with Taps(passing) as taps:
        await taps.watch("stage", "s")
        for index, chunk in enumerate(CHUNKS):
            passing.pass_by(index, chunk)
        seen = await taps.seen("stage", len(CHUNKS))
        assert seen is not None
        assert (seen.digest, seen.size) == (Digest.of(DATA), len(DATA))
        assert (seen.chunks, seen.chunk_size) == (len(CHUNKS), CHUNK)
        assert await taps.seen("stage", len(CHUNKS) - 1) is None
        assert await taps.seen("another", len(CHUNKS)) is None
    assert passing.handlers == []


ODD: dict[str, Callable[[Passing], None]] = {
    "repeated": lambda passing: passing.pass_by(1, CHUNKS[1]),
    "skipped": lambda passing: passing.pass_by(3, CHUNKS[2]),
    "empty": lambda passing: passing.pass_by(2, b""),
    "longer": lambda passing: passing.pass_by(2, bytes(CHUNK + 1)),
    "shorter": lambda passing: passing.pass_by(2, CHUNKS[2][:-1]),
    "wrong sum": lambda passing: passing.pass_by(2, CHUNKS[2], Blob_Sum="crc32=00000000"),
    "malformed": lambda passing: passing.pass_by(2, CHUNKS[2], **{MALFORMED: "1"}),
    "no index": lambda passing: passing.pass_by(2, CHUNKS[2], Blob_Chunk="x"),
    "a further header": lambda passing: passing.pass_by(2, CHUNKS[2], X="y"),
    "another id": lambda passing: passing.pass_by(2, CHUNKS[2], Nats_Msg_Id="stage.02"),
    "leading zero": lambda passing: passing.pass_by(2, CHUNKS[2], Blob_Chunk="02"),
    "interrupted": lambda passing: setattr(passing, "epoch", 1),
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD.keys())
async def test_what_is_odd_makes_it_know_nothing(passing: Passing, odd: Callable[[Passing], None]) -> None:
    async with Taps(passing) as taps:
        await taps.watch("stage", "s")
        passing.pass_by(0, CHUNKS[0])
        passing.pass_by(1, CHUNKS[1])
        odd(passing)
        for index in range(2, len(CHUNKS)):
            passing.pass_by(index, CHUNKS[index])
        assert await taps.seen("stage", len(CHUNKS)) is None


async def test_more_than_it_may_hold_makes_it_know_nothing(
    passing: Passing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_HELD", 2 * CHUNK)
    async with Taps(passing) as taps:
        await taps.watch("stage", "s")
        for index, chunk in enumerate(CHUNKS):
            passing.pass_by(index, chunk)
        assert await taps.seen("stage", len(CHUNKS)) is None
        await taps.forget("stage")
        assert taps._budget.held == 0


async def test_a_tap_that_is_forgotten_in_the_middle_of_a_chunk_gives_its_room_back(
    passing: Passing, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashing = asyncio.Event()

    async def hang(*_: object) -> None:
        hashing.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(ConcurrentHasher, "update", hang)
    async with Taps(passing) as taps:
        await taps.watch("stage", "s")
        for index, chunk in enumerate(CHUNKS):
            passing.pass_by(index, chunk)
        await hashing.wait()
        await taps.forget("stage")
        assert taps._budget.held == 0
        assert passing.handlers == []


async def test_no_more_than_so_many_are_watched(passing: Passing) -> None:
    async with Taps(passing, most=2) as taps:
        for number in range(5):
            await taps.watch(f"stage {number}", "s")
        assert len(passing.handlers) == 2
        await taps.forget("stage 0")
        await taps.watch("stage 9", "s")
        assert len(passing.handlers) == 2


async def test_a_tap_that_hears_nothing_ends(passing: Passing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE", 0.01)
    async with Taps(passing) as taps:
        await taps.watch("stage", "s")
        async with asyncio.timeout(5):
            while passing.handlers:  # noqa: ASYNC110 - the tap ends by itself
                await asyncio.sleep(0.005)
        assert await taps.seen("stage", 0) is None
