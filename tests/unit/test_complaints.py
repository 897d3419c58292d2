"""What a server complains about is logged, and fills no disk."""

from __future__ import annotations

import asyncio
import logging

import pytest

from natsblob.broker.complaints import MOST, PERIOD, Complaints
from natsblob.logs import Event


def logged(caplog: pytest.LogCaptureFixture) -> list[Event]:
    return [record.msg for record in caplog.records if isinstance(record.msg, Event)]


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> list[float]:
    caplog.set_level(logging.WARNING, "natsblob")
    now = [1000.0]
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now[-1])
    return now


async def test_a_complaint_is_logged_once_in_a_period(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    complaints = Complaints()
    for _ in range(50):
        complaints.log("nothing listens there")
    clock.append(clock[-1] + PERIOD)
    complaints.log("nothing listens there")
    assert [event.fields["left_out"] for event in logged(caplog)] == [0, 49]


async def test_complaints_that_all_differ_are_bounded_too(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    complaints = Complaints()
    for number in range(1000):
        complaints.log(f"no permission for {number}")
    assert len(logged(caplog)) == MOST
    clock.append(clock[-1] + PERIOD)
    complaints.log("another")
    assert logged(caplog)[-1].fields["left_out"] == 1000 - MOST
