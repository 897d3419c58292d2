"""All scenarios: `make faults`; with those that take long `LONG=1`; some of them `ARGS='power kill'`."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from tests.faults.nemesis.catalogue import SCENARIOS
from tests.faults.nemesis.isolation import private
from tests.faults.nemesis.scenario import Report, Scenario, chosen, run
from tests.faults.nemesis.table import table

DEADLINE: Final = 900.0
"""Seconds for one scenario: far more than the sum of all deadlines in it that are likely to pass."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("names", nargs="*", help="only scenarios whose names begin so")
    parser.add_argument("--long", action="store_true", help="also those that take long")
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--runs", type=int, default=1, help="runs of each scenario, with one seed more each")
    parser.add_argument("--out", type=Path, help="append the reports to this file, as lines of JSON")
    parser.add_argument("--keep", action="store_true", help="keep the histories and logs of good runs too")
    parser.add_argument("--table", type=Path, help="only print the table of the reports in this file")
    parser.add_argument("--here", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.table:
        lines = options.table.read_text().splitlines()
        _tell(table([msgspec.json.decode(line, type=Report) for line in lines]))
        return 0
    scenarios = [one for one in chosen(SCENARIOS, options.names) if options.long or not one.is_long]
    if options.here:
        return _run_here(scenarios[0], options.seed, options.here)
    seeds = range(options.seed, options.seed + options.runs)
    return _run_all(scenarios, seeds, options.out, keep=options.keep)


def _run_here(scenario: Scenario, seed: int, directory: Path) -> int:
    """Run one scenario in this process, and leave its report in the directory."""
    report = asyncio.run(run(scenario, seed, directory))
    (directory / "report.json").write_bytes(msgspec.json.encode(report))
    return 0


def run_apart(scenario: Scenario, seed: int, *, keep: bool = False) -> Report:
    """Run one scenario in a process, and where that is possible in namespaces, of its own."""
    directory = Path(tempfile.mkdtemp(prefix="natsblob-faults-"))
    arguments = [scenario.name, "--long", "--seed", str(seed), "--here", str(directory)]
    command = [*private(), sys.executable, "-m", "tests.faults.nemesis", *arguments]
    with (directory / "output.log").open("wb") as log:
        subprocess.run(command, stdout=log, stderr=log, timeout=DEADLINE, check=False)
    try:
        report = msgspec.json.decode((directory / "report.json").read_bytes(), type=Report)
    except FileNotFoundError:
        report = Report(
            scenario=scenario.name, row=scenario.row, seed=seed, violations=["it did not end well"]
        )
    if report.violations or keep:
        report.kept = str(directory)
    else:
        shutil.rmtree(directory, ignore_errors=True)
    return report


def _run_all(scenarios: Sequence[Scenario], seeds: range, out: Path | None, *, keep: bool) -> int:
    reports = []
    for scenario in scenarios:
        if scenario.lacks:
            _tell(f"{scenario.name}: left out, {scenario.lacks}")
            continue
        for seed in seeds:
            report = run_apart(scenario, seed, keep=keep)
            reports.append(report)
            _tell(
                f"{report.scenario} (seed {seed}): {report.operations} operations, "
                f"{report.acknowledged} acknowledged puts, {report.lost} lost, in {report.took:.0f} s"
            )
            for violation in report.violations:
                _tell(f"  VIOLATION {violation}")
            if report.violations:
                _tell(f"  faults: {'; '.join(report.faults)}")
                _tell(f"  again: make faults ARGS='{scenario.name} --long --seed {seed}'")
            if report.kept:
                _tell(f"  histories and logs: {report.kept}")
            if out:
                with out.open("ab") as file:
                    file.write(msgspec.json.encode(report) + b"\n")
    _tell(table(reports))
    return 1 if any(report.violations for report in reports) else 0


def _tell(text: object) -> None:
    print(text, flush=True)  # noqa: T201 - it talks to the terminal


if __name__ == "__main__":
    sys.exit(main())
