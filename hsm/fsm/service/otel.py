"""OpenTelemetry: metrics and traces of the service. Needs the extra `otel`."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Final

from hsm.fsm.service.telemetry import CallObserver

try:
    from opentelemetry.metrics import MeterProvider, get_meter
    from opentelemetry.trace import SpanKind, Status, StatusCode, TracerProvider, get_tracer
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as _error:
    raise ImportError(
        "OpenTelemetry is not installed: pip install 'hsm-toolkit[otel]'", name=_error.name
    ) from _error

__all__ = ["OpenTelemetry"]

_SCOPE: Final = "hsm.fsm.service"
_SERVICE: Final = "statemachine.v1beta.StatemachineService"
_PROPAGATOR: Final = TraceContextTextMapPropagator()
# Faults of ours; the other codes are the client's.
_FAULTS: Final = frozenset({"DATA_LOSS", "DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE", "UNKNOWN"})


class OpenTelemetry:
    """A `ServiceTelemetry` that measures and traces with OpenTelemetry.

    Each call is a span, a child of the client's if the call carries a `traceparent`. Measured are
    `rpc.server.duration` (seconds, by method and code), `hsm.fsm.messages` (by queue and result) and
    `hsm.fsm.outcome.delay` (seconds from a message to the outcome of its event, by code).
    """

    def __init__(
        self, meter_provider: MeterProvider | None = None, tracer_provider: TracerProvider | None = None
    ) -> None:
        """Make one with providers, or with the global ones."""
        self._tracer = get_tracer(_SCOPE, tracer_provider=tracer_provider)
        meter = get_meter(_SCOPE, meter_provider=meter_provider)
        self._duration = meter.create_histogram("rpc.server.duration", "s", "Calls")
        self._messages = meter.create_counter("hsm.fsm.messages", "{message}", "Messages of queues")
        self._delay = meter.create_histogram(
            "hsm.fsm.outcome.delay", "s", "From a message that was sent to the outcome of its event"
        )

    @contextmanager
    def call(self, method: str, headers: Mapping[str, str]) -> Generator[CallObserver, None, None]:
        """See `ServiceTelemetry`."""
        started = time.perf_counter()
        names = {"rpc.system": "grpc", "rpc.service": _SERVICE, "rpc.method": method}
        observer = _Observer()
        with self._tracer.start_as_current_span(
            f"{_SERVICE}/{method}",
            context=_PROPAGATOR.extract(headers),
            kind=SpanKind.SERVER,
            attributes=names,
            # A refusal goes through here as an exception, and is no fault.
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield observer
            finally:
                span.set_attribute("rpc.grpc.status", observer.code)
                if observer.code in _FAULTS:
                    span.set_status(Status(StatusCode.ERROR, observer.code))
                attributes = names | {"rpc.grpc.status": observer.code}
                self._duration.record(time.perf_counter() - started, attributes)

    def message(self, queue: str, result: str) -> None:
        """See `ServiceTelemetry`."""
        self._messages.add(1, {"messaging.destination.name": queue, "hsm.result": result})

    def outcome(self, code: str, seconds: float) -> None:
        """See `ServiceTelemetry`."""
        self._delay.record(seconds, {"hsm.outcome": code})


class _Observer:
    def __init__(self) -> None:
        self.code = "UNKNOWN"

    def ended(self, code: str) -> None:
        self.code = code
