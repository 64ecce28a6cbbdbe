"""OpenTelemetry: what is measured, and traces that go from a transition to its task and on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any, NoReturn

import pytest
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, NumberDataPoint
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NoOpTracerProvider, SpanKind, StatusCode, get_current_span

from hsm import (
    BusyError,
    CommitOutcomeUnknownError,
    DestinationDownError,
    Environment,
    Ref,
    StaleReferenceError,
    TerminalError,
)
from hsm.engine import Breaker, CommitInfo, Gauges, TaskRun, TraceContext, current_trace
from hsm.engine.otel import OpenTelemetry
from hsm.testing import FaultyStore, TestEngine
from hsm.testing.faults import Call as FaultyCall
from persistence.errors import CommitOutcomeUnknownError as StoreCommitOutcomeUnknownError
from tests.support.databases import Database
from tests.support.jobs import (
    Alarm,
    Call,
    Lasting,
    Ring,
    Soon,
    World,
    failing,
    log,
    note,
    noted,
    small,
    started,
)


class Watch:
    """OpenTelemetry in memory."""

    def __init__(self, **options: Any) -> None:
        self.reader = InMemoryMetricReader()
        self.exporter = InMemorySpanExporter()
        self.tracers = TracerProvider(shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        meters = MeterProvider([self.reader], shutdown_on_exit=False)
        self.telemetry = OpenTelemetry(meters, self.tracers, **options)

    def spans(self) -> dict[str, ReadableSpan]:
        """The last span of each name."""
        return {span.name: span for span in self.exporter.get_finished_spans()}

    def points(self, name: str) -> list[tuple[dict[str, Any], int]]:
        """The attributes and the value, or the count, of the points of a metric."""
        data = self.reader.get_metrics_data()
        found: list[tuple[dict[str, Any], int]] = []
        for resource in [] if data is None else data.resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    if metric.name == name:
                        found += [
                            (dict(point.attributes or {}), _value(point)) for point in metric.data.data_points
                        ]
        return found

    def counts(self, name: str, attribute: str) -> dict[Any, int]:
        """The values of a metric by one attribute."""
        counts: dict[Any, int] = {}
        for attributes, value in self.points(name):
            key = attributes.get(attribute)
            counts[key] = counts.get(key, 0) + value
        return counts


def _value(point: Any) -> int:
    if isinstance(point, NumberDataPoint):
        return int(point.value)
    assert isinstance(point, HistogramDataPoint)
    return point.count


@pytest.fixture
def watch() -> Watch:
    return Watch()


def parent_of(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def id_of(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return context.span_id


def trace_of(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return context.trace_id


async def test_one_trace_goes_from_a_transition_to_its_task_and_on_to_the_next(
    world: World, database: Database, watch: Watch
) -> None:
    async def go_on(env: Environment, ref: Ref, task: Call) -> None:
        await env.update(ref, note("called", Soon("soon")))

    world.on(Call, go_on)
    async with TestEngine(world.registry, database.store, small(telemetry=watch.telemetry)) as engine:
        with watch.tracers.get_tracer("caller").start_as_current_span("request"):
            ref = await started(engine, "job", Call("call"))
        await engine.drain()
        assert await engine.read(ref, log) == ["called", "soon"]

    spans = [span for span in watch.exporter.get_finished_spans() if span.name != "request"]
    by_start = sorted(spans, key=lambda span: span.start_time or 0)
    names = [(span.name, span.kind) for span in by_start]
    assert names == [
        ("commit job", SpanKind.PRODUCER),
        ("run call", SpanKind.CONSUMER),
        ("commit job", SpanKind.PRODUCER),
        ("run soon", SpanKind.CONSUMER),
        ("commit job", SpanKind.INTERNAL),
    ]
    request = watch.spans()["request"]
    chain = [request, *by_start]
    assert [parent_of(span) for span in chain[1:]] == [id_of(span) for span in chain[:-1]]
    assert {trace_of(span) for span in chain} == {trace_of(request)}


async def test_trace_goes_on_in_another_process(world: World, database: Database, watch: Watch) -> None:
    options = small(telemetry=watch.telemetry)
    async with TestEngine(world.registry, database.store, options, run_tasks=False) as engine:
        await started(engine, "job", Call("call"))
    other = Watch()
    async with TestEngine(world.registry, database.store, small(telemetry=other.telemetry)) as engine:
        await engine.drain()

    commit, run = watch.spans()["commit job"], other.spans()["run call"]
    assert parent_of(run) == id_of(commit)
    assert run.parent is not None
    assert run.parent.is_remote
    attributes = dict(run.attributes or {})
    assert attributes["hsm.task.attempt"] == 1
    assert attributes["hsm.execution.id"] == "job"
    assert attributes["hsm.destination"] == "there"


async def test_every_attempt_belongs_to_the_commit_that_asked_for_the_task(
    world: World, database: Database, watch: Watch
) -> None:
    world.on(Lasting, failing(OSError("no"), None))
    async with TestEngine(world.registry, database.store, small(telemetry=watch.telemetry)) as engine:
        await started(engine, "job", Lasting("call"))
        await engine.run_until_idle()

    first, second = [span for span in watch.exporter.get_finished_spans() if span.name == "run lasting"]
    assert parent_of(first) == parent_of(second) is not None
    assert first.status.status_code is StatusCode.ERROR
    assert [event.name for event in first.events] == ["exception"]
    assert second.status.status_code is not StatusCode.ERROR
    assert [(span.attributes or {})["hsm.task.attempt"] for span in (first, second)] == [1, 2]


async def test_runs_can_begin_traces_of_their_own_with_a_link(world: World, database: Database) -> None:
    watch = Watch(link_runs=True)
    async with TestEngine(world.registry, database.store, small(telemetry=watch.telemetry)) as engine:
        await started(engine, "job", Call("call"))
        await engine.drain()

    spans = sorted(watch.exporter.get_finished_spans(), key=lambda span: span.start_time or 0)
    commit, run = spans[:2]
    assert run.parent is None
    assert [link.context.span_id for link in run.links] == [id_of(commit)]


async def test_task_of_an_untraced_commit_is_no_child_of_what_made_the_engine(
    world: World, database: Database, watch: Watch
) -> None:
    async with TestEngine(world.registry, database.store, small(), run_tasks=False) as engine:
        await started(engine, "job", Call("call"))
    with watch.tracers.get_tracer("caller").start_as_current_span("start-up"):
        engine = TestEngine(world.registry, database.store, small(telemetry=watch.telemetry))
    async with engine:
        await engine.drain()

    assert watch.spans()["run call"].parent is None


async def test_executor_sees_its_run_as_the_current_span(
    world: World, database: Database, watch: Watch
) -> None:
    seen: list[tuple[int, TraceContext | None]] = []

    async def look(env: Environment, ref: Ref, task: Call) -> None:
        seen.append((get_current_span().get_span_context().span_id, current_trace()))
        await noted(env, ref, task)

    world.on(Call, look)
    async with TestEngine(world.registry, database.store, small(telemetry=watch.telemetry)) as engine:
        await started(engine, "job", Call("call"))
        await engine.drain()

    run = watch.spans()["run call"]
    assert seen[0][0] == id_of(run)
    assert seen[0][1] is not None
    assert f"{id_of(run):016x}" in seen[0][1].traceparent


async def test_nothing_is_traced_without_telemetry(world: World, database: Database) -> None:
    seen: list[TraceContext | None] = []

    async def look(env: Environment, ref: Ref, task: Call) -> None:
        seen.append(current_trace())

    world.on(Call, look)
    async with TestEngine(world.registry, database.store, small()) as engine:
        await started(engine, "job", Call("call"))
        await engine.drain()

    assert seen == [None]


async def test_providers_of_no_operation_change_nothing(world: World, database: Database) -> None:
    telemetry = OpenTelemetry(NoOpMeterProvider(), NoOpTracerProvider())
    async with TestEngine(world.registry, database.store, small(telemetry=telemetry)) as engine:
        ref = await started(engine, "job", Call("call"))
        await engine.drain()
        assert await engine.read(ref, log) == ["call"]


@pytest.mark.parametrize(
    ("error", "outcomes"),
    [
        (None, {"acknowledged": 1}),
        (StaleReferenceError("old"), {"dropped": 1}),
        (OSError("no"), {"retried": 2, "dead_lettered": 1}),
        (TerminalError("never"), {"dead_lettered": 1}),
        (DestinationDownError(None), {"acknowledged": 1}),
    ],
)
async def test_attempts_are_counted_by_type_and_outcome(
    world: World, database: Database, watch: Watch, error: Exception | None, outcomes: Mapping[str, int]
) -> None:
    world.on(Lasting, failing(error))
    options = small(telemetry=watch.telemetry, max_attempts=3)
    async with TestEngine(world.registry, database.store, options) as engine:
        await started(engine, "job", Lasting("call"))
        await engine.run_until_idle()

    assert watch.counts("hsm.task.duration", "hsm.task.outcome") == outcomes
    assert watch.counts("hsm.task.duration", "hsm.task.type") == {"lasting": sum(outcomes.values())}
    assert {frozenset(attributes) for attributes, _ in watch.points("hsm.task.delay")} == {
        frozenset({"hsm.namespace", "hsm.task.type"})
    }
    buried = outcomes.get("dead_lettered", 0)
    assert watch.counts("hsm.task.dead_letters", "error.type") == (
        {type(error).__name__: buried} if buried else {}
    )


async def test_commits_whose_answer_is_lost_are_told_apart(
    world: World, database: Database, watch: Watch
) -> None:
    store = FaultyStore(database.store)

    async def lose(call: FaultyCall) -> None:
        if call.method == "multi":
            store.after = None
            raise StoreCommitOutcomeUnknownError("no answer")

    async with TestEngine(world.registry, store, small(telemetry=watch.telemetry)) as engine:
        ref = await started(engine, "job")
        store.after = lose
        with pytest.raises(CommitOutcomeUnknownError):
            await engine.update(ref, note("perhaps"))
        await engine.update(ref, note("kept"))

    assert watch.counts("hsm.commit.duration", "hsm.commit.outcome") == {"committed": 2, "unknown": 1}
    errors = [
        span for span in watch.exporter.get_finished_spans() if span.status.status_code is StatusCode.ERROR
    ]
    assert [(span.attributes or {})["error.type"] for span in errors] == ["CommitOutcomeUnknownError"]


async def test_try_that_does_not_count_is_postponed(world: World, database: Database, watch: Watch) -> None:
    world.on(Lasting, failing(BusyError("later"), None))
    async with TestEngine(world.registry, database.store, small(telemetry=watch.telemetry)) as engine:
        await started(engine, "job", Lasting("call"))
        await engine.run_until_idle()

    assert watch.counts("hsm.task.duration", "hsm.task.outcome") == {"postponed": 1, "acknowledged": 1}


async def test_run_that_the_end_of_the_engine_cancels_is_told(
    world: World, database: Database, watch: Watch
) -> None:
    begun = asyncio.Event()

    async def hang(env: Environment, ref: Ref, task: Lasting) -> None:
        begun.set()
        await asyncio.Event().wait()

    world.on(Lasting, hang)
    options = small(telemetry=watch.telemetry, drain_timeout=timedelta())
    async with TestEngine(world.registry, database.store, options) as engine:
        await started(engine, "job", Lasting("call"))
        await begun.wait()

    assert watch.counts("hsm.task.duration", "hsm.task.outcome") == {"cancelled": 1}


async def test_conflicts_are_counted(world: World, database: Database, watch: Watch) -> None:
    options = small(telemetry=watch.telemetry)
    async with (
        TestEngine(world.registry, database.store, options) as one,
        TestEngine(world.registry, database.store, small(), run_tasks=False) as other,
    ):
        ref = await started(one)
        await one.update(ref, note("first"))
        await other.update(ref, note("second"))
        await one.update(ref, note("third"))

    assert watch.counts("hsm.commit.duration", "hsm.commit.outcome") == {"committed": 3, "conflict": 1}
    assert watch.counts("hsm.commit.duration", "error.type")["CommitConflictError"] == 1


async def test_delay_counts_from_when_the_task_was_due(
    world: World, database: Database, watch: Watch
) -> None:
    runs: list[TaskRun] = []
    watch.telemetry.run = recording(watch.telemetry, runs)  # type: ignore[method-assign]  # of this one object
    options = small(telemetry=watch.telemetry)
    async with TestEngine(world.registry, database.store, options, run_tasks=False) as engine:
        clock, due = engine.clock, engine.now() + timedelta(minutes=1)
        await started(engine, "job", Soon("soon"), Alarm("alarm", due))
    clock.advance(timedelta(minutes=3))
    async with TestEngine(world.registry, database.store, options, clock=clock) as engine:
        await engine.drain()

    assert {run.task_type: run.delay_seconds for run in runs} == {"soon": 180.0, "alarm": 120.0}


def recording(telemetry: OpenTelemetry, runs: list[TaskRun]) -> Any:
    inner = telemetry.run

    def run(info: TaskRun) -> AbstractContextManager[Any]:
        runs.append(info)
        return inner(info)

    return run


async def test_depths_of_queues_are_those_of_the_moment(
    world: World, database: Database, watch: Watch
) -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def run(env: Environment, ref: Ref, task: Lasting) -> None:
        begun.set()
        await go.wait()
        await noted(env, ref, task)

    world.on(Lasting, run)
    options = small(telemetry=watch.telemetry, concurrency=1)
    async with TestEngine(world.registry, database.store, options) as engine:
        later = engine.now() + timedelta(hours=1)
        await started(engine, "job", Lasting("a"), Lasting("b"), Lasting("c"), Ring("ring", later))
        await begun.wait()

        assert watch.counts("hsm.queue.running", "hsm.task.group")["lasting"] == 1
        assert watch.counts("hsm.queue.ready", "hsm.task.group")["lasting"] == 2
        assert watch.counts("hsm.queue.waiting", "hsm.task.group")["ring"] == 1
        assert watch.points("hsm.timer.pending") == [({}, 1)]
        assert watch.points("hsm.shard.owned") == [({}, 2)]
        go.set()
        await engine.drain()

        assert watch.counts("hsm.queue.running", "hsm.task.group").get("lasting", 0) == 0
    assert watch.points("hsm.shard.owned") == [({}, 0)]


async def test_queues_are_told_apart_by_destination_if_asked(world: World, database: Database) -> None:
    watch = Watch(destinations=True)
    world.on(Lasting, failing(OSError("no")))
    async with TestEngine(world.registry, database.store, small(telemetry=watch.telemetry)) as engine:
        await started(engine, "job", Lasting("a", destination="x"), Lasting("b", destination="y"))
        await engine.drain()

        assert watch.counts("hsm.queue.waiting", "hsm.destination") == {"x": 1, "y": 1}


async def test_queues_are_counted_by_the_state_of_their_breaker(
    world: World, database: Database, watch: Watch
) -> None:
    world.on(Lasting, failing(DestinationDownError(OSError("no"))))
    options = small(telemetry=watch.telemetry, breaker=Breaker(failures=1))
    async with TestEngine(world.registry, database.store, options) as engine:
        await started(engine, "job", Lasting("a", destination="x"), Call("b", destination="y"))
        await engine.drain()

        states = watch.points("hsm.breaker.queues")
    assert [attributes for attributes, count in states if count] == [
        {"hsm.namespace": "tests", "hsm.task.group": "lasting", "hsm.breaker.state": "open"}
    ]
    assert {attributes["hsm.breaker.state"] for attributes, _ in states} == {"closed", "open", "half-open"}


async def test_row_that_cannot_be_decoded_is_measured_too(
    world: World, database: Database, watch: Watch
) -> None:
    async with TestEngine(world.registry, database.store, small(), run_tasks=False) as engine:
        await started(engine, "job", Soon("soon"))
    await database.overwrite("i/", b"\xff")
    async with TestEngine(world.registry, database.store, small(telemetry=watch.telemetry)) as engine:
        await engine.drain()

    assert watch.counts("hsm.task.duration", "hsm.task.outcome") == {"dead_lettered": 1}


class Broken:
    """A telemetry that fails wherever it can."""

    def __init__(self, *, early: bool) -> None:
        self._early = early

    def opened(self, gauges: Gauges) -> None:
        raise ZeroDivisionError

    def closed(self, gauges: Gauges) -> None:
        raise ZeroDivisionError

    @contextmanager
    def commit(self, info: CommitInfo) -> Iterator[TraceContext | None]:
        if self._early:
            raise ZeroDivisionError
        yield None
        raise ZeroDivisionError

    @contextmanager
    def run(self, run: TaskRun) -> Iterator[Broken]:
        if self._early:
            raise ZeroDivisionError
        yield self
        raise ZeroDivisionError

    def ended(self, outcome: object, error: object) -> None:
        raise ZeroDivisionError

    def trace(self) -> TraceContext | None:
        raise ZeroDivisionError


class BrokenAtOnce(Broken):
    """Fails before there is anything to enter."""

    def commit(self, info: CommitInfo) -> NoReturn:
        raise ZeroDivisionError

    def run(self, run: TaskRun) -> NoReturn:
        raise ZeroDivisionError


@pytest.mark.parametrize("broken", [Broken(early=True), Broken(early=False), BrokenAtOnce(early=True)])
async def test_telemetry_that_fails_does_no_harm(
    world: World, database: Database, broken: Broken, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "hsm.engine")

    async def traced(env: Environment, ref: Ref, task: Call) -> None:
        assert current_trace() is None
        await env.update(ref, note(task.name))

    world.on(Call, traced)
    async with TestEngine(world.registry, database.store, small(telemetry=broken)) as engine:
        ref = await started(engine, "job", Call("call"))
        await engine.drain()
        assert await engine.read(ref, log) == ["call"]
        assert [dead async for dead in engine.dead_letters()] == []
    assert await database.queued() == []
