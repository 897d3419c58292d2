"""What a run was measured on: without it its figures say nothing."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from bench.profiles import GIB

_PACKAGES: Final = ("natsblob", "nats-py", "natsrpy", "uvloop")
_PEERS: Final = Path(__file__).parent / "peers"


def environment() -> dict[str, Any]:
    """The machine, and versions of all that takes part, of nats-server apart."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": len(os.sched_getaffinity(0)),
        "processor": _found(r"^model name\s*: (.*)$", "/proc/cpuinfo") or platform.machine(),
        "memory_gib": round(int(_found(r"^MemTotal:\s+(\d+) kB$", "/proc/meminfo") or 0) * 1024 / GIB, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "event_loop": type(asyncio.get_running_loop()).__module__,
        "versions": {**{name: _installed(name) for name in _PACKAGES}, **_pinned()},
    }


def lines(facts: Mapping[str, Any]) -> Iterable[str]:
    """The facts for people, one a line."""
    for name, value in facts.items():
        several = isinstance(value, Mapping)
        text = ", ".join(f"{key} {each}" for key, each in value.items()) if several else value
        yield f"{name.replace('_', ' ')}: {text}"


def _found(pattern: str, path: str) -> str | None:
    try:
        found = re.search(pattern, Path(path).read_text(), re.MULTILINE)
    except OSError:
        return None
    return found[1] if found else None


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def _pinned() -> dict[str, str]:
    """Versions of the peers in other languages that the benchmark asks for."""
    packages = json.loads((_PEERS / "natsjs" / "package.json").read_text())["dependencies"]
    go = re.search(r"nats-io/nats\.go v(\S+)", (_PEERS / "natsgo" / "go.mod").read_text())
    return {"@nats-io/obj": packages["@nats-io/obj"], "nats.go": go[1] if go else "unknown"}
