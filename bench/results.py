"""Samples of rounds, and what they come to: medians, percentiles, ratios, a table and JSON."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Final, NamedTuple

from bench.meter import Usage
from bench.profiles import BARE_LOOP, GIB, MIB, RELAYED, SERVICE, Deployment, Workload
from natsblob.cli.bench import percentile
from natsblob.config.quantity import format_size
from natsblob.wire import MAX_BATCH

_TELLING: Final = 256 * MIB
"""Bytes from which CPU seconds, counted in hundredths, are worth a division."""
PERCENTILES: Final = (50, 99, 99.9)
ROLES: Final = ("client", "worker", "server")
_BATCHES: Final = frozenset({"has_batch", "has_cold"})
MOVES_BYTES: Final = frozenset({"put", "get"})


@dataclass(frozen=True, slots=True)
class Sample:
    """One verb of one peer in one round. Times in seconds, sizes in bytes."""

    operations: int
    seconds: float
    usage: Mapping[str, Usage]
    latencies: Sequence[float] = ()
    first_bytes: Sequence[float] = ()
    held: int = 0
    """Bytes that the benchmark kept in the client's memory to put."""

    @property
    def rate(self) -> float:
        return self.operations / self.seconds


class Key(NamedTuple):
    """What is compared with one another has the first three in common."""

    deployment: Deployment
    workload: Workload
    verb: str
    peer: str


@dataclass
class Results:
    """Samples by round, and what failed instead."""

    samples: dict[Key, dict[int, Sample]] = field(default_factory=lambda: defaultdict(dict))
    failures: dict[Key, str] = field(default_factory=dict)

    def add(self, key: Key, number: int, sample: Sample) -> None:
        self.samples[key][number] = sample

    def fail(self, key: Key, reason: str) -> None:
        self.failures[key] = reason

    def rows(self) -> list[Row]:
        return [self._row(key, rounds) for key, rounds in self.samples.items()]

    def ratio(self, key: Key, other: str) -> float | None:
        """The median over rounds of this peer's rate by that of `other` in the same round."""
        theirs = self.samples.get(key._replace(peer=other), {})
        ours = self.samples.get(key, {})
        ratios = [ours[number].rate / theirs[number].rate for number in ours.keys() & theirs.keys()]
        return median(ratios) if ratios else None

    def _row(self, key: Key, rounds: Mapping[int, Sample]) -> Row:
        samples = list(rounds.values())
        rates = [sample.rate for sample in samples]
        latencies = sorted(second for sample in samples for second in sample.latencies)
        first_bytes = [second for sample in samples for second in sample.first_bytes]
        roles = [role for role in ROLES if role in samples[0].usage]
        return Row(
            key=key,
            rounds=len(samples),
            rate=median(rates),
            slowest=min(rates),
            fastest=max(rates),
            against_bare=self.ratio(key, BARE_LOOP),
            percentiles={f"p{p:g}": percentile(latencies, p) for p in PERCENTILES} if latencies else {},
            first_byte=median(first_bytes) if first_bytes else None,
            cpu={role: sum(sample.usage[role].cpu for sample in samples) for role in roles},
            moved=sum(sample.operations for sample in samples) * key.workload.size,
            peak={
                role: max(
                    sample.usage[role].peak - (sample.held if role == "client" else 0) for sample in samples
                )
                for role in roles
            },
        )


@dataclass(frozen=True, slots=True)
class Row:
    """What all rounds of one measurement come to. Rates are operations per second."""

    key: Key
    rounds: int
    rate: float
    slowest: float
    fastest: float
    against_bare: float | None
    percentiles: Mapping[str, float]
    first_byte: float | None
    cpu: Mapping[str, float]
    """CPU seconds of all rounds together."""
    moved: int
    """Bytes that were put or got in all rounds together."""
    peak: Mapping[str, int]

    @property
    def throughput(self) -> float:
        """MiB per second."""
        return self.rate * self.key.workload.size / MIB

    @property
    def cpu_per_gib(self) -> dict[str, float]:
        """CPU seconds per GiB, by role; nothing where too little was moved for the clock that tells them."""
        if self.key.verb not in MOVES_BYTES or self.moved < _TELLING:
            return {}
        return {role: seconds / (self.moved / GIB) for role, seconds in self.cpu.items()}


def as_json(results: Results, environment: Mapping[str, Any]) -> dict[str, Any]:
    """Everything but the single latencies: rates of each round included."""
    return {
        "environment": environment,
        "results": [
            {
                **_fields(row.key),
                "operations_per_second": row.rate,
                "mib_per_second": row.throughput if row.key.verb in MOVES_BYTES else None,
                "by_round": [sample.rate for _, sample in sorted(results.samples[row.key].items())],
                "against_bare_loop": row.against_bare,
                "latency_seconds": row.percentiles,
                "first_byte_seconds": row.first_byte,
                "cpu_seconds": row.cpu,
                "cpu_seconds_per_gib": row.cpu_per_gib,
                "peak_bytes": row.peak,
            }
            for row in results.rows()
        ],
        "failures": [{**_fields(key), "reason": reason} for key, reason in results.failures.items()],
    }


def _fields(key: Key) -> dict[str, Any]:
    return {
        "peer": key.peer,
        "verb": key.verb,
        **asdict(key.deployment),
        "size": key.workload.size,
        "count": key.workload.count,
        "at_once": key.workload.at_once,
    }


def table(results: Results) -> Iterable[str]:
    """Lines of text: a heading for each workload and verb, and its peers beneath, fastest first."""
    groups: dict[tuple[Deployment, Workload, str], list[Row]] = defaultdict(list)
    for row in results.rows():
        groups[row.key[:3]].append(row)
    for (deployment, workload, verb), rows in groups.items():
        yield ""
        yield _heading(deployment, workload, verb)
        yield _COLUMNS
        yield from (_line(row) for row in sorted(rows, key=lambda row: -row.rate))
    yield from _relayed(results)
    if results.failures:
        yield ""
        yield "Failed:"
    for key, reason in results.failures.items():
        yield f"  {key.peer}: {_heading(*key[:3])}: {reason}"


def _relayed(results: Results) -> Iterable[str]:
    """Relayed gets as a part of delegated ones, in the same round."""
    for key in results.samples:
        if key.peer == RELAYED and key.verb == "get" and (ratio := results.ratio(key, SERVICE)) is not None:
            yield ""
            yield f"{_heading(*key[:3])}: relayed / delegated {ratio:.2f}"


_COLUMNS: Final = (
    f"  {'':26}{'median':>14}{'min to max':>20}{'/ bare':>8}{'p50':>9}{'p99':>9}{'p99.9':>9}{'1st byte':>10}"
    f"  {'CPU s/GiB c/w/s':>18}  {'peak MiB c/w/s':>15}"
)


def _heading(deployment: Deployment, workload: Workload, verb: str) -> str:
    what = f"{verb}, {format_size(workload.size)}"
    at_once = workload.at_once
    if verb in _BATCHES:
        what = f"has, {MAX_BATCH:,} digests a request"
    if verb == "has_cold":
        what, at_once = f"{what}, the first that a worker gets", 1
    return f"{what}, {at_once} at once ({deployment})"


def _line(row: Row) -> str:
    unit, factor = "/s", 1.0
    if row.key.verb in _BATCHES:
        unit, factor = "digests/s", float(MAX_BATCH)
    elif row.key.verb in MOVES_BYTES and row.key.workload.size >= MIB:
        unit, factor = "MiB/s", row.key.workload.size / MIB
    spread = f"{row.slowest * factor:,.0f} to {row.fastest * factor:,.0f}"
    bare = f"{row.against_bare:.2f}" if row.against_bare is not None else ""
    times = "".join(f"{_ms(row.percentiles.get(f'p{p:g}')):>9}" for p in PERCENTILES)
    cpu = " / ".join(f"{value:.2f}" for value in row.cpu_per_gib.values())
    peak = " / ".join(f"{value / MIB:.0f}" for value in row.peak.values())
    return (
        f"  {row.key.peer:26}{f'{row.rate * factor:,.0f} {unit}':>14}{spread:>20}{bare:>8}{times}"
        f"{_ms(row.first_byte):>10}  {cpu:>18}  {peak:>15}"
    )


def _ms(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
