"""The table of faults, as docs/reliability.md has it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tests.faults.nemesis.scenario import Report

_HEAD = (
    '| fault | runs | operations | acknowledged puts | lost | wrong bytes | false "not found" '
    "| without an answer | longest without a put / a get, s | slowest answer, s |\n"
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
)


def table(reports: Iterable[Report]) -> str:
    """One row for each fault, over all its runs, in the order of the first ones."""
    rows: dict[str, list[Report]] = {}
    for report in reports:
        rows.setdefault(report.row, []).append(report)
    return "\n".join([_HEAD, *(_row(name, runs) for name, runs in rows.items())])


def _row(name: str, runs: Sequence[Report]) -> str:
    bad = sum(bool(report.violations) for report in runs)
    total = {
        field: sum(getattr(report, field) for report in runs)
        for field in ("operations", "acknowledged", "lost", "wrong", "false_missing", "unanswered")
    }
    no_put, no_get = (max(getattr(report, field) for report in runs) for field in ("no_put", "no_get"))
    cells = [
        name,
        f"{len(runs)}{f' ({bad} bad)' if bad else ''}",
        f"{total['operations']:,}",
        f"{total['acknowledged']:,}",
        f"{total['lost']:,}",
        *(str(total[field]) for field in ("wrong", "false_missing", "unanswered")),
        f"{no_put:.1f} / {no_get:.1f}",
        f"{max(report.slowest for report in runs):.1f}",
    ]
    return f"| {' | '.join(cells)} |"
