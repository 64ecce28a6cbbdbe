"""What the engine tells about executions, tasks and dead letters."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import attrs

from hsm.engine.breaker import BreakerState
from hsm.engine.search import SearchValue
from hsm.machine import Key, Lifecycle, MachineType, VersionedTransition
from hsm.ref import ExecutionKey
from hsm.task import TaskKind

__all__ = [
    "DeadLetter",
    "ExecutionInfo",
    "ExecutionPage",
    "ExecutionTree",
    "HistoryEntry",
    "NodeInfo",
    "PendingTask",
    "QueueInfo",
]


@attrs.frozen
class ExecutionInfo:
    """One line of a listing.

    Attributes:
        key: with the run id.
        status: whether the execution is still running, or how it was closed.
        state: name of the root's state.
        start_time: when it was started.
        close_time: when its root had no more to do; None while it runs.
        error: why its row cannot be read, if so; then only the key and this are known.
        close_reason: why it was terminated; "" otherwise.
        paused: whether tasks of it, or of some of its machines, are kept from running.
        attributes: the search attributes that its root shows.
        memo: what was given to `start` for whoever lists it.
        parent: the execution that has started it as its child; None if none has.
    """

    key: ExecutionKey
    status: Lifecycle
    state: str
    start_time: datetime
    close_time: datetime | None
    error: str = ""
    close_reason: str = ""
    paused: bool = False
    attributes: Mapping[str, SearchValue] = attrs.field(factory=dict[str, SearchValue], hash=False)
    memo: bytes = b""
    parent: ExecutionKey | None = None


@attrs.frozen
class ExecutionPage:
    """A part of a listing.

    Attributes:
        executions: that match.
        token: for the next page; "" if there is none. A page may be the last one and empty.
    """

    executions: tuple[ExecutionInfo, ...]
    token: str = ""


@attrs.frozen
class PendingTask:
    """A task that has not run yet.

    Attributes:
        id: task id.
        name: of the task type, or its id as text if it is not registered.
        kind: when and where it runs.
        failures: attempts that have failed.
        not_before: the next try after a failure.
        last_error: what the last attempt met; "" before the first.
    """

    id: str
    name: str
    kind: TaskKind
    failures: int = 0
    not_before: datetime | None = None
    last_error: str = ""


@attrs.frozen
class NodeInfo:
    """One machine of a tree.

    Attributes:
        path: keys from the root.
        machine_type: id and name; the name is the id as text if the type is not registered.
        state: name of its state; "" if it has none or if that is not known.
        transition_count: transitions it has made.
        data: its data as text; the number of its bytes if the type is not registered.
        tasks: what it waits for.
    """

    path: tuple[Key, ...]
    machine_type: MachineType
    state: str
    transition_count: int
    data: str
    tasks: tuple[PendingTask, ...]


@attrs.frozen
class ExecutionTree:
    """An execution with all its machines, parents first."""

    info: ExecutionInfo
    nodes: tuple[NodeInfo, ...]


@attrs.frozen
class HistoryEntry:
    """What one commit has changed in an execution.

    Attributes:
        version: the point that it brought the execution to.
        time: of the commit.
        changed: paths of the machines that were added or have changed, or whose tasks have.
        deleted: paths of the machines that were deleted, with all below them.
        tasks: ids of the tasks that were asked for.
        data: the entry as it is stored, a `HistoryRow`; `hsm.engine.history.tree_of` makes trees of these.
    """

    version: VersionedTransition
    time: datetime
    changed: tuple[tuple[Key, ...], ...]
    deleted: tuple[tuple[Key, ...], ...]
    tasks: tuple[str, ...]
    data: bytes = attrs.field(default=b"", repr=False)


@attrs.frozen
class DeadLetter:
    """A task that will not be tried again unless it is replayed.

    Attributes:
        task_id: of the task.
        execution: it belongs to; None if its row, or that of the task, could not be decoded.
        path: of the machine.
        task_type: name of the task type, or its id as text.
        kind: when and where it was to run; None if the row could not be decoded.
        attempts: made in all.
        error_type: class of the last error.
        error: its text.
        time: of the last attempt.
        partition: where the row is.
        etag: of the row; a replay checks it.
    """

    task_id: str
    execution: ExecutionKey | None
    path: tuple[Key, ...]
    task_type: str
    kind: TaskKind | None
    attempts: int
    error_type: str
    error: str
    time: datetime
    partition: str = attrs.field(repr=False)
    etag: str = attrs.field(repr=False)


@attrs.frozen
class QueueInfo:
    """One queue of this process, as far as it is in memory.

    Attributes:
        namespace: of its executions.
        group: of its tasks: the name of their type unless it is registered otherwise.
        destination: of its tasks; None for immediate tasks and timers.
        running: tasks that run now.
        ready: tasks that could run now, but for the bounds of the queue.
        waiting: tasks in memory that wait for their time: timers, and what is tried again.
        overflow: whether the store holds more tasks that could run.
        concurrency: tasks that may run at once.
        breaker: the state of its circuit breaker.
        failures: that the circuit breaker has counted in a row.
        open_until: when the open circuit breaker will let a task through.
        last_error: what the last run that failed met; "" if none has, or if that was long ago.
        last_error_time: when that was.
    """

    namespace: str
    group: str
    destination: str | None
    running: int
    ready: int
    waiting: int
    overflow: bool
    concurrency: int
    breaker: BreakerState = BreakerState.CLOSED
    failures: int = 0
    open_until: datetime | None = None
    last_error: str = ""
    last_error_time: datetime | None = None
