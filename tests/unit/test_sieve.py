"""The set that may take others for its own: never the other way round, and seldom."""

from __future__ import annotations

from natsblob.maintenance.sieve import Sieve


def test_it_knows_what_was_added_and_little_else() -> None:
    sieve = Sieve(20_000)
    added = [f"added {number}" for number in range(20_000)]
    for name in added:
        sieve.add(name)
    assert all(name in sieve for name in added)
    assert sum(f"other {number}" in sieve for number in range(20_000)) < 100


def test_an_empty_one_knows_nothing() -> None:
    assert not any(f"other {number}" in Sieve(0) for number in range(10))
