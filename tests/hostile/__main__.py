"""`make hostile`: every header block, position and order, at R1 and R3, and who reads what became of it.

python -m tests.hostile [--replicas 1 3] [--every 1] [--only header]
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path

import structlog

from natsblob.testing.servers import temporary_cluster, temporary_server, temporary_store_dir
from tests.hostile.cells import all_cells
from tests.hostile.readers import node_directory
from tests.hostile.run import run_cells


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def run(replicas: list[int], every: int, only: str) -> int:
    cells = [cell for cell in all_cells() if only in cell.name][::every]
    count = bad = 0
    with temporary_store_dir() as directory:
        node: Path | None = await node_directory(directory)
        for number in replicas:
            began = time.monotonic()
            async with AsyncExitStack() as stack:
                if number == 1:
                    url = (await stack.enter_async_context(temporary_server())).url
                else:
                    url = (await stack.enter_async_context(temporary_cluster())).urls[0]
                report = await run_cells(url, number, cells, node)
            say(f"R{number}, {time.monotonic() - began:.0f} s: " + "\n".join(report.lines()))
            count, bad = count + len(report.results), bad + len(report.bad)
    say(f"{count} cells, {bad} bad")
    return 1 if bad else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="make hostile", description=__doc__)
    parser.add_argument("--replicas", nargs="*", type=int, default=[1, 3])
    parser.add_argument("--every", type=int, default=1, help="only each nth cell")
    parser.add_argument("--only", default="", help="only cells with this in their name")
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    return asyncio.run(run(given.replicas, given.every, given.only))


if __name__ == "__main__":
    sys.exit(main())
