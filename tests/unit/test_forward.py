"""Chunks on their way through a worker, against a stream that answers late, badly or not at all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from typing import Any, cast

import pytest

from natsblob import wire
from natsblob.broker.connection import Connection
from natsblob.broker.message import Message
from natsblob.chunking import Seen
from natsblob.digest import Digest
from natsblob.errors import UnavailableError
from natsblob.metrics import Metrics
from natsblob.service import forward
from natsblob.service.forward import Forwarder
from natsblob.service.messages import Reply
from natsblob.service.replies import Replies

CHUNK = 8
STAGE = "s" * 22
BUSY = 429


class Answers(Replies):
    """What publishers of chunks hear."""

    def __init__(self) -> None:
        self.heard: dict[str, dict[str, Any]] = {}
        self.came = asyncio.Event()

    def allows(self, subject: str) -> bool:
        return bool(subject)

    def answer_now(self, subject: str, reply: Reply) -> None:
        self.heard[subject] = json.loads(reply.data)
        self.came.set()

    async def to(self, subject: str) -> dict[str, Any]:
        async with asyncio.timeout(5):
            while subject not in self.heard:
                self.came.clear()
                await self.came.wait()
        return self.heard.pop(subject)


class Stream:
    """Stores what comes and answers as it is told; stands for both connections of a worker."""

    def __init__(self) -> None:
        self.react: Callable[[int, str], None] = self.store
        self.published: list[tuple[int, bytes]] = []
        self.headers: list[wire.Headers] = []
        self.came = asyncio.Event()
        self.name: Callable[[bytes], None] = lambda _: None
        self._take: Callable[[Message], None] = lambda _: None
        self._acks: Callable[[Message], None] = lambda _: None
        self._stored: dict[int, int] = {}

    def inbox(self, handler: Callable[[Message], None]) -> AbstractContextManager[str]:
        self._acks = handler
        return nullcontext("_INBOX.acks")

    @asynccontextmanager
    async def subscribe(self, subject: str, handler: Callable[[Message], None]) -> AsyncIterator[None]:
        if subject == "named":
            self.name = lambda data: handler(Message(subject, "", data, {}))
        else:
            self._take = handler
        yield

    async def publish(self, _: str, data: bytes, *, reply: str, headers: wire.Headers) -> None:
        await asyncio.sleep(0)
        index = int(headers[wire.CHUNK])
        self.published.append((index, data))
        self.headers.append(headers)
        self.came.set()
        self.react(index, reply)

    async def times(self, count: int) -> None:
        """Returns when so many chunks have been published."""
        async with asyncio.timeout(5):
            while len(self.published) < count:
                self.came.clear()
                await self.came.wait()

    def store(self, index: int, reply: str) -> None:
        known = index in self._stored
        seq = self._stored.setdefault(index, 10 + len(self._stored))
        self.answer(reply, {"stream": "S", "seq": seq, "duplicate": known})

    def answer(self, reply: str, body: object) -> None:
        self._acks(Message(reply, "", json.dumps(body).encode(), {}))

    def chunk(self, index: int, data: bytes, reply: str, **headers: str) -> None:
        given = {wire.CHUNK: str(index), wire.SUM: wire.chunk_sum(data), **headers}
        self._take(Message(f"relay.{STAGE}", reply, data, given))


class Lab:
    def __init__(self) -> None:
        self.stream = Stream()
        self.answers = Answers()
        connection = cast("Connection", self.stream)
        self.forwarder = Forwarder(
            connection,
            connection,
            self.answers,
            chunk_subject=lambda stage: f"chunks.{stage}",
            beneath="relay",
            metadata="named",
            window=4,
        )

    async def seen(self, chunks: int) -> Seen | None:
        return await self.forwarder.seen(STAGE, chunks)


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    Metrics()
    one = Lab()
    async with one.forwarder.taking():
        one.forwarder.begin(STAGE, is_whole=True, chunk_size=CHUNK)
        yield one


def of(index: int) -> bytes:
    return str(index).encode() * CHUNK


async def test_what_went_through_in_order_is_known(lab: Lab) -> None:
    for index in range(3):
        lab.stream.chunk(index, of(index), f"r{index}")
        assert (await lab.answers.to(f"r{index}"))["seq"] == 10 + index
    lab.stream.chunk(3, b"end", "r3")
    await lab.answers.to("r3")
    seen = await lab.seen(4)
    assert seen is not None
    assert (seen.size, seen.chunks, seen.chunk_size) == (3 * CHUNK + 3, 4, CHUNK)
    assert seen.digest == Digest.of(of(0) + of(1) + of(2) + b"end")
    assert seen.seqs is not None
    assert list(seen.seqs) == [10, 11, 12, 13]
    assert await lab.seen(3) is None
    assert await lab.seen(5) is None


async def test_the_headers_are_the_workers_own(lab: Lab) -> None:
    lab.stream.chunk(0, of(0), "r", **{"Nats-Rollup": "all", "Nats-Expected-Last-Msg-Id": "x", "Other": "y"})
    await lab.answers.to("r")
    assert lab.stream.headers == [wire.chunk_headers(STAGE, 0, of(0))]


async def test_a_lost_ack_is_made_up_for_by_a_repeat(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "REPEAT_AFTER", -1.0)
    lab.stream.react = lambda _index, _reply: None
    lab.stream.chunk(0, of(0), "first")
    await lab.stream.times(1)
    await asyncio.sleep(0)
    lab.stream.react = lab.stream.store
    lab.stream.chunk(0, of(0), "second")
    assert (await lab.answers.to("second"))["seq"] == 10
    assert lab.stream.published == [(0, of(0))] * 2
    assert "first" not in lab.answers.heard
    assert await lab.seen(1) is not None


async def test_a_chunk_on_its_way_is_not_published_again(lab: Lab) -> None:
    lab.stream.react = lambda _index, _reply: None
    lab.stream.chunk(0, of(0), "first")
    await lab.stream.times(1)
    lab.stream.chunk(0, of(0), "second")
    lab.stream.store(0, f"_INBOX.acks.{STAGE}.0")
    assert (await lab.answers.to("second"))["seq"] == 10
    assert len(lab.stream.published) == 1


@pytest.mark.parametrize(
    "refusal",
    [
        {"error": {"code": 503, "err_code": 10077, "description": "maximum bytes exceeded"}},
        {"error": {"code": 429, "err_code": 10167, "description": "too many requests"}},
    ],
)
async def test_a_refusal_is_passed_on_and_a_repeat_goes_through(lab: Lab, refusal: dict[str, Any]) -> None:
    lab.stream.react = lambda _index, reply: lab.stream.answer(reply, refusal)
    lab.stream.chunk(0, of(0), "first")
    assert (await lab.answers.to("first"))["error"]["code"] in (429, 507)
    lab.stream.react = lab.stream.store
    lab.stream.chunk(0, of(0), "second")
    assert (await lab.answers.to("second"))["seq"] == 10
    assert await lab.seen(1) is not None


async def test_a_connection_that_is_behind_refuses_for_now(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    async def behind(*_: object, **__: object) -> None:
        raise UnavailableError("the connection is interrupted")

    with monkeypatch.context() as patch:
        patch.setattr(lab.stream, "publish", behind)
        lab.stream.chunk(0, of(0), "first")
        assert (await lab.answers.to("first"))["error"]["retryable"] is True
    lab.stream.chunk(0, of(0), "second")
    assert (await lab.answers.to("second"))["seq"] == 10
    assert await lab.seen(1) is not None


async def test_what_another_may_have_stored_is_not_known(lab: Lab) -> None:
    lab.stream.react = lambda _, reply: lab.stream.answer(reply, {"stream": "S", "seq": 3, "duplicate": True})
    lab.stream.chunk(0, of(0), "r")
    await lab.answers.to("r")
    assert await lab.seen(1) is None


async def test_chunks_that_were_stored_in_another_order_are_not_known(lab: Lab) -> None:
    seqs = iter((20, 19))
    lab.stream.react = lambda _, reply: lab.stream.answer(reply, {"stream": "S", "seq": next(seqs)})
    for index in range(2):
        lab.stream.chunk(index, of(index), f"r{index}")
        await lab.answers.to(f"r{index}")
    assert await lab.seen(2) is None


async def test_room_comes_back_with_every_answer_and_every_end(lab: Lab) -> None:
    for index in range(50):
        lab.stream.chunk(index, of(index), f"r{index}")
        await lab.answers.to(f"r{index}")
    lab.stream.react = lambda _index, _reply: None
    for index in range(50, 54):
        lab.stream.chunk(index, of(index), f"r{index}")
    lab.stream.chunk(60, of(1), "far")
    assert (await lab.answers.to("far"))["error"]["code"] == BUSY
    lab.forwarder.forget(STAGE)
    assert lab.forwarder._budget.held == lab.forwarder._early.held == 0
    lab.stream.chunk(54, of(1), "late")
    assert (await lab.answers.to("late"))["error"]["name"] == "upload_expired"


async def test_chunks_that_wait_for_one_that_does_not_come_go_on(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "IN_ORDER_WITHIN", 0.01)
    lab.stream.chunk(2, of(2), "r2")
    lab.stream.chunk(1, of(1), "r1")
    assert (await lab.answers.to("r1"))["seq"] == 10
    assert (await lab.answers.to("r2"))["seq"] == 11
    lab.stream.chunk(0, of(0), "r0")
    assert (await lab.answers.to("r0"))["seq"] == 12
    assert await lab.seen(3) is None


async def test_a_chunk_that_waits_is_not_exchanged_for_a_larger_one_with_its_sum(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its room was taken by the size of the first one, and would be given back by that of the other."""
    monkeypatch.setattr(forward, "IN_ORDER_WITHIN", 0.01)
    small, large = b"1", b"abcdo\x14S\x80"
    assert wire.crc32(small) == wire.crc32(large)
    lab.stream.chunk(1, small, "small")
    lab.stream.chunk(1, large, "large")
    assert (await lab.answers.to("large"))["seq"] == 10
    assert lab.stream.published == [(1, small)]
    assert lab.forwarder._early.held == 0


async def test_chunks_may_grow_while_a_worker_runs(lab: Lab) -> None:
    """As they do when the server's max_payload was raised."""
    large = bytes(4 * CHUNK)
    lab.forwarder.forget(STAGE)
    lab.forwarder.begin(STAGE, is_whole=True, chunk_size=len(large))
    lab.stream.chunk(0, large, "r0")
    assert (await lab.answers.to("r0"))["seq"] == 10
    lab.stream.chunk(1, large + b"1", "r1")
    assert (await lab.answers.to("r1"))["error"]["name"] == "bad_request"


async def test_an_upload_that_was_forgotten_publishes_no_more_if_it_is_opened_again(lab: Lab) -> None:
    for index in range(3):
        lab.stream.chunk(index, of(index), f"r{index}")
    await lab.stream.times(1)
    lab.forwarder.forget(STAGE)
    lab.forwarder.begin(STAGE, is_whole=False, chunk_size=CHUNK)
    published = len(lab.stream.published)
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(lab.stream.published) == published


async def test_a_chunk_that_has_waited_does_not_go_on_into_a_commit(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "IN_ORDER_WITHIN", 0.01)
    lab.stream.chunk(1, of(1), "r1")
    async with lab.forwarder.held_back(STAGE):
        assert (await lab.answers.to("r1"))["error"]["code"] == BUSY
    assert lab.stream.published == []
    assert lab.forwarder._early.held == 0


@pytest.mark.parametrize("metadata", [b"", b"[", b"\xff", b'{"nuid":1}', b'{"nuid":"another"}'])
async def test_other_metadata_changes_nothing(lab: Lab, metadata: bytes) -> None:
    lab.stream.name(metadata)
    lab.stream.chunk(0, of(0), "r")
    assert (await lab.answers.to("r"))["seq"] == 10


async def test_what_has_been_named_takes_no_more_chunks(lab: Lab) -> None:
    lab.stream.name(json.dumps({"name": "n", "nuid": STAGE, "chunks": 3}).encode())
    lab.stream.chunk(0, of(0), "r")
    assert (await lab.answers.to("r"))["error"]["name"] == "upload_expired"
    assert lab.stream.published == []


async def test_a_stopping_worker_waits_for_what_it_has_published() -> None:
    one = Lab()
    replies: list[str] = []
    one.stream.react = lambda _, reply: replies.append(reply)
    async with one.forwarder.taking():
        one.forwarder.begin(STAGE, is_whole=True, chunk_size=CHUNK)
        one.stream.chunk(0, of(0), "r")
        await one.stream.times(1)
        asyncio.get_running_loop().call_later(0.01, one.stream.store, 0, replies[0])
    assert one.answers.heard["r"]["seq"] == 10
