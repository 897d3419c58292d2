"""Messages cut out of a stream of bytes that arrives in pieces of any size."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nats.errors import ProtocolError

from natsblob.broker.receive import LANDING, Cutter


class Sent(NamedTuple):
    """One message, as it is handed on."""

    sid: int
    subject: bytes
    reply: bytes
    header: bytes
    payload: bytes


Received = list[Sent | bytes]

SUBJECTS = st.text("abc.$_", min_size=1, max_size=9).map(str.encode)
BODIES = st.one_of(
    st.binary(max_size=50), st.sampled_from([b"x" * size for size in (65_535, LANDING, 900_000)])
)
MESSAGES = st.builds(
    Sent, st.integers(1, 99), SUBJECTS, st.one_of(st.just(b""), SUBJECTS), st.binary(max_size=20), BODIES
)
LINES = st.sampled_from([b"PING\r\n", b"PONG\r\n", b"+OK\r\n", b"-ERR 'x'\r\n", b'INFO {"a":1}\r\n'])


def feed(data: bytes, sizes: list[int]) -> Received:
    """What is cut out of `data` when it arrives in pieces of these sizes, over and over."""
    received: Received = []
    cutter = Cutter(lambda *message: received.append(Sent(*message)), received.append)
    position = 0
    turn = 0
    while position < len(data):
        room = cutter.room()
        size = min(sizes[turn % len(sizes)], len(room), len(data) - position)
        room[:size] = data[position : position + size]
        cutter.received(size)
        position += size
        turn += 1
    return received


def encoded(item: Sent | bytes) -> bytes:
    if isinstance(item, bytes):
        return item
    to = b" ".join([item.subject, b"%d" % item.sid, *([item.reply] if item.reply else [])])
    if item.header:
        size = len(item.header)
        line = b"HMSG %b %d %d\r\n" % (to, size, size + len(item.payload))
    else:
        line = b"MSG %b %d\r\n" % (to, len(item.payload))
    return line + item.header + item.payload + b"\r\n"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(MESSAGES, LINES), max_size=8),
    st.lists(st.sampled_from([1, 2, 7, 100, 4096, 65_536, 10**9]), min_size=1, max_size=4),
)
def test_whatever_the_pieces_the_messages_are_whole_and_in_order(sent: Received, sizes: list[int]) -> None:
    data = b"".join(encoded(item) for item in sent)
    if len(data) > 100_000:
        sizes = [max(size, 4096) for size in sizes]
    assert feed(data, sizes) == sent


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
    ],
)
def test_a_malformed_message_line_is_an_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        feed(data, [len(data)])


def test_a_line_without_an_end_is_an_error_and_not_kept_for_ever() -> None:
    with pytest.raises(ProtocolError):
        feed(b"INFO " + b"x" * 3_000_000, [500_000])
