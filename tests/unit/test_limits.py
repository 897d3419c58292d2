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
    assert limits.admit(60)
    figures = metrics.figures()
    assert (figures["requests_in_flight"], figures["bytes_in_flight"]) == (1, 60)
    limits.leave(60)
    figures = metrics.figures()
    assert (figures["requests_in_flight"], figures["bytes_in_flight"]) == (0, 0)


def test_a_refused_request_holds_nothing() -> None:
    metrics = Metrics()
    limits = Limits(metrics, max_requests=2, max_bytes=100)
    assert limits.admit(60)
    assert not any(limits.admit(60) for _ in range(3))
    with pytest.raises(BusyError), limits.bytes(60):
        pass
    assert limits.admit(40)
    assert not limits.admit(0)
    assert metrics.figures()["refusals"] == 5
    for size in (60, 40):
        limits.leave(size)
    assert limits.admit(100)
    assert limits.admit(0)


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
