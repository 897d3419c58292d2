"""Prometheus metrics of one worker, in a registry of its own, and their exposition over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    start_http_server,
)

from natsblob.config import Address
from natsblob.errors import SetupError

OK: Final = "ok"
_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """What a worker counts. An outcome is `ok`, `cancelled` or the name of an error on the wire."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.registry = registry
        self._requests = Counter(
            "natsblob_requests", "Requests, by verb and outcome", ["verb", "outcome"], registry=registry
        )
        self._errors = Counter(
            "natsblob_errors", "Failed requests, by name of the error", ["name"], registry=registry
        )
        self._seconds = Histogram(
            "natsblob_request_seconds", "From request to reply", ["verb"], buckets=_SECONDS, registry=registry
        )
        self._received = Counter("natsblob_received_bytes", "Bytes of blobs that came in", registry=registry)
        self._sent = Counter("natsblob_sent_bytes", "Bytes of blobs that went out", registry=registry)
        self._refusals = Counter(
            "natsblob_refusals", "Requests refused as too much at a time", ["reason"], registry=registry
        )
        self._refused = {reason: self._refusals.labels(reason) for reason in ("requests", "bytes")}
        self._dropped = Counter(
            "natsblob_dropped_replies",
            "Requests left without an answer, and why",
            ["reason"],
            registry=registry,
        )
        self._requests_in_flight = Gauge(
            "natsblob_requests_in_flight", "Requests that are being served", registry=registry
        )
        self._bytes_in_flight = Gauge(
            "natsblob_bytes_in_flight", "Bytes that requests hold in memory", registry=registry
        )

    def served(self, verb: str, outcome: str, seconds: float, received: int, sent: int) -> None:
        """Count a request that has ended."""
        self._requests.labels(verb, outcome).inc()
        self._seconds.labels(verb).observe(seconds)
        if received:
            self._received.inc(received)
        if sent:
            self._sent.inc(sent)
        if outcome != OK:
            self._errors.labels(outcome).inc()

    def in_flight(self, requests: Callable[[], float], held: Callable[[], float]) -> None:
        """Show what is in flight, which is asked for when somebody looks: it changes all the time."""
        self._requests_in_flight.set_function(requests)
        self._bytes_in_flight.set_function(held)

    def refused(self, reason: Literal["requests", "bytes"]) -> None:
        """Count a request that was answered with `busy`."""
        self._refused[reason].inc()

    def dropped(self, reason: str) -> None:
        """Count a request that gets no reply."""
        self._dropped.labels(reason).inc()

    def figures(self) -> dict[str, float]:
        """The main figures, each over all its labels: for `$SRV.STATS` and status pages."""
        return {
            "requests": _total(self._requests),
            "errors": _total(self._errors),
            "received_bytes": _total(self._received),
            "sent_bytes": _total(self._sent),
            "refusals": _total(self._refusals),
            "dropped_replies": _total(self._dropped),
            "requests_in_flight": _total(self._requests_in_flight),
            "bytes_in_flight": _total(self._bytes_in_flight),
        }


def _total(metric: Counter | Gauge) -> float:
    samples = (sample for family in metric.collect() for sample in family.samples)
    return sum(sample.value for sample in samples if not sample.name.endswith("_created"))


@asynccontextmanager
async def exposed(metrics: Metrics, address: Address) -> AsyncIterator[Address]:
    """Serve `/metrics` at `address` while the context lasts; yields where, with the port that was free.

    `SetupError` if the address cannot be had.
    """
    try:
        server, thread = start_http_server(address.port, address.host, metrics.registry)
    except OSError as error:
        raise SetupError(
            f"metrics cannot be served at {address}: {error.strerror}; choose another --metrics"
        ) from error

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    try:
        yield Address(address.host, server.server_port)
    finally:
        # In a thread, which ends by itself also if this task is cancelled again.
        await asyncio.to_thread(stop)
