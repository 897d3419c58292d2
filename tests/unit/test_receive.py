"""What a server must not send, and what a reading must not do to the one before it."""

from __future__ import annotations

import tracemalloc

import pytest
from nats.errors import ProtocolError

from natsblob.broker.receive import Cutter


def feed(data: bytes) -> None:
    cutter = Cutter(lambda *_: None, lambda _: None)
    while data:
        piece = data[: len(cutter.room())]
        cutter.room()[: len(piece)] = piece
        cutter.received(len(piece))
        data = data[len(piece) :]


def test_a_payload_keeps_its_bytes_when_the_next_ones_arrive() -> None:
    kept: list[bytes] = []
    cutter = Cutter(lambda *message: kept.append(message[4]), lambda _: None)
    for body in (b"first!", b"second"):
        data = b"MSG a 1 6\r\n%b\r\n" % body
        cutter.room()[: len(data)] = data
        cutter.received(len(data))
    assert kept == [b"first!", b"second"]


@pytest.mark.parametrize(
    "data",
    [
        b"MSG a\r\n",
        b"MSG a 1 x\r\n",
        b"HMSG a 1 5\r\n",
        b"MSG a b c d e\r\n",
        b"HMSG a 1 9 5\r\n",
        b"MSG a 1 -5\r\n",
        b"MSG a 1 +5\r\n",
        b"MSG a 1 1_0\r\n",
        b"MSG a 1 \xd9\xa1\r\n",
        b"MSG a -1 5\r\n",
        b"HMSG a 1 -1 5\r\n",
        b"MSG a 1 200000000\r\n",
        b"MSG a 1 %s\r\n" % (b"9" * 5000),
        b"HMSG a 1 5 %s\r\n" % (b"9" * 19),
    ],
)
def test_a_malformed_message_line_is_an_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        feed(data)


def test_a_line_without_an_end_is_an_error_and_not_kept_for_ever() -> None:
    with pytest.raises(ProtocolError):
        feed(b"INFO " + b"x" * 3_000_000)


def test_what_is_announced_is_not_allocated_before_it_arrives() -> None:
    size = 100_000_000
    cutter = Cutter(lambda *_: None, lambda _: None)
    data = b"MSG a 1 %d\r\n" % size
    tracemalloc.start()
    try:
        cutter.room()[: len(data)] = data
        cutter.received(len(data))
        arrived = 0
        while arrived < 4_000_000:
            arrived += len(cutter.room())
            cutter.received(len(cutter.room()))
        assert tracemalloc.get_traced_memory()[1] < 4 * arrived
    finally:
        tracemalloc.stop()


def test_the_room_for_one_large_message_is_given_back() -> None:
    kept: list[int] = []
    cutter = Cutter(lambda *message: kept.append(len(message[4])), lambda _: None)
    usual = len(cutter.room())
    size = 20 * usual
    data = b"MSG a 1 %d\r\n" % size + bytes(size) + b"\r\n"
    while data:
        room = cutter.room()
        piece = data[: len(room)]
        room[: len(piece)] = piece
        cutter.received(len(piece))
        data = data[len(piece) :]
    assert kept == [size]
    assert len(cutter.room()) == usual
