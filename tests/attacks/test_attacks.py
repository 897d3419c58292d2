"""A moment of each attack beside honest clients: none of their requests fails, and no worker ends."""

from __future__ import annotations

from tests.attacks.catalogue import ATTACKS
from tests.attacks.load import RATES
from tests.attacks.range import shooting_range

SECONDS = 1.0


async def test_no_attack_takes_a_worker_away() -> None:
    async with shooting_range(blobs=200) as attacked:
        before = await attacked.undisturbed(SECONDS)
        assert not before.failures
        reports = [await attacked.attacked(name, SECONDS, before) for name in ATTACKS]
    said = [line for report in reports if report.problems for line in report.lines()]
    assert not said, "\n".join(said)
    assert all(report.done > 0 for report in reports if ATTACKS[report.name].rate * SECONDS > 1)
    assert all(report.during.count >= sum(RATES.values()) / 2 for report in reports)
