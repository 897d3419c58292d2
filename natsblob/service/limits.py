"""How much a worker takes on at a time. What is beyond is refused at once, so that the rest stays fast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Final, NamedTuple

from natsblob.errors import BusyError
from natsblob.metrics import Metrics

RETRY_AFTER_MS: Final = 50
CONTENTION: Final = 10.0
"""Seconds for which clients have to leave room for others, once somebody was refused for want of it."""


class ByteBudget:
    """Bytes that may be held in memory for one purpose."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.held = 0

    def hold(self, size: int) -> bool:
        """Take room for `size` bytes, if there is any. If nothing is held, anything fits."""
        if self.held > 0 and self.held + size > self._most:
            return False
        self.held += size
        return True

    def release(self, size: int) -> None:
        self.held -= size


class _Share(NamedTuple):
    """What one client has in flight."""

    requests: int
    bytes: int


_NONE: Final = _Share(0, 0)


class Limits:
    """Bounds on requests and on the bytes that they bring; both are shown as metrics.

    While clients contend for them, none gets more than three quarters of either, so that others find room.
    """

    def __init__(self, metrics: Metrics, *, max_requests: int, max_bytes: int) -> None:
        self._metrics = metrics
        self._max_requests = max_requests
        self._budget = ByteBudget(max_bytes)
        self._requests = 0
        self._shares: dict[str, _Share] = {}
        self._contended_until = 0.0
        self._most_each = (max_requests - max_requests // 4, max_bytes - max_bytes // 4)
        metrics.in_flight(lambda: self._requests, lambda: self._budget.held)

    def admit(self, size: int, client: str) -> bool:
        """Take room for one more request of a client, with `size` bytes, if there is any; see `leave`."""
        share = self._shares.get(client, _NONE)
        requests, held = self._most_each
        is_greedy = share.requests >= requests or (share.requests > 0 and share.bytes + size > held)
        if is_greedy and monotonic() < self._contended_until:
            self._metrics.refused("requests" if share.requests >= requests else "bytes")
            return False
        if self._requests >= self._max_requests or not self._budget.hold(size):
            self._metrics.refused("requests" if self._requests >= self._max_requests else "bytes")
            if not is_greedy:
                self._contended_until = monotonic() + CONTENTION
            return False
        self._requests += 1
        self._shares[client] = _Share(share.requests + 1, share.bytes + size)
        return True

    def leave(self, size: int, client: str) -> None:
        """The request of a client has ended that brought `size` bytes: give its room back."""
        self._requests -= 1
        self._budget.release(size)
        share = self._shares[client]
        if share.requests == 1:
            del self._shares[client]
        else:
            self._shares[client] = _Share(share.requests - 1, share.bytes - size)

    @contextmanager
    def bytes(self, size: int) -> Iterator[None]:
        """Room for `size` more bytes; `BusyError` if there is none."""
        if not self._budget.hold(size):
            self._metrics.refused("bytes")
            raise BusyError("this worker is at its limit of bytes in flight", retry_after_ms=RETRY_AFTER_MS)
        try:
            yield
        finally:
            self._budget.release(size)
