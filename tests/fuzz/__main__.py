"""`make fuzz`: many requests, and what came of them."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys

from tests.fuzz.run import fuzz


def main() -> int:
    """0 where every request was answered as it may be or dropped by rule, 1 where not."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000, help="how many (1000000)")
    parser.add_argument(
        "--seed", type=int, default=int.from_bytes(os.urandom(3), "big"), help="for the same again"
    )
    given = parser.parse_args()
    sys.stdout.write(f"seed {given.seed}\n")
    sys.stdout.flush()
    report = asyncio.run(fuzz(given.seed, given.requests))
    sys.stdout.write("\n".join(report.lines()) + "\n")
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
