"""How much a worker takes on at a time. What is beyond is refused at once, so that the rest stays fast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from natsblob.errors import BusyError
from natsblob.metrics import Metrics

RETRY_AFTER_MS: Final = 50


class ByteBudget:
    """Bytes that may be held in memory for one purpose."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.held = 0

    def hold(self, size: int) -> bool:
        """Take room for `size` bytes, if there is any. Where nothing is held, anything fits."""
        if self.held > 0 and self.held + size > self._most:
            return False
        self.held += size
        return True

    def release(self, size: int) -> None:
        self.held -= size


class Limits:
    """Bounds on requests and on the bytes that they hold in memory; both are shown as metrics."""

    def __init__(self, metrics: Metrics, *, max_requests: int, max_bytes: int) -> None:
        self._metrics = metrics
        self._max_requests = max_requests
        self._budget = ByteBudget(max_bytes)
        self._requests = 0
        metrics.in_flight(lambda: self._requests, lambda: self._budget.held)

    def admit(self, size: int) -> bool:
        """Take room for one more request that brings `size` bytes, if there is any; `leave` gives it back."""
        if self._requests >= self._max_requests:
            self._metrics.refused("requests")
            return False
        if not self._budget.hold(size):
            self._metrics.refused("bytes")
            return False
        self._requests += 1
        return True

    def leave(self, size: int) -> None:
        """The request has ended that brought `size` bytes."""
        self._requests -= 1
        self._budget.release(size)

    @contextmanager
    def bytes(self, size: int) -> Iterator[None]:
        """Room for `size` more bytes; `BusyError` where there is none."""
        if not self._budget.hold(size):
            self._metrics.refused("bytes")
            raise BusyError("this worker is at its limit of bytes in flight", retry_after_ms=RETRY_AFTER_MS)
        try:
            yield
        finally:
            self._budget.release(size)
