"""OpenTelemetry: metrics and traces of engines. Needs the extra `otel`.

What is measured and how the spans hang together stands in the guide "Watch an engine".
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Final, TypeAlias

from hsm.engine.breaker import BreakerState
from hsm.engine.info import QueueInfo
from hsm.engine.telemetry import (
    CommitInfo,
    Gauges,
    Outcome,
    RunObserver,
    TaskRun,
    TraceContext,
)
from hsm.errors import CommitConflictError, CommitOutcomeUnknownError
from persistence import errors as storage

try:
    from opentelemetry.context import Context
    from opentelemetry.metrics import CallbackOptions, Histogram, Meter, MeterProvider, Observation, get_meter
    from opentelemetry.trace import (
        Link,
        Span,
        SpanKind,
        StatusCode,
        TracerProvider,
        get_current_span,
        get_tracer,
    )
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as _error:
    raise ImportError(
        "OpenTelemetry is not installed: pip install 'hsm-toolkit[otel]'", name=_error.name
    ) from _error

__all__ = ["OpenTelemetry"]

_SCOPE: Final = "hsm.engine"
# Two disks, a network, or a queue that is days behind: from a tenth of a millisecond to hours.
_SECONDS: Final = (
    0.0001,
    0.0003,
    0.001,
    0.003,
    0.01,
    0.03,
    0.1,
    0.3,
    1,
    3,
    10,
    30,
    100,
    300,
    1000,
    3600,
    10800,
)
_PROPAGATOR: Final = TraceContextTextMapPropagator()
_Attributes: TypeAlias = dict[str, str | int]
_FAILED: Final = frozenset({Outcome.RETRIED, Outcome.DEAD_LETTERED})


class OpenTelemetry:
    """A `Telemetry` that measures and traces with OpenTelemetry. One object serves any number of engines.

    Each commit is a span, and so is each run of a task: a child of the commit that has asked for the task, in
    whatever process that was. Executors see the run as the current span, and what they commit is a child of
    it. So one trace follows an execution from transition to transition.
    """

    def __init__(
        self,
        meter_provider: MeterProvider | None = None,
        tracer_provider: TracerProvider | None = None,
        *,
        link_runs: bool = False,
        destinations: bool = False,
    ) -> None:
        """Make one.

        Args:
            meter_provider: the global one if it is left out; one of no operation measures nothing.
            tracer_provider: likewise.
            link_runs: let each run of a task begin a trace of its own, with a link to the commit, where
                executions live too long for one trace.
            destinations: measure each destination's queue with the attribute `hsm.destination`. Leave it off
                unless they are few.
        """
        self._tracer = get_tracer(_SCOPE, tracer_provider=tracer_provider)
        self._link_runs = link_runs
        self._destinations = destinations
        self._engines: list[Gauges] = []
        meter = get_meter(_SCOPE, meter_provider=meter_provider)
        self._commit_duration = _histogram(meter, "hsm.commit.duration", "Commits of executions")
        self._task_delay = _histogram(meter, "hsm.task.delay", "From due to started")
        self._task_duration = _histogram(meter, "hsm.task.duration", "Runs of tasks")
        self._dead_letters = meter.create_counter(
            "hsm.task.dead_letters", "{task}", "Tasks that are not tried again"
        )
        depths: dict[str, tuple[str, Callable[[QueueInfo], int]]] = {
            "running": ("Tasks that run", lambda queue: queue.running),
            "ready": ("Tasks that could run", lambda queue: queue.ready),
            "waiting": ("Tasks that wait for their time", lambda queue: queue.waiting),
        }
        for name, (text, depth) in depths.items():
            meter.create_observable_up_down_counter(
                f"hsm.queue.{name}", [self._depths(depth)], "{task}", text
            )
        meter.create_observable_up_down_counter(
            "hsm.breaker.queues", [self._breakers], "{queue}", "Queues of destinations by circuit breaker"
        )
        meter.create_observable_up_down_counter(
            "hsm.timer.pending", [self._total(lambda gauges: gauges.timers())], "{timer}", "Timers in memory"
        )
        meter.create_observable_up_down_counter(
            "hsm.shard.owned",
            [self._total(lambda gauges: gauges.shards())],
            "{shard}",
            "Shards of this process",
        )

    # What an engine calls

    def opened(self, gauges: Gauges) -> None:
        """See `Telemetry`."""
        self._engines.append(gauges)

    def closed(self, gauges: Gauges) -> None:
        """See `Telemetry`."""
        self._engines.remove(gauges)

    @contextmanager
    def commit(self, info: CommitInfo) -> Generator[TraceContext | None, None, None]:
        """See `Telemetry`."""
        started = time.perf_counter()
        attributes: _Attributes = {
            "hsm.namespace": info.execution.namespace,
            "hsm.machine.type": info.machine,
        }
        kind = SpanKind.PRODUCER if info.produces else SpanKind.INTERNAL
        names: _Attributes = {
            "hsm.execution.id": info.execution.id,
            "hsm.execution.run_id": info.execution.run_id,
        }
        outcome = "committed"
        with self._tracer.start_as_current_span(
            f"commit {info.machine}",
            kind=kind,
            attributes=attributes | names,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield self.trace()
            except BaseException as error:
                outcome = _commit_outcome(error)
                attributes["error.type"] = type(error).__qualname__
                if outcome in {"failed", "unknown"}:
                    _fail(span, error)
                raise
            finally:
                attributes["hsm.commit.outcome"] = outcome
                span.set_attributes(attributes)
                self._commit_duration.record(time.perf_counter() - started, attributes)

    @contextmanager
    def run(self, run: TaskRun) -> Generator[RunObserver, None, None]:
        """See `Telemetry`."""
        started = time.perf_counter()
        attributes: _Attributes = {"hsm.namespace": run.namespace, "hsm.task.type": run.task_type}
        # A copy: older SDKs keep the dictionary that a point was first recorded with.
        self._task_delay.record(run.delay_seconds, attributes.copy())
        parent, links = self._origin(run.trace)
        with self._tracer.start_as_current_span(
            f"run {run.task_type}",
            context=parent,
            kind=SpanKind.CONSUMER,
            attributes=attributes | _names(run),
            links=links,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            observer = _Run(span)
            try:
                yield observer
            finally:
                attributes["hsm.task.outcome"] = observer.outcome.value
                if observer.error is not None:
                    attributes["error.type"] = type(observer.error).__qualname__
                span.set_attributes(attributes)
                self._task_duration.record(time.perf_counter() - started, attributes)
                if observer.outcome is Outcome.DEAD_LETTERED:
                    self._dead_letters.add(
                        1, {name: value for name, value in attributes.items() if name != "hsm.task.outcome"}
                    )

    def trace(self) -> TraceContext | None:
        """See `Telemetry`."""
        headers: dict[str, str] = {}
        _PROPAGATOR.inject(headers)
        if "traceparent" not in headers:
            return None
        return TraceContext(headers["traceparent"], headers.get("tracestate", ""))

    # What is below

    def _origin(self, trace: TraceContext | None) -> tuple[Context, list[Link]]:
        """Where a run belongs. Nowhere but there: the engine may have been made inside of some span."""
        nowhere = Context()
        if trace is None:
            return nowhere, []
        parent = _PROPAGATOR.extract(trace.headers(), context=nowhere)
        if not self._link_runs:
            return parent, []
        context = get_current_span(parent).get_span_context()
        return nowhere, [Link(context)] if context.is_valid else []

    def _total(self, count: Callable[[Gauges], int]) -> Callable[[CallbackOptions], Iterable[Observation]]:
        return lambda _: [Observation(sum(count(gauges) for gauges in list(self._engines)))]

    def _depths(
        self, depth: Callable[[QueueInfo], int]
    ) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_: CallbackOptions) -> Iterable[Observation]:
            sums: dict[tuple[tuple[str, str], ...], int] = {}
            for gauges in list(self._engines):
                for queue in gauges.queues():
                    key = self._queue_attributes(queue)
                    sums[key] = sums.get(key, 0) + depth(queue)
            return [Observation(total, dict(key)) for key, total in sums.items()]

        return observe

    def _breakers(self, _: CallbackOptions) -> Iterable[Observation]:
        counts: dict[tuple[tuple[str, str], ...], dict[BreakerState, int]] = {}
        for gauges in list(self._engines):
            for queue in gauges.queues():
                if queue.destination is not None:
                    # A state that no queue is in is told, too, or the last count of it would stand for ever.
                    states = counts.setdefault(self._queue_attributes(queue), dict.fromkeys(BreakerState, 0))
                    states[queue.breaker] += 1
        return [
            Observation(count, {**dict(key), "hsm.breaker.state": state.value})
            for key, states in counts.items()
            for state, count in states.items()
        ]

    def _queue_attributes(self, queue: QueueInfo) -> tuple[tuple[str, str], ...]:
        key = (("hsm.namespace", queue.namespace), ("hsm.task.group", queue.group))
        if self._destinations and queue.destination is not None:
            return (*key, ("hsm.destination", queue.destination))
        return key


class _Run:
    """Remembers how a run has ended."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self.outcome = Outcome.CANCELLED
        self.error: BaseException | None = None

    def ended(self, outcome: Outcome, error: BaseException | None) -> None:
        """See `RunObserver`."""
        self.outcome, self.error = outcome, error
        if error is not None and outcome in _FAILED:
            _fail(self._span, error)


def _fail(span: Span, error: BaseException) -> None:
    span.record_exception(error)
    span.set_status(StatusCode.ERROR, f"{type(error).__name__}: {error}")


def _commit_outcome(error: BaseException) -> str:
    if isinstance(error, CommitConflictError | storage.ETagMismatchError):
        return "conflict"
    if isinstance(error, CommitOutcomeUnknownError | storage.CommitOutcomeUnknownError):
        return "unknown"
    return "failed" if isinstance(error, Exception) else "cancelled"


def _names(run: TaskRun) -> _Attributes:
    """The attributes of a span that are too many for a metric."""
    names: _Attributes = {
        "hsm.task.id": run.task_id,
        "hsm.task.group": run.group,
        "hsm.task.attempt": run.attempt,
    }
    if run.execution is not None:
        names["hsm.execution.id"] = run.execution.id
        names["hsm.execution.run_id"] = run.execution.run_id
    if run.destination is not None:
        names["hsm.destination"] = run.destination
    return names


def _histogram(meter: Meter, name: str, text: str) -> Histogram:
    return meter.create_histogram(name, "s", text, explicit_bucket_boundaries_advisory=_SECONDS)
