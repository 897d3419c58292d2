"""What a worker tells of its work: one log line, the metrics and a span for each request.

A line names the verb, the outcome, the sizes, the time it took and the beginning of the digest:
never a payload, a whole digest (whoever has one can read the blob) or a credential.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from secrets import randbits
from time import perf_counter
from typing import Any, Final

import msgspec

from natsblob import tracing
from natsblob.digest import Digest
from natsblob.errors import BlobCorruptError, BlobError, InternalError
from natsblob.logs import get_logger
from natsblob.metrics import OK, Metrics

CANCELLED: Final = "cancelled"

_ids = count(randbits(63))
"""Unique in a process, and almost surely beyond."""
_encoder = msgspec.json.Encoder(enc_hook=str)


@dataclass(slots=True)
class Request:
    """What the handler of a request notes of it while it works."""

    verb: str
    id: str = field(default_factory=lambda: format(next(_ids), "016x"))
    """Names the request in the log, and in the reply if it failed by a defect."""
    digest: Digest | None = None
    size: int | None = None
    """Bytes in the blob that the request is about."""
    bytes_in: int = 0
    """Bytes of blobs that the request brought."""
    bytes_out: int = 0


class Telemetry:
    """Accounts for the requests of one worker."""

    def __init__(self, metrics: Metrics, worker: str) -> None:
        self.metrics = metrics
        self._log = get_logger("natsblob").bind(worker=worker)

    @contextmanager
    def request(self, verb: str, headers: Mapping[str, str] | None = None) -> Iterator[Request]:
        """Account for what happens inside as one request; `headers` may carry a `traceparent`.

        A `BlobError` passes as it is. Anything else is a defect: it is logged, and becomes an
        `InternalError` that tells the caller nothing but the id under which the log has it.
        """
        request = Request(verb)
        end = _End(OK)
        started = perf_counter()
        with tracing.serving(verb, headers or {}) as trace_id:
            try:
                yield request
            except BaseException as error:
                end = _end(error)
                if end.defect:
                    message = "the service failed; its log has more under this id"
                    raise InternalError(message, id=request.id) from error
                raise
            finally:
                seconds = perf_counter() - started
                self.metrics.served(verb, end.outcome, seconds, request.bytes_in, request.bytes_out)
                if self._log.is_enabled_for(end.severity):
                    self._log.log(end.severity, "request", **_line(request, end, seconds, trace_id))


@dataclass(frozen=True, slots=True)
class _End:
    """How a request ended."""

    outcome: str
    severity: int = logging.INFO
    reason: str | None = None
    defect: BaseException | None = None


def _end(error: BaseException) -> _End:
    """A client's mistake is no news to an operator; trouble with the storage is."""
    match error:
        case BlobCorruptError():
            return _End(error.name, logging.ERROR, error.message)
        case BlobError() if not isinstance(error, InternalError):
            return _End(error.name, logging.WARNING if error.code >= 500 else logging.INFO, error.message)
        case Exception():
            return _End(InternalError.name, logging.ERROR, defect=error)
    return _End(CANCELLED)


def _line(request: Request, end: _End, seconds: float, trace_id: str | None) -> dict[str, Any]:
    fields = {
        "verb": request.verb,
        "outcome": end.outcome,
        "reason": end.reason,
        "id": request.id,
        "digest": request.digest and request.digest.short,
        "size": request.size,
        "bytes_in": request.bytes_in or None,
        "bytes_out": request.bytes_out or None,
        "duration_ms": round(seconds * 1000, 3),
        "trace_id": trace_id,
        "exc_info": end.defect,
    }
    return {name: value for name, value in fields.items() if value is not None}
