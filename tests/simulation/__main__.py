"""Schedules for as long as one likes: `make soak ARGS='--minutes 30'`, or one again: `ARGS='--seed 42'`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import count, islice, takewhile

from tests.simulation.defects import DEFECTS, planted
from tests.simulation.schedule import run

_BATCH = 50


@dataclass(slots=True)
class Totals:
    schedules: int = 0
    calls: int = 0
    acknowledged: int = 0
    hours: float = 0.0

    def add(self, other: Totals) -> None:
        self.schedules += other.schedules
        self.calls += other.calls
        self.acknowledged += other.acknowledged
        self.hours += other.hours


def run_batch(first: int, defect: str | None = None) -> tuple[Totals, list[str]]:
    """What `_BATCH` seeds from `first` on add up to, and the stories of those that violate an invariant."""
    totals, stories = Totals(), []
    for seed in range(first, first + _BATCH):
        with planted(defect):
            outcome = run(seed)
        totals.add(
            Totals(
                1,
                len(outcome.history.calls),
                sum(call.verb == "put" and call.is_acknowledged for call in outcome.history.calls),
                outcome.virtual_seconds / 3600,
            )
        )
        if outcome.violation is not None:
            stories.append(f"{outcome}\n\nagain: make soak ARGS='--seed {seed}'\n")
    return totals, stories


def main() -> int:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this schedule only and tell what happened in it")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--schedules", type=int, default=None, help="how many schedules to run")
    parser.add_argument("--minutes", type=float, default=5.0, help="for how long, where no number is given")
    parser.add_argument("--defect", choices=sorted(DEFECTS), help="plant this defect")
    options = parser.parse_args()
    if options.seed is not None:
        with planted(options.defect):
            outcome = run(options.seed)
        _tell(outcome)
        return 1 if outcome.violation else 0
    return _soak(options.first, options.schedules, options.minutes, options.defect)


def _soak(first: int, schedules: int | None, minutes: float, defect: str | None) -> int:
    began = time.monotonic()
    ends = began + 60 * minutes
    firsts: Iterator[int] = count(first, _BATCH)
    if schedules is not None:
        firsts = islice(firsts, -(-schedules // _BATCH))
    else:
        firsts = takewhile(lambda _: time.monotonic() < ends, firsts)
    totals, violations = Totals(), 0
    processes = os.cpu_count() or 1
    with ProcessPoolExecutor(processes) as pool:
        running = [pool.submit(run_batch, start, defect) for start in islice(firsts, 2 * processes)]
        while running:
            done, stories = running.pop(0).result()
            running += [pool.submit(run_batch, start, defect) for start in islice(firsts, 1)]
            totals.add(done)
            violations += len(stories)
            for story in stories[: max(0, 5 - violations + len(stories))]:
                _tell(story)
            if totals.schedules % 5000 == 0:
                _tell(f"{totals.schedules} schedules, {violations} violations")
    elapsed = time.monotonic() - began
    _tell(
        f"{totals.schedules} schedules from seed {first} in {elapsed:.0f} s "
        f"({60 * totals.schedules / elapsed:.0f} a minute), {totals.calls} calls, "
        f"{totals.acknowledged} acknowledged puts, {totals.hours:.0f} virtual hours, {violations} violations"
    )
    return 1 if violations else 0


def _tell(text: object) -> None:
    print(text, flush=True)  # noqa: T201 - it talks to the terminal


if __name__ == "__main__":
    sys.exit(main())
