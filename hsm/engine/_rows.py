"""Between tasks in memory and the rows that persist them."""

from __future__ import annotations

from hsm.engine._execution import decode_row
from hsm.engine.clock import from_nanos, to_nanos
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

__all__ = [
    "QueueKey",
    "QueuedTask",
    "decode_task",
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
        row: the message; None if it cannot be decoded.
        task: the decoded task, if it has been needed.
        due: not to be run before, in nanoseconds.
        tries: attempts in this process that do not count against the task.
        spent: the row is gone, together with a write under this task.
    """

    __slots__ = ("_ref", "due", "etag", "key", "partition", "raw", "row", "spent", "task", "tries")

    def __init__(
        self,
        partition: str,
        key: str,
        etag: str,
        row: TaskRow | None,
        *,
        raw: bytes = b"",
        task: Task | None = None,
    ) -> None:
        self.partition = partition
        self.key = key
        self.etag = etag
        self.row = row
        self.raw = raw
        self.task = task
        self.due = 0
        self.tries = 0
        self.spent = False
        self._ref: Ref | None = None
        if row is not None:
            self.due = max(row.not_before_nanos, row.kind.deadline_nanos)

    @classmethod
    def parse(cls, partition: str, key: str, etag: str, value: bytes) -> QueuedTask:
        """The task in a row; one that cannot be decoded has no `row`."""
        try:
            row = decode_row(TaskRow, key, value)
        except SerializationError:
            return cls(partition, key, etag, None, raw=value)
        return cls(partition, key, etag, row)

    @property
    def id(self) -> str:
        """The task id: the last segment of the key."""
        return self.key.rpartition("/")[2]

    @property
    def is_timer(self) -> bool:
        """Whether it waits in the timer queue first."""
        return self.key.startswith("t/")

    @property
    def queue(self) -> QueueKey:
        """The queue that it runs in."""
        row = self.row
        if row is None:
            return "", "", None
        destination = row.kind.destination if row.kind.WhichOneof("kind") == "destination" else None
        return row.execution.namespace, row.group, destination

    @property
    def execution(self) -> ExecutionKey:
        """The execution that it belongs to."""
        assert self.row is not None
        key = self.row.execution
        return ExecutionKey(key.namespace, key.id, key.run_id)

    def ref(self) -> Ref:
        """The reference that its executor is given."""
        if self._ref is not None:
            return self._ref
        assert self.row is not None
        ref = self.row.info.ref
        self._ref = Ref(
            self.execution,
            tuple(Key(key.type, key.id) for key in ref.path),
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

    def replace(self, key: str, etag: str, row: TaskRow) -> None:
        """Note that the row was written anew."""
        self.key, self.etag, self.row = key, etag, row
        self.due = max(row.not_before_nanos, row.kind.deadline_nanos)
        self._ref = None


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
        message.deadline_nanos = to_nanos(kind.deadline)
    elif isinstance(kind, OutboundKind):
        message.destination = kind.destination
    else:
        message.immediate.SetInParent()


def write_ref(message: StateMachineRef, ref: Ref) -> None:
    """Put a reference into a message; the execution stands beside it."""
    for key in ref.path:
        message.path.add(type=key.type, id=key.id)
    version = ref.execution_version
    message.mutable_state_namespace_failover_version = version.failover_version
    message.mutable_state_transition_count = version.transition_count
    message.machine_transition_count = ref.transition_count
    message.machine_initial_version.failover_version = ref.initial_version.failover_version
    message.machine_initial_version.max_transition_count = ref.initial_version.transition_count
    message.machine_last_update_version.failover_version = ref.last_update_version.failover_version
    message.machine_last_update_version.max_transition_count = ref.last_update_version.transition_count


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
    """The key of a pending task's row, unless a retry has moved it."""
    which = pending.kind.WhichOneof("kind")
    if which == "deadline_nanos":
        return timer_key(pending.kind.deadline_nanos, pending.id)
    destination = pending.kind.destination if which == "destination" else None
    return group_prefix(namespace, pending.group, destination) + pending.id


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
