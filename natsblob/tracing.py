"""W3C trace context in message headers, by OpenTelemetry; without an SDK it is passed on as it came."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Final

from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_PROPAGATOR: Final = TraceContextTextMapPropagator()
_TRACEPARENT: Final = "traceparent"
_TRACER: Final = trace.get_tracer("natsblob")


def inject(headers: MutableMapping[str, str]) -> None:
    """Add the `traceparent` of what runs now to the headers of a message; nothing outside a trace."""
    _PROPAGATOR.inject(headers)


@contextmanager
def serving(verb: str, headers: Mapping[str, str]) -> Iterator[str | None]:
    """A span for the request that came with `headers`; yields the id of its trace, if it has one."""
    if _TRACEPARENT not in headers and isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        yield None  # nobody traces, which is the rule and so is to cost nothing
        return
    context = _PROPAGATOR.extract(headers)
    with _TRACER.start_as_current_span(f"blob.{verb}", context, trace.SpanKind.SERVER) as span:
        trace_id = span.get_span_context().trace_id
        yield trace.format_trace_id(trace_id) if trace_id else None
