"""One finding of the doctor."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Status(StrEnum):
    OK = "ok"
    WARN = "warn"
    """It works, and somebody should know, or it could not be seen."""
    FAIL = "fail"


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """What was looked at, what was found, what that means, and what to do about it."""

    name: str
    status: Status
    found: str
    means: str
    todo: str = ""
    """Empty if nothing has to be done."""
