"""Telemetry: what an engine tells of its work to whoever measures and traces it.

`hsm.engine.otel.OpenTelemetry` passes it on to OpenTelemetry. Write your own `Telemetry` for anything else.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Final, NamedTuple, Protocol

import attrs

from hsm.engine.info import QueueInfo
from hsm.ref import ExecutionKey

__all__ = [
    "CommitInfo",
    "Gauges",
    "Outcome",
    "RunObserver",
    "TaskRun",
    "Telemetry",
    "TraceContext",
    "current_trace",
]


class TraceContext(NamedTuple):
    """A place in a trace, as the two headers of W3C Trace Context hold it."""

    traceparent: str
    tracestate: str = ""

    def headers(self) -> dict[str, str]:
        """The headers of an outgoing request."""
        headers = {"traceparent": self.traceparent}
        if self.tracestate:
            headers["tracestate"] = self.tracestate
        return headers


class Outcome(enum.Enum):
    """What becomes of a task after one run."""

    ACKNOWLEDGED = "acknowledged"
    """It is done."""
    DROPPED = "dropped"
    """It had become pointless."""
    RETRIED = "retried"
    """It has failed, and is tried again."""
    POSTPONED = "postponed"
    """It is tried again, and the try does not count: nothing is wrong with the task."""
    DEAD_LETTERED = "dead_lettered"
    """It has failed, and is not tried again."""
    CANCELLED = "cancelled"
    """The engine was closed while it ran; it is run again by the next one."""


@attrs.frozen
class CommitInfo:
    """A commit that begins.

    Attributes:
        execution: it changes.
        machine: the name of the root's type, or its id as text.
        produces: whether it asks for tasks.
    """

    execution: ExecutionKey
    machine: str
    produces: bool


@attrs.frozen
class TaskRun:
    """A run of a task that begins.

    Attributes:
        task_id: of the task.
        task_type: name of the task type, or its id as text; "" if the row cannot be decoded.
        execution: it belongs to; None if the row cannot be decoded.
        namespace: of the execution.
        group: of its queue.
        destination: of its queue; None for immediate tasks and timers.
        attempt: its number, from 1; tries that did not count are left out.
        delay_seconds: from the time it was due, to the millisecond, until now.
        trace: of the commit that has asked for it.
    """

    task_id: str
    task_type: str
    execution: ExecutionKey | None
    namespace: str
    group: str
    destination: str | None
    attempt: int
    delay_seconds: float
    trace: TraceContext | None


class Gauges(Protocol):
    """The state of an engine. May be asked from any thread, at any time."""

    def queues(self) -> Sequence[QueueInfo]:
        """The queues that have tasks in memory."""
        ...

    def timers(self) -> int:
        """Timers, and tasks that wait for their next try, in memory."""
        ...

    def shards(self) -> int:
        """Shards that this process runs."""
        ...


class RunObserver(Protocol):
    """Is told how a run has ended."""

    def ended(self, outcome: Outcome, error: BaseException | None) -> None:
        """The run has ended; `error` is what it has met, if it has."""
        ...


class Telemetry(Protocol):
    """Hears of an engine's work, on the event loop and in the middle of that work: be quick.

    One object may serve several engines. What it raises is logged, and changes nothing.
    """

    def opened(self, gauges: Gauges) -> None:
        """An engine has been opened."""
        ...

    def closed(self, gauges: Gauges) -> None:
        """An engine is closed."""
        ...

    def commit(self, info: CommitInfo) -> AbstractContextManager[TraceContext | None]:
        """Entered before a commit is written, and left when it is, or when it has failed.

        The trace context is stored with the tasks of the commit.
        """
        ...

    def run(self, run: TaskRun) -> AbstractContextManager[RunObserver]:
        """Entered before a task runs, in its context; left when it is settled what becomes of it."""
        ...

    def trace(self) -> TraceContext | None:
        """The present place in a trace."""
        ...


_log: Final = logging.getLogger("hsm.engine")
_current: Final[ContextVar[Telemetry | None]] = ContextVar("hsm_telemetry", default=None)


def current_trace() -> TraceContext | None:
    """The present place in a trace, for requests that an executor makes; None where nothing is traced."""
    telemetry = _current.get()
    if telemetry is None:
        return None
    try:
        return telemetry.trace()
    except Exception:  # noqa: BLE001 - it is logged, with its traceback
        _log.exception("telemetry has failed")
        return None
