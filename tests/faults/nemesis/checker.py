"""What was promised and not kept, from the history of a run and from what was left after it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from tests.faults.nemesis.history import (
    CANCELLED,
    NOT_FOUND,
    OK,
    UNANSWERED,
    WRONG,
    Kind,
    Operation,
)

PASSING: Final = frozenset({"unavailable", "timeout", "busy"})
"""Errors that servers that are down, stand still or cannot be reached are a reason for."""


@dataclass(frozen=True, slots=True)
class Window:
    """From the first fault to the healing of the last one, in seconds as in the history."""

    begins: float
    ends: float


@dataclass(slots=True)
class Verdict:
    """Every list is to be empty; each entry names a blob or an operation."""

    trusts_absence: bool = True
    operations: int = 0
    acknowledged: int = 0
    """Puts."""
    lost: list[str] = field(default_factory=list)
    """Acknowledged, and not there, or not whole, after everything was healed (I1)."""
    wrong: list[str] = field(default_factory=list)
    """Other bytes than those that were put (I2)."""
    false_missing: list[str] = field(default_factory=list)
    """Acknowledged, and then said not to be there (I1)."""
    unanswered: list[str] = field(default_factory=list)
    """No answer within the client's deadline, or none at all (I3)."""
    unexplained: list[str] = field(default_factory=list)
    """Answers that the faults are no reason for (I3)."""
    half_visible: list[str] = field(default_factory=list)
    """Not acknowledged, and neither whole nor absent afterwards (I6)."""
    slowest: float = 0.0
    """Seconds until the slowest operation had its answer."""
    slowest_was: str = ""
    no_put: float = 0.0
    """The longest time without an acknowledged put, where it overlaps the window of the faults."""
    no_get: float = 0.0

    def complaints(self) -> dict[str, list[str]]:
        lists = ["lost", "wrong", "unanswered", "unexplained", "half_visible"]
        if self.trusts_absence:
            lists.append("false_missing")
        return {name: found for name in lists if (found := getattr(self, name))}


def check(
    operations: Sequence[Operation],
    left: Mapping[str, str],
    window: Window,
    *,
    explained: Iterable[str] = PASSING,
    trusts_absence: bool = True,
) -> Verdict:
    """The verdict on a history. `left` is how each blob that was ever put could be read at the end.

    `explained` are names of errors that this run's faults are a reason for. Without `trusts_absence` a
    "not found" of a blob that is there is not held against the run: a leader whose copy has rotted says so.
    """
    verdict = Verdict(operations=len(operations), trusts_absence=trusts_absence)
    allowed = {OK, CANCELLED, *explained}
    acknowledged = _acknowledged(operations)
    verdict.acknowledged = sum(one.kind == "put" and one.outcome == OK for one in operations)
    for operation in operations:
        told = f"{operation.kind} {operation.blob} ({operation.id}): {operation.outcome} {operation.detail}"
        if operation.ended - operation.began > verdict.slowest:
            verdict.slowest, verdict.slowest_was = operation.ended - operation.began, told
        if operation.outcome in ("", UNANSWERED):
            verdict.unanswered.append(told)
        elif operation.outcome == WRONG:
            verdict.wrong.append(told)
        elif operation.outcome == NOT_FOUND and operation.kind != "put":
            if acknowledged.get(operation.blob, operation.began) < operation.began:
                verdict.false_missing.append(told)
        elif operation.outcome not in allowed:
            verdict.unexplained.append(told)
    _judge_what_is_left(operations, left, acknowledged, verdict)
    verdict.no_put = longest_gap(_answers(operations, "put"), window)
    verdict.no_get = longest_gap(_answers(operations, "get"), window)
    return verdict


def _acknowledged(operations: Iterable[Operation]) -> dict[str, float]:
    """When each blob was first acknowledged."""
    when: dict[str, float] = {}
    for operation in operations:
        if operation.kind == "put" and operation.is_acknowledged:
            when[operation.blob] = min(operation.ended, when.get(operation.blob, operation.ended))
    return when


def _judge_what_is_left(
    operations: Iterable[Operation],
    left: Mapping[str, str],
    acknowledged: Mapping[str, float],
    verdict: Verdict,
) -> None:
    for blob in sorted({one.blob for one in operations if one.kind == "put"}):
        outcome = left.get(blob, "not looked at")
        if outcome == WRONG:
            verdict.wrong.append(f"{blob} at the end")
        if blob in acknowledged and outcome != OK:
            verdict.lost.append(f"{blob}: {outcome}")
        if blob not in acknowledged and outcome not in (OK, NOT_FOUND):
            verdict.half_visible.append(f"{blob}: {outcome}")


def _answers(operations: Iterable[Operation], kind: Kind) -> list[float]:
    return [one.ended for one in operations if one.kind == kind and one.is_acknowledged]


def longest_gap(answers: Iterable[float], window: Window) -> float:
    """The longest time between two answers, of those times that overlap the window; all of it without any."""
    times = sorted(answers)
    if not times:
        return window.ends - window.begins
    gaps = [
        after - before for before, after in pairwise(times) if after > window.begins and before < window.ends
    ]
    return max(gaps, default=0.0)
