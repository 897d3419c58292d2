"""Whether a bucket that is there is the one that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from natsblob.broker.jetstream import Config
from natsblob.config.quantity import NANOSECONDS, format_duration, format_size


def _size(value: Any) -> str:
    return format_size(value) if value > 0 else "no limit"


def _age(value: Any) -> str:
    return format_duration(value / NANOSECONDS) if value else "no limit"


_WRITTEN: Final[Mapping[str, tuple[str, Any, Callable[[Any], str]]]] = {
    "num_replicas": ("replicas", 1, str),
    "storage": ("storage", "file", str),
    "max_bytes": ("max_bytes", -1, _size),
    "max_age": ("max_age", 0, _age),
    "compression": ("compression", "none", str),
    "allow_rollup_hdrs": ("rollups", False, str),
}
"""Fields of a stream: what users call them, what counts if they are absent, and how values are written."""
_CHOSEN: Final = ("description", "placement")
"""Fields that matter only if they were asked for."""


def differences(found: Config, wanted: Config) -> list[str]:
    """What is otherwise than wanted, such as `replicas 1, not 3`; empty if the bucket is as wanted."""
    said = []
    for field, (name, absent, write) in _WRITTEN.items():
        is_, should = (write(config.get(field, absent)) for config in (found, wanted))
        if is_ != should:
            said.append(f"{name} {is_}, not {should}".lower())
    said += [
        f"{field} {found.get(field) or 'none'}, not {wanted[field]}"
        for field in _CHOSEN
        if wanted.get(field) and not _contains(found.get(field), wanted[field])
    ]
    return said


def _contains(found: Any, wanted: Any) -> bool:
    """Whether `found` has all that is wanted: servers add to what they were told."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        return all(found.get(name) == value for name, value in wanted.items() if value)
    return bool(found == wanted)
