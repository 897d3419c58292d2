"""How much a worker takes on, and where it answers to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natsblob.broker.connection import Connection
from natsblob.errors import BusyError
from natsblob.metrics import Metrics
from natsblob.service.limits import ByteBudget, Limits
from natsblob.service.replies import LONGEST, Replies


def test_one_request_of_any_size_fits_where_nothing_is_held() -> None:
    budget = ByteBudget(10)
    assert budget.hold(1000)
    assert not budget.hold(1)
    budget.release(1000)
    assert budget.hold(10)
    assert not budget.hold(1)


@given(st.lists(st.integers(0, 30), max_size=40))
def test_what_is_held_stays_within_the_bound_or_is_a_single_one(sizes: list[int]) -> None:
    budget = ByteBudget(50)
    held = [size for size in sizes if budget.hold(size)]
    assert budget.held == sum(held) <= 50


def test_what_is_in_flight_is_shown() -> None:
    metrics = Metrics()
    limits = Limits(metrics, max_requests=2, max_bytes=100)
    assert limits.admit(60, "a")
    figures = metrics.figures()
    assert (figures["requests_in_flight"], figures["bytes_in_flight"]) == (1, 60)
    limits.leave(60, "a")
    figures = metrics.figures()
    assert (figures["requests_in_flight"], figures["bytes_in_flight"]) == (0, 0)


def test_a_refused_request_holds_nothing() -> None:
    metrics = Metrics()
    limits = Limits(metrics, max_requests=2, max_bytes=100)
    assert limits.admit(60, "a")
    assert not any(limits.admit(60, "b") for _ in range(3))
    with pytest.raises(BusyError), limits.bytes(60):
        pass
    assert limits.admit(40, "b")
    assert not limits.admit(0, "c")
    assert metrics.figures()["refusals"] == 5
    limits.leave(60, "a")
    limits.leave(40, "b")
    assert limits.admit(100, "a")
    assert limits.admit(0, "b")


def test_one_client_alone_may_have_everything() -> None:
    limits = Limits(Metrics(), max_requests=8, max_bytes=100)
    assert [limits.admit(10, "greedy") for _ in range(9)] == [True] * 8 + [False]


def test_one_client_leaves_room_for_others_once_they_want_it() -> None:
    limits = Limits(Metrics(), max_requests=8, max_bytes=100)
    assert all(limits.admit(1, "greedy") for _ in range(8))
    assert not limits.admit(1, "modest")
    for _ in range(2):
        limits.leave(1, "greedy")
        assert not limits.admit(1, "greedy")
    assert limits.admit(20, "modest")
    assert limits.admit(60, "large")
    assert not limits.admit(0, "third")
    limits.leave(60, "large")
    assert not limits.admit(1, "greedy")
    limits.leave(1, "greedy")
    assert limits.admit(1, "greedy")


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 60), st.booleans()), max_size=60))
def test_who_has_left_holds_nothing(steps: list[tuple[str, int, bool]]) -> None:
    limits = Limits(Metrics(), max_requests=6, max_bytes=100)
    held: list[tuple[int, str]] = []
    for client, size, leaves in steps:
        if leaves and held:
            limits.leave(*held.pop())
        elif limits.admit(size, client):
            held.append((size, client))
    for one in held:
        limits.leave(*one)
    assert [limits.admit(25, client) for client in "abcd"] == [True] * 4


class Nowhere(Connection):
    def __init__(self) -> None:
        """Nothing is published."""


@pytest.mark.parametrize(
    ("subject", "allowed"),
    [
        ("_INBOX.abc.1", True),
        ("_R_.abc", True),
        ("_INBOX.", False),
        ("", False),
        ("_INBOX", False),
        ("_INBOX_worker.a", False),
        ("$JS.API.STREAM.DELETE.OBJ_blobs", False),
        ("x._INBOX.a", False),
        ("_INBOX.*", False),
        ("_INBOX.a.>", False),
        ("_INBOX." + "a" * LONGEST, False),
    ],
)
def test_reply_subjects(subject: str, allowed: bool) -> None:
    metrics = Metrics()
    assert Replies(Nowhere(), metrics, ("_INBOX.", "_R_.")).allows(subject) is allowed
    assert metrics.figures()["dropped_replies"] == (0 if allowed else 1)
