"""Durations and sizes as people write them: `30s`, `1h30m`, `8MiB`. Seconds and bytes inside."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Final

NANOSECONDS: Final = 1_000_000_000
"""In a second: JetStream and Go count times in them."""
_SECONDS: Final = {
    "ms": Fraction(1, 1000),
    "s": Fraction(1),
    "m": Fraction(60),
    "h": Fraction(3600),
    "d": Fraction(86400),
}
_BYTES: Final = {
    "": 1,
    "b": 1,
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)},
    **{letter: 1024**power for power, letter in enumerate("kmgt", 1)},
}
_DURATION_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", re.ASCII)
_DURATION: Final = re.compile(rf"(?:{_DURATION_PART.pattern})+", re.ASCII)
_NUMBER: Final = re.compile(r"\d+(?:\.\d+)?", re.ASCII)
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)", re.ASCII)


def parse_duration(text: str | float) -> float:
    """Seconds: a number, or numbers with `ms`, `s`, `m`, `h` or `d` in a row. `ValueError` otherwise."""
    if isinstance(text, str):
        text = text.strip()
        if _NUMBER.fullmatch(text):
            return float(text)
        if not _DURATION.fullmatch(text):
            raise ValueError(f"{text!r} is not a duration")
        return float(sum(Fraction(number) * _SECONDS[unit] for number, unit in _DURATION_PART.findall(text)))
    if isinstance(text, bool) or not math.isfinite(text):
        raise ValueError(f"{text!r} is not a duration")
    return float(text)


def parse_size(text: str | float) -> int:
    """Bytes: a number, or one with `KiB`, `MB`, `G`… (one letter counts in 1024s). `ValueError` otherwise."""
    if isinstance(text, str):
        found = _SIZE.fullmatch(text.strip())
        if not found or found[2].lower() not in _BYTES:
            raise ValueError(f"{text!r} is not a size")
        number = Fraction(found[1]) * _BYTES[found[2].lower()]
    elif isinstance(text, bool) or not math.isfinite(text):
        raise ValueError(f"{text!r} is not a size")
    else:
        number = Fraction(text)
    if number.denominator != 1:
        raise ValueError(f"{text!r} is not a whole number of bytes")
    return int(number)


def format_duration(seconds: float) -> str:
    """The duration in the largest unit that makes it a whole number, else in seconds."""
    for unit, factor in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if seconds >= factor and seconds % factor == 0:
            return f"{int(seconds // factor)}{unit}"
    return f"{seconds:.6f}".rstrip("0").rstrip(".") + "s"


def format_size(size: int) -> str:
    """The size in the largest binary unit that makes it a whole number."""
    for unit, factor in (("TiB", 1024**4), ("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if size >= factor and size % factor == 0:
            return f"{size // factor}{unit}"
    return f"{size}B"
