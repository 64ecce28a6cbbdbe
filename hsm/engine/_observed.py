"""The parts of an engine that tell a `Telemetry` what they do. Without one, the plain parts stand there."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Final, TypeVar

from hsm.engine import telemetry as _telemetry
from hsm.engine._execution import Execution
from hsm.engine._executions import Executions
from hsm.engine._logs import engine_logger
from hsm.engine._planner import Amendment
from hsm.engine._rows import QueuedTask
from hsm.engine._shards import Shards
from hsm.engine._worker import Worker
from hsm.engine.ids import made_at
from hsm.engine.info import QueueInfo
from hsm.engine.telemetry import (
    CommitInfo,
    Outcome,
    RunObserver,
    TaskRun,
    Telemetry,
    TraceContext,
)
from hsm.tree._operation import Deleted

__all__ = ["EngineGauges", "ObservedExecutions", "ObservedWorker", "harmlessly", "use"]

_T = TypeVar("_T")

_log: Final = engine_logger()
_FAILED: Final = "telemetry has failed"
_NANOS: Final = 10**9
_observer: Final[ContextVar[RunObserver | None]] = ContextVar("hsm_run_observer")


@contextmanager
def _harmless(begin: Callable[[], AbstractContextManager[_T]]) -> Generator[_T | None, None, None]:
    """What `begin` makes, but what fails in it of itself is logged, and nothing more."""
    try:
        context = begin()
        value = context.__enter__()
    except Exception:  # noqa: BLE001 - it is logged, with its traceback
        _log.exception(_FAILED)
        yield None
        return
    try:
        yield value
    except BaseException as error:
        _leave(context, error)
        raise
    _leave(context, None)


def _leave(context: AbstractContextManager[object], error: BaseException | None) -> None:
    kind = None if error is None else type(error)
    trace = None if error is None else error.__traceback__
    harmlessly(lambda: context.__exit__(kind, error, trace))


def harmlessly(tell: Callable[[], object]) -> None:
    """Tell a telemetry something."""
    try:
        tell()
    except Exception:  # noqa: BLE001 - it is logged, with its traceback
        _log.exception(_FAILED)


def use(telemetry: Telemetry) -> None:
    """Let `current_trace` ask `telemetry` in this context."""
    _telemetry._current.set(telemetry)


class ObservedExecutions(Executions):
    """Tells of commits."""

    @contextmanager
    def observed(self, execution: Execution, /) -> Generator[None, None, None]:
        """See `Executions.observed`."""
        telemetry = self._options.telemetry
        assert telemetry is not None
        log = execution.root._state.log
        produces = any(not isinstance(entry, Deleted) and entry[1].tasks for entry in log)
        definition = self._registry.machine(execution.row.root_type)
        machine = str(execution.row.root_type) if definition is None else definition.type.name
        info = CommitInfo(execution.key, machine, produces)
        with _harmless(lambda: telemetry.commit(info)) as trace:
            execution.trace = trace
            yield

    async def commit(
        self,
        execution: Execution,
        claim: QueuedTask | None,
        *,
        keep_claim: bool,
        amend: Amendment | None = None,
        refresh: bool = False,
    ) -> None:
        """See `Executions.commit`."""
        with self.observed(execution):
            await super().commit(execution, claim, keep_claim=keep_claim, amend=amend, refresh=refresh)


class ObservedWorker(Worker):
    """Tells of runs of tasks."""

    async def run(self, task: QueuedTask) -> None:
        """See `Worker.run`."""
        telemetry = self._options.telemetry
        assert telemetry is not None
        with _harmless(lambda: telemetry.run(self._describe(task))) as observer:
            _observer.set(observer)
            await super().run(task)

    def _ended(self, outcome: Outcome, error: BaseException | None = None) -> None:
        observer = _observer.get()
        if observer is not None:
            harmlessly(lambda: observer.ended(outcome, error))

    def _describe(self, task: QueuedTask) -> TaskRun:
        now = self._options.clock.time_ns()
        # A task that waits for no time is due since it was asked for, which its id knows.
        due = max(task.due, made_at(task.id) or 0) or now
        delay = max(now - due, 0) / _NANOS
        namespace, group, destination = task.queue
        row = task.row
        if row is None:
            return TaskRun(task.id, "", None, namespace, group, destination, 1, delay, None)
        registration = self._registry.task(row.info.type)
        name = str(row.info.type) if registration is None else registration.task.type.name
        trace = TraceContext(row.traceparent, row.tracestate) if row.traceparent else None
        attempt = row.failures + 1
        return TaskRun(task.id, name, task.execution, namespace, group, destination, attempt, delay, trace)


class EngineGauges:
    """See `Gauges`. Asked from other threads, it reads what the event loop may be changing."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards

    def queues(self) -> Sequence[QueueInfo]:
        """See `Gauges`."""
        return _stable(self._shards.dispatcher.infos)

    def timers(self) -> int:
        """See `Gauges`."""
        return self._shards.dispatcher.waiting

    def shards(self) -> int:
        """See `Gauges`."""
        return len(_stable(lambda: self._shards.owned))


def _stable(read: Callable[[], _T]) -> _T:
    """Read again what changed while it was read."""
    while True:
        try:
            return read()
        except RuntimeError:
            # "dictionary changed size during iteration"
            continue
