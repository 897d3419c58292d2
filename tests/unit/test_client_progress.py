"""Progress never falls and ends at the size."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from natsblob.client.progress import Gauge


@given(st.lists(st.integers(0, 1000)), st.none() | st.just(1000))
def test_reports_grow_whatever_is_measured_and_end_once(measured: list[int], total: int | None) -> None:
    seen: list[tuple[int, int | None]] = []
    gauge = Gauge(lambda done, of: seen.append((done, of)), total)
    for done in measured:
        gauge.at(done)
    gauge.complete(1000)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len(set(seen)) == len(seen)
    assert seen[-1] == (1000, 1000)


def test_nobody_is_told_where_nobody_asks() -> None:
    gauge = Gauge(None, None)
    gauge.at(5)
    gauge.complete(10)
