"""Frames in parts: put together in their turn, and dropped otherwise."""

from __future__ import annotations

from itertools import pairwise

import pytest

from natsblob.broker.message import Message
from natsblob.broker.parts import LARGEST, Parts
from natsblob.wire import CHUNK, PART, SUM

WHOLE = bytes(range(100))


def frame(offset: int, end: int, *, chunk: int = 3, length: int = len(WHOLE)) -> Message:
    return Message(
        "_INBOX.a", "", WHOLE[offset:end], {CHUNK: str(chunk), PART: f"{offset}/{length}", SUM: "x"}
    )


def test_a_frame_without_a_part_is_whole() -> None:
    whole = Message("_INBOX.a", "", WHOLE, {CHUNK: "3"})
    assert Parts().add(whole) is whole


@pytest.mark.parametrize("cuts", [[0, 100], [0, 50, 100], [0, 1, 2, 99, 100], list(range(101))])
def test_parts_become_the_chunk(cuts: list[int]) -> None:
    parts = Parts()
    for _ in range(2):
        *early, last = [parts.add(frame(begin, end)) for begin, end in pairwise(cuts)]
        assert not any(early)
        assert last == Message("_INBOX.a", "", WHOLE, {CHUNK: "3", SUM: "x"})


def test_a_stored_message_is_never_a_part() -> None:
    stored = Message("_INBOX.a", "", b"x", {CHUNK: "3", PART: "0/2", "Nats-Sequence": "7"})
    assert Parts().add(stored) is stored


@pytest.mark.parametrize(
    "sent",
    [
        [frame(0, 50), frame(60, 100)],
        [frame(50, 100)],
        [frame(0, 50), frame(0, 50)],
        [frame(0, 50), frame(50, 100, chunk=4)],
        [frame(0, 50), frame(50, 100, length=101)],
        [frame(50, 100), frame(0, 50)],
        [frame(0, 100, length=99)],
        [frame(0, 0, length=0)],
        [frame(0, 100, length=LARGEST + 1)],
    ],
)
def test_what_is_out_of_turn_makes_no_chunk(sent: list[Message]) -> None:
    parts = Parts()
    assert [parts.add(one) for one in sent] == [None] * len(sent)


MALFORMED = ["", "x", "0", "0/", "/5", "-1/5", "0/5/6", "0 /5", "\u0660/5", f"{10**20}/5"]


@pytest.mark.parametrize("text", MALFORMED)
def test_a_malformed_part_is_dropped(text: str) -> None:
    assert Parts().add(Message("_INBOX.a", "", b"x", {CHUNK: "3", PART: text})) is None


def test_one_that_begins_anew_forgets_the_first() -> None:
    parts = Parts()
    parts.add(frame(0, 60, chunk=1))
    parts.add(frame(0, 50))
    whole = parts.add(frame(50, 100))
    assert whole is not None
    assert whole.data == WHOLE
