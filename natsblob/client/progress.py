"""Telling a caller how far a transfer has come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

Progress: TypeAlias = Callable[[int, int | None], None]
"""Called as `progress(done, total)` with bytes; `total` is `None` while it is not known.

`done` never falls, whatever has to be repeated. The last call of a transfer that succeeds has
`done == total`. It runs between two steps of the transfer: it should return at once, and what it raises
ends the transfer.
"""


class Gauge:
    """How far one transfer has come, reported if somebody wants to know."""

    def __init__(self, report: Progress | None, total: int | None) -> None:
        self._report = report
        self._total = total
        self._done = -1

    def at(self, done: int) -> None:
        """`done` bytes are through. A transfer that begins again is silent until it gets further."""
        if self._report is not None and done > self._done:
            self._done = done
            self._report(done, self._total)

    def complete(self, size: int) -> None:
        """The transfer is finished and was `size` bytes long."""
        if self._report is not None and (self._done, self._total) != (size, size):
            self._done = self._total = size
            self._report(size, size)


SILENT: Final = Gauge(None, None)
"""Nobody wants to know."""
