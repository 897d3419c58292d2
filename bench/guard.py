"""A guard against large losses of speed: the service beside a bare loop, in one run. `make guard`.

    python -m bench.guard

Only ratios are judged, and only far below what is usual: machines are noisy, and times say nothing.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from typing import Final

from bench.processes import BARE, OURS
from bench.profiles import BARE_LOOP, MIB, SERVICE, Deployment, Profile, Workload
from bench.results import Key, Results
from bench.run import run
from natsblob.broker.allocator import keep_memory
from natsblob.broker.loop import loop_factory

_WORKLOAD: Final = Workload(32 * MIB, count=2)
_PROFILE: Final = Profile("seconds", (Deployment(sync="2m"),), (_WORKLOAD,), rounds=7)
FLOORS: Final[Mapping[str, float]] = {"put": 0.2, "get": 0.3}
"""What the service reaches at least, as a part of what the bare loop does: half of what is usual."""


def verdict(results: Results) -> dict[str, float | None]:
    """The ratio by verb; `None` where one of the two failed."""
    return {verb: results.ratio(key_of(verb), BARE_LOOP) for verb in FLOORS}


def key_of(verb: str, peer: str = SERVICE) -> Key:
    return Key(_PROFILE.deployments[0], _WORKLOAD, verb, peer)


def lost(ratios: Mapping[str, float | None]) -> list[str]:
    """The verbs that are below their floor or have no figures."""
    return [verb for verb, floor in FLOORS.items() if (ratios.get(verb) or 0.0) < floor]


async def main() -> int:
    kinds = [kind for kind in (*OURS, *BARE) if kind.name in {SERVICE, BARE_LOOP}]
    results, _ = await run(_PROFILE, kinds)
    ratios = verdict(results)
    for verb, ratio in ratios.items():
        measured = "failed" if ratio is None else f"{ratio:.2f}"
        print(f"{verb}: {measured} of a bare loop (at least {FLOORS[verb]})")
    for key, reason in results.failures.items():
        print(f"{key.peer} {key.verb}: {reason}")
    if below := lost(ratios):
        print(f"a large loss of speed in {' and '.join(below)}: `make bench` shows more", file=sys.stderr)
    return 1 if below else 0


if __name__ == "__main__":
    keep_memory()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        sys.exit(runner.run(main()))
