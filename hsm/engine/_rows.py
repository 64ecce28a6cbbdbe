"""Between tasks in memory and the rows that persist them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from hsm.engine._children import DETACHED
from hsm.engine._execution import decode_row
from hsm.engine.clock import from_nanos, to_nanos
from hsm.engine.telemetry import TraceContext
from hsm.errors import HSMError, NotRegisteredError, SerializationError
from hsm.machine import Key, VersionedTransition
from hsm.ref import ExecutionKey, Ref
from hsm.registry import Registry
from hsm.task import ImmediateKind, OutboundKind, Task, TaskKind, TimerKind
from persistence.executions import group_prefix, timer_key
from persistence.proto.execution_pb2 import TaskRow
from persistence.proto.hsm_pb2 import (
    StateMachineRef,
    StateMachineTask,
    StateMachineTaskKind,
    VersionedTransition as VersionMessage,
)
from persistence.store import SetRequest

if TYPE_CHECKING:
    from hsm.engine._task_queue import TaskQueue

__all__ = [
    "QueueKey",
    "QueuedTask",
    "decode_task",
    "is_detached",
    "kind_of",
    "task_row",
    "task_row_key",
]

QueueKey = tuple[str, str, str | None]
"""Namespace, group and destination of a queue; immediate tasks and timers have no destination."""


class QueuedTask:
    """A task row in memory.

    Attributes:
        partition: where the row is.
        key: the row's key.
        etag: the row's etag; every change of the row checks it.
        id: task id, the last segment of the key.
        queue: the queue that it runs in.
        is_timer: whether its row is among the timers, be it one or wait for its next try.
        row: the message; None if it cannot be decoded.
        raw: the row's value where it cannot be decoded.
        task: the decoded task, if it has been needed.
        due: not to be run before, in nanoseconds.
        is_fresh: whether it was never read from the store.
        tries: attempts in this process that do not count against the task.
        place: the queue in memory that has it.
        pausing: whether it waits for its next try, rather than for a time that was asked for.
        run: what runs it now.
        spent: the row is gone, together with a write under this task.
        instead: the row that takes the place of this one when the task is completed.
        instead_etag: its etag, once it is written.
    """

    __slots__ = (
        "_execution",
        "_ref",
        "due",
        "etag",
        "id",
        "instead",
        "instead_etag",
        "is_fresh",
        "is_timer",
        "key",
        "partition",
        "pausing",
        "place",
        "queue",
        "raw",
        "row",
        "run",
        "spent",
        "task",
        "tries",
    )

    def __init__(self, partition: str, key: str, etag: str, queue: QueueKey, row: TaskRow | None) -> None:
        self.partition = partition
        self.key = key
        self.etag = etag
        self.id = key[key.rindex("/") + 1 :]
        self.is_fresh = False
        self.is_timer = key[0] == "t"
        self.queue = queue
        self.row = row
        self.run: asyncio.Task[None] | None = None
        self.raw = b""
        self.task: Task | None = None
        self.due = 0
        self.tries = 0
        self.pausing = False
        self.place: TaskQueue | None = None
        self.spent = False
        self.instead: SetRequest | None = None
        self.instead_etag = ""
        self._execution: ExecutionKey | None = None
        self._ref: Ref | None = None

    @classmethod
    def fresh(
        cls,
        partition: str,
        pending: StateMachineTask,
        ref: Ref,
        task: Task,
        kind: TaskKind,
        trace: TraceContext | None = None,
    ) -> QueuedTask:
        """The queue task of a task that the node of `ref` has asked for; its etag comes with the commit."""
        row = task_row(pending, ref)
        if trace is not None:
            row.traceparent, row.tracestate = trace
        namespace, group = ref.execution.namespace, pending.group
        destination = kind.destination if isinstance(kind, OutboundKind) else None
        due = 0
        if isinstance(kind, TimerKind):
            due = pending.kind.deadline_nanos
            key = timer_key(due, pending.id)
        else:
            key = group_prefix(namespace, group, destination) + pending.id
        queued = cls(partition, key, "", (namespace, group, destination), row)
        queued.task = task
        queued.due = due
        queued._execution = ref.execution
        queued._ref = ref
        queued.is_fresh = True
        return queued

    @classmethod
    def parse(cls, partition: str, key: str, etag: str, value: bytes) -> QueuedTask:
        """The task in a row; one that cannot be decoded has no `row`."""
        try:
            row = decode_row(TaskRow, key, value)
        except SerializationError:
            # A queue of its own: it runs only to be dead-lettered.
            poison = cls(partition, key, etag, ("", "", None), None)
            poison.raw = value
            return poison
        return cls.of_row(partition, key, etag, row)

    @classmethod
    def of_row(cls, partition: str, key: str, etag: str, row: TaskRow) -> QueuedTask:
        """The task of a decoded row."""
        destination = row.kind.destination if row.kind.HasField("destination") else None
        queued = cls(partition, key, etag, (row.execution.namespace, row.group, destination), row)
        queued.due = max(row.not_before_nanos, row.kind.deadline_nanos)
        return queued

    def value(self) -> bytes:
        """What the row holds."""
        return self.raw if self.row is None else self.row.SerializeToString()

    def replace(self, key: str, etag: str, row: TaskRow | None) -> None:
        """Note that the row was written anew, maybe under another key."""
        self.key, self.etag, self.row = key, etag, row
        self.is_timer = key[0] == "t"
        self.due = 0 if row is None else max(row.not_before_nanos, row.kind.deadline_nanos)
        self.is_fresh = False
        self._ref = None

    @property
    def displaced(self) -> bool:
        """Whether the row is not where the transition that asked for the task has put it."""
        row = self.row
        return row is not None and self.key != _row_key(row.execution.namespace, row.group, row.kind, self.id)

    @property
    def execution(self) -> ExecutionKey:
        """The execution that it belongs to."""
        if self._execution is None:
            assert self.row is not None
            key = self.row.execution
            self._execution = ExecutionKey(key.namespace, key.id, key.run_id)
        return self._execution

    def ref(self) -> Ref:
        """The reference that its executor is given."""
        if self._ref is None:
            assert self.row is not None
            ref = self.row.info.ref
            self._ref = Ref(
                self.execution,
                tuple([Key(key.type, key.id) for key in ref.path]),
                ref.machine_transition_count,
                _version(ref.machine_initial_version),
                _version(ref.machine_last_update_version),
                VersionedTransition(
                    ref.mutable_state_namespace_failover_version, ref.mutable_state_transition_count
                ),
                self.row.task_id,
                self.row.failures + 1,
            )
        return self._ref


def is_detached(task: QueuedTask | None) -> bool:
    """Whether a task runs also when its execution was terminated."""
    return task is not None and task.row is not None and task.row.info.type in DETACHED


def _version(message: VersionMessage) -> VersionedTransition:
    return VersionedTransition(message.failover_version, message.max_transition_count)


def kind_of(message: StateMachineTaskKind) -> TaskKind:
    """The kind in a message."""
    which = message.WhichOneof("kind")
    if which == "deadline_nanos":
        return TimerKind(from_nanos(message.deadline_nanos))
    if which == "destination":
        return OutboundKind(message.destination)
    return ImmediateKind()


def write_kind(message: StateMachineTaskKind, kind: TaskKind) -> None:
    """Put a kind into a message."""
    if isinstance(kind, TimerKind):
        try:
            message.deadline_nanos = to_nanos(kind.deadline)
        except ValueError as error:
            raise SerializationError(
                f"deadline {kind.deadline.isoformat()} is after the year 2262"
            ) from error
    elif isinstance(kind, OutboundKind):
        message.destination = kind.destination
    else:
        message.immediate.SetInParent()


def write_ref(message: StateMachineRef, ref: Ref) -> None:
    """Put a reference into a message; the execution stands beside it."""
    for key in ref.path:
        message.path.add(type=key.type, id=key.id)
    failover_version, transition_count = ref.execution_version
    if failover_version:
        message.mutable_state_namespace_failover_version = failover_version
    message.mutable_state_transition_count = transition_count
    message.machine_transition_count = ref.transition_count
    _write_version(message.machine_initial_version, ref.initial_version)
    _write_version(message.machine_last_update_version, ref.last_update_version)


def _write_version(message: VersionMessage, version: VersionedTransition) -> None:
    failover_version, transition_count = version
    if failover_version:
        message.failover_version = failover_version
    message.max_transition_count = transition_count


def task_row(pending: StateMachineTask, ref: Ref) -> TaskRow:
    """The queue row of a pending task of the node that `ref` points to."""
    row = TaskRow(task_id=pending.id, group=pending.group, kind=pending.kind)
    row.execution.namespace, row.execution.id, row.execution.run_id = ref.execution
    info = row.info
    info.type = pending.type
    info.data = pending.data
    write_ref(info.ref, ref)
    return row


def task_row_key(namespace: str, pending: StateMachineTask) -> str:
    """The key of a pending task's row, unless it had to move (see `find_displaced`)."""
    return _row_key(namespace, pending.group, pending.kind, pending.id)


def _row_key(namespace: str, group: str, kind: StateMachineTaskKind, task_id: str) -> str:
    which = kind.WhichOneof("kind")
    if which == "deadline_nanos":
        return timer_key(kind.deadline_nanos, task_id)
    destination = kind.destination if which == "destination" else None
    return group_prefix(namespace, group, destination) + task_id


def decode_task(registry: Registry, type_id: int, data: bytes, kind: TaskKind) -> Task:
    """The task in a row.

    Raises:
        NotRegisteredError: the task type is not registered.
        SerializationError: the payload cannot be decoded.
        InvalidTaskKindError: the task type does not go with the kind.
    """
    serializer = registry.task_serializer(type_id)
    if serializer is None:
        raise NotRegisteredError(f"task type {type_id} is not registered")
    try:
        task: Task = serializer.deserialize(data, kind)
    except HSMError:
        raise
    except Exception as error:
        raise SerializationError(f"{data[:80]!r} is no task of type {type_id}: {error}") from error
    return task
