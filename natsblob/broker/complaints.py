"""What a server or the client library complains about, logged so that it fills no disk."""

from __future__ import annotations

import asyncio
from typing import Final

from natsblob.logs import get_logger

log = get_logger("natsblob.broker")

PERIOD: Final = 30.0
"""Seconds in which the same complaint is logged once."""
MOST: Final = 8
"""Different complaints that are logged in one period: some quote subjects, which others choose."""


class Complaints:
    """The complaints about one connection."""

    def __init__(self) -> None:
        self._began = float("-inf")
        self._logged: set[str] = set()
        self._left_out = 0

    def log(self, text: str) -> None:
        """Log it, unless this period has had it, or too many others: then the next line says how many."""
        now = asyncio.get_running_loop().time()
        if now - self._began >= PERIOD:
            self._began = now
            self._logged.clear()
        if text in self._logged or len(self._logged) >= MOST:
            self._left_out += 1
            return
        self._logged.add(text)
        log.warning("nats.error", error=text, left_out=self._left_out)
        self._left_out = 0
