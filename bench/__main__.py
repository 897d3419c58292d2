"""Measure natsblob beside other clients and bare loops, in one run: `make bench`.

python -m bench [--quick | --large | --cluster | --full] [--rounds N] [--peers NAME,…] [--natsgo PATH]
                [--output DIR]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from bench.environment import environment, lines
from bench.plots import draw
from bench.processes import kinds
from bench.profiles import PROFILES
from bench.results import Results, as_json, table
from bench.run import run
from natsblob.broker.allocator import keep_memory
from natsblob.broker.loop import loop_factory


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="docs/benchmarks.md says more.")
    choice = parser.add_mutually_exclusive_group()
    for name, profile in PROFILES.items():
        choice.add_argument(f"--{name}", dest="profile", action="store_const", const=name, help=profile.about)
    parser.set_defaults(profile="standard")
    parser.add_argument("--rounds", type=int, help="repetitions of everything [5]")
    parser.add_argument("--peers", metavar="NAME,…", help="only these; the table shows their names")
    parser.add_argument("--natsgo", type=Path, metavar="PATH", help="bench/peers/natsgo, built elsewhere")
    parser.add_argument("--output", type=Path, metavar="DIR", default=Path("bench/out"), help="[bench/out]")
    return parser.parse_args()


async def main(given: argparse.Namespace) -> None:
    profile = PROFILES[given.profile]
    if given.rounds:
        profile = replace(profile, rounds=given.rounds)
    folder: Path = given.output
    found, missing = await asyncio.to_thread(kinds, given.natsgo, folder)
    if given.peers:
        wanted = given.peers.split(",")
        found = [kind for kind in found if kind.name in wanted]
        if not found:
            raise SystemExit("no such peer can run here")
    facts = {**environment(), "profile": given.profile, "rounds": profile.rounds}
    facts["left_out"] = missing or "nothing"
    print("\n".join(lines(facts)))
    report = folder / f"{given.profile}.json"

    def save(results: Results, configuration: Mapping[str, str]) -> None:
        facts["servers"] = configuration
        complete = report.with_suffix(".part")
        complete.write_text(json.dumps(as_json(results, facts), indent=1) + "\n")
        complete.replace(report)

    results, configuration = await run(profile, found, save)
    for server in configuration.values():
        print(f"\n{server}")
    print("\n".join(table(results)))
    print(f"\nwritten: {report}")
    try:
        for path in draw(results.rows(), folder):
            print(f"written: {path}")
    except ImportError:
        sys.stderr.write("no plots: matplotlib is not installed (pip install 'natsblob[bench]')\n")


if __name__ == "__main__":
    keep_memory()
    chosen = options()
    chosen.output.mkdir(parents=True, exist_ok=True)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(main(chosen))
