"""The simulation with a fixed budget; `make soak` runs it for as long as one likes."""

from __future__ import annotations

import os
import subprocess
import sys
from unittest import mock

import pytest

from natsblob.objectstore.objects import Objects
from tests.simulation.defects import DEFECTS, planted
from tests.simulation.schedule import run

SCHEDULES = 400
BLOCK = 50
ENOUGH = 300
"""Schedules within which every planted defect has to be caught."""


@pytest.mark.parametrize("first", range(0, SCHEDULES, BLOCK))
def test_no_schedule_violates_an_invariant(first: int) -> None:
    for seed in range(first, first + BLOCK):
        outcome = run(seed)
        assert outcome.violation is None, f"make soak ARGS='--seed {seed}'\n{outcome}"


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_is_caught(defect: str) -> None:
    faults = DEFECTS[defect][1]
    with planted(defect):
        assert any(run(seed, faults).violation for seed in range(ENOUGH))


@pytest.mark.parametrize("defect", DEFECTS)
def test_without_the_defect_the_same_faults_do_no_harm(defect: str) -> None:
    for seed in range(10):
        assert run(seed, DEFECTS[defect][1]).violation is None


def test_an_unexpected_exception_is_told_with_its_seed() -> None:
    with mock.patch.object(Objects, "write_one", side_effect=ZeroDivisionError):
        outcomes = [run(seed) for seed in range(10)]
    assert any(outcome.violation for outcome in outcomes)


def test_a_seed_tells_the_same_story_in_every_process() -> None:
    stories = {
        subprocess.run(
            [sys.executable, "-m", "tests.simulation", "--seed", "436"],
            env={**os.environ, "PYTHONHASHSEED": salt},
            capture_output=True,
            check=True,
        ).stdout
        for salt in ("1", "2")
    }
    assert len(stories) == 1
