"""The command line as a user has it: a process with arguments, an environment and an exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

DEADLINE: Final = 60.0
"""Seconds. Every command ends far below it, unless it hangs."""
_ROOT: Final = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: bytes
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.decode().splitlines()


class Cli:
    """`natsblob` with a home of its own and these variables, and nothing of this shell's settings."""

    def __init__(self, home: Path, **variables: str) -> None:
        own = ("NATS", "XDG_", "NO_COLOR", "FORCE_COLOR")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(own)}
        here = {"HOME": str(home), "NATSBLOB_CONFIG": os.devnull, "PYTHONPATH": str(_ROOT)}
        self.env = {**inherited, **here, **variables}

    def command(self, *arguments: str | Path) -> list[str]:
        return [sys.executable, "-m", "natsblob", *map(str, arguments)]

    def __call__(self, *arguments: str | Path, stdin: bytes = b"") -> Ran:
        ran = subprocess.run(
            self.command(*arguments),
            input=stdin,
            env=self.env,
            capture_output=True,
            timeout=DEADLINE,
            check=False,
        )
        return Ran(ran.returncode, ran.stdout, ran.stderr.decode())

    def good(self, *arguments: str | Path, stdin: bytes = b"") -> Ran:
        """How the command ended, which is well."""
        ran = self(*arguments, stdin=stdin)
        assert ran.code == 0, ran.err
        return ran


@dataclass(frozen=True)
class Service:
    """A `natsblob serve` that is ready."""

    process: subprocess.Popen[bytes]
    line: str

    @property
    def told(self) -> dict[str, str]:
        """The fields of the ready line."""
        return dict(field.split("=", 1) for field in self.line.split()[2:])


@contextmanager
def serving(cli: Cli, *arguments: str | Path) -> Iterator[Service]:
    """A service that runs while the context lasts, with what it logs kept out of the way."""
    with subprocess.Popen(
        cli.command("serve", *arguments), env=cli.env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        try:
            assert process.stdout is not None
            yield Service(process, process.stdout.readline().decode().strip())
        finally:
            process.terminate()
            try:
                process.wait(DEADLINE)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
