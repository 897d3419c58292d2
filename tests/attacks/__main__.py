"""`make attacks`: each attack at its rate beside honest clients, and what those notice.

python -m tests.attacks [--seconds 60] [--undisturbed 20] [--only opens floods] [--workers 2]

For each attack: a server (R1), two worker processes, 1,500 blobs, and honest clients at a fixed rate,
first alone and then beside the attacker, who is a process of its own. Bad is: a request that fails or is
not answered, a worker that has ended, no answer afterwards, a p99 of a kind of request above three times that
of the undisturbed time (and above 150 ms), or a worker's memory that has grown by more than 64 MiB.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time

from tests.attacks.catalogue import ATTACKS
from tests.attacks.load import RATES
from tests.attacks.range import Report, shooting_range


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def run(name: str, *, undisturbed: float, seconds: float, workers: int) -> Report:
    async with shooting_range(workers=workers) as attacked:
        await attacked.undisturbed(2)
        before = await attacked.undisturbed(undisturbed)
        report = await attacked.attacked(name, seconds, before)
        report.problems += [f"undisturbed: {count} x {what}" for what, count in before.failures.items()]
        return report


def main() -> int:
    parser = argparse.ArgumentParser(prog="make attacks", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--undisturbed", type=float, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=list(ATTACKS), default=list(ATTACKS))
    given = parser.parse_args()
    say("honest: " + ", ".join(f"{rate:g} {kind}/s" for kind, rate in RATES.items()))
    bad = 0
    for name in given.only:
        began = time.monotonic()
        one = run(name, undisturbed=given.undisturbed, seconds=given.seconds, workers=given.workers)
        report = asyncio.run(one)
        bad += bool(report.problems or report.slow)
        say("\n".join(report.lines()) + f"  ({time.monotonic() - began:.0f} s)")
    say(f"{len(given.only)} attacks, {bad} bad")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
