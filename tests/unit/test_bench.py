"""The benchmark's arithmetic: medians, ratios of one round, percentiles, and what /proc says."""

from __future__ import annotations

import json
import os

import pytest

from bench import guard
from bench.meter import Meter, Usage, parse_cpu, parse_peak
from bench.processes import BARE, OURS, Kind
from bench.profiles import BARE_LOOP, GIB, MIB, PROFILES, SERVICE, Deployment, Workload
from bench.results import Key, Results, Sample, as_json, table
from natsblob.cli.bench import percentile
from natsblob.wire import MAX_BATCH

DEPLOYMENT = Deployment()
WORKLOAD = Workload(256 * MIB)


def key(peer: str, verb: str = "put") -> Key:
    return Key(DEPLOYMENT, WORKLOAD, verb, peer)


def sample(seconds: float, *, held: int = 0, cpu: float = 0.0, peak: int = 0) -> Sample:
    usage = {"client": Usage(cpu, peak), "server": Usage(2 * cpu, peak)}
    return Sample(1, seconds, usage, latencies=[seconds], first_bytes=[seconds / 10], held=held)


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([7.0], 50, 7.0),
        ([7.0], 99.9, 7.0),
        ([1.0, 2.0], 50, 1.0),
        ([1.0, 2.0, 3.0], 50, 2.0),
        ([float(n) for n in range(1, 101)], 99, 99.0),
        ([float(n) for n in range(1, 101)], 99.9, 100.0),
        ([float(n) for n in range(1, 1001)], 99.9, 999.0),
    ],
)
def test_a_percentile_is_a_value_that_occurred(values: list[float], percent: float, expected: float) -> None:
    assert percentile(values, percent) == expected


def test_a_ratio_compares_within_rounds() -> None:
    # The machine was ten times slower in the second round: between rounds nothing can be compared.
    results = Results()
    for number, (ours, bare) in enumerate([(2.0, 1.0), (20.0, 10.0), (4.0, 1.0)]):
        results.add(key(SERVICE), number, sample(ours))
        results.add(key(BARE_LOOP), number, sample(bare))
    assert results.ratio(key(SERVICE), BARE_LOOP) == 0.5


def test_rounds_that_only_one_has_are_not_compared() -> None:
    results = Results()
    results.add(key(SERVICE), 0, sample(1.0))
    results.add(key(SERVICE), 1, sample(4.0))
    assert results.ratio(key(SERVICE), BARE_LOOP) is None
    results.add(key(BARE_LOOP), 1, sample(1.0))
    assert results.ratio(key(SERVICE), BARE_LOOP) == 0.25


def test_a_row_has_the_median_and_all_cpu_per_gib() -> None:
    results = Results()
    for number, seconds in enumerate([1.0, 4.0, 2.0]):
        results.add(key(SERVICE), number, sample(seconds, cpu=0.5))
    (row,) = results.rows()
    assert (row.rate, row.slowest, row.fastest) == (0.5, 0.25, 1.0)
    assert row.throughput == 128.0
    assert row.cpu_per_gib == pytest.approx({"client": 1.5 * GIB / row.moved, "server": 3 * GIB / row.moved})
    assert row.percentiles["p50"] == 2.0
    assert row.first_byte == pytest.approx(0.2)


def test_memory_is_without_what_the_benchmark_holds_itself() -> None:
    results = Results()
    results.add(key(SERVICE), 0, sample(1.0, held=100, peak=150))
    (row,) = results.rows()
    assert row.peak == {"client": 50, "server": 150}


def test_cpu_is_not_divided_by_next_to_nothing() -> None:
    small = Key(DEPLOYMENT, Workload(4096), "put", SERVICE)
    results = Results()
    results.add(small, 0, sample(1.0, cpu=0.01))
    (row,) = results.rows()
    assert row.cpu_per_gib == {}


def test_results_and_failures_are_in_table_and_json() -> None:
    results = Results()
    results.add(key(SERVICE), 0, sample(1.0))
    results.fail(key("nats.go"), "too many requests")
    written = json.loads(json.dumps(as_json(results, {})))
    assert [entry["peer"] for entry in written["results"]] == [SERVICE]
    assert [entry["peer"] for entry in written["failures"]] == ["nats.go"]
    text = "\n".join(table(results))
    assert SERVICE in text
    assert "nats.go" in text


@pytest.mark.parametrize(
    ("put", "get", "expected"),
    [
        (1.0, 1.0, []),
        (guard.FLOORS["put"], guard.FLOORS["get"], []),
        (guard.FLOORS["put"] / 2, 1.0, ["put"]),
        (None, 0.0, ["put", "get"]),
    ],
)
def test_the_guard_fails_on_a_large_loss_only(
    put: float | None, get: float | None, expected: list[str]
) -> None:
    assert guard.lost({"put": put, "get": get}) == expected


def test_the_guard_compares_with_the_bare_loop() -> None:
    results = Results()
    for verb in guard.FLOORS:
        results.add(guard.key_of(verb), 0, sample(3.0))
        results.add(guard.key_of(verb, BARE_LOOP), 0, sample(1.5))
    assert guard.verdict(results) == {"put": 0.5, "get": 0.5}


def test_cpu_of_a_process_whose_name_steers() -> None:
    tick = 1 / os.sysconf("SC_CLK_TCK")
    assert parse_cpu("42 (a) b (c) S 1 1 1 0 -1 0 0 0 0 0 30 12 0 0 20 0 1 0") == pytest.approx(42 * tick)


def test_peak_of_a_process() -> None:
    assert parse_peak("Name:\tx\nVmPeak:\t  9 kB\nVmHWM:\t    2048 kB\nVmRSS:\t 1 kB\n") == 2048 * 1024
    assert parse_peak("Name:\tx\n") == 0


def test_a_meter_reads_this_process() -> None:
    meter = Meter({"client": [os.getpid()], "server": []})
    usage = meter.read()
    assert usage["client"].peak > 0
    assert usage["client"].cpu >= 0
    assert usage["server"] == Usage(0, 0)


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_ask_for_what_peers_can_do(name: str) -> None:
    profile = PROFILES[name]
    assert profile.rounds >= 5
    for workload in profile.workloads:
        assert workload.at_once <= workload.count
        assert workload.queries <= workload.count
        assert not workload.batches or workload.count >= MAX_BATCH


@pytest.mark.parametrize("kind", [*OURS, *BARE], ids=lambda kind: kind.name)
def test_peers_of_the_service_are_measured_with_the_worker(kind: Kind) -> None:
    assert kind.uses_worker == ("clear" in kind.verbs)
