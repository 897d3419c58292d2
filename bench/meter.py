"""CPU seconds and peak memory of processes, read from /proc: the same for peers in any language."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_TICK: Final = 1 / os.sysconf("SC_CLK_TCK")
_RESET_PEAK: Final = "5"
_USER, _SYSTEM = 11, 12
"""Fields of /proc/PID/stat, counted behind the name of the program."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What the processes of one role used: CPU seconds, user and system, and peak resident bytes."""

    cpu: float
    peak: int


class Meter:
    """Measures processes by role, from where it is made to `read`."""

    def __init__(self, roles: Mapping[str, Sequence[int]]) -> None:
        self._roles = roles
        for pid in (pid for pids in roles.values() for pid in pids):
            with suppress(OSError):
                Path(f"/proc/{pid}/clear_refs").write_text(_RESET_PEAK)
        self._before = {role: sum(map(_cpu, pids)) for role, pids in roles.items()}

    def read(self) -> dict[str, Usage]:
        """What was used since; memory of several processes of a role is added up."""
        return {
            role: Usage(sum(map(_cpu, pids)) - self._before[role], sum(map(peak, pids)))
            for role, pids in self._roles.items()
        }


def _cpu(pid: int) -> float:
    return parse_cpu(Path(f"/proc/{pid}/stat").read_text())


def cpu_time(pid: int) -> float:
    """CPU seconds of all threads of a process, exactly, where `_cpu` counts in hundredths."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def peak(pid: int) -> int:
    """The most bytes that a process had in memory."""
    return parse_peak(Path(f"/proc/{pid}/status").read_text())


def parse_cpu(stat: str) -> float:
    """CPU seconds in the text of /proc/PID/stat; the program's name in it may contain anything."""
    fields = stat.rpartition(")")[2].split()
    return (int(fields[_USER]) + int(fields[_SYSTEM])) * _TICK


def parse_peak(status: str) -> int:
    """Peak resident bytes in the text of /proc/PID/status; 0 where it is not there."""
    return _bytes("VmHWM", status)


def resident(pid: int) -> int:
    """Bytes that a process has in memory now."""
    return _bytes("VmRSS", Path(f"/proc/{pid}/status").read_text())


def _bytes(name: str, status: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
