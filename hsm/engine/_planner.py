"""The planner: the operations of one commit, and what each of them is for."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from hsm.engine._children import UNASKED, StartChild, owed
from hsm.engine._commit import Commit, Removed, check_task
from hsm.engine._entries import history_row
from hsm.engine._execution import Execution
from hsm.engine._marks import marks
from hsm.engine._rows import QueuedTask, decode_task, kind_of, task_row_key, write_kind
from hsm.engine._search import index_keys, write_value
from hsm.engine._transaction import still_paused
from hsm.engine.ids import IdSource
from hsm.engine.search import SearchValue
from hsm.errors import HSMError, NotRegisteredError, SerializationError, StaleReferenceError
from hsm.machine import Lifecycle, lifecycle_of, state_name
from hsm.ref import Ref
from hsm.registry import Registry
from hsm.task import Singleton, Task, TaskSerializer
from hsm.tree import Node
from hsm.tree._delta import record_deletions
from persistence.executions import (
    answer_key,
    dead_letter_key,
    expiry_key,
    history_key,
    notice_key,
    parked_key,
    tombstone_key,
)
from persistence.proto.execution_pb2 import (
    AnswerRow,
    ExecutionRow,
    ExecutionStatus,
    TombstoneKind,
    TombstoneRow,
)
from persistence.proto.hsm_pb2 import StateMachineTask
from persistence.store import DeleteRequest, SetRequest

__all__ = ["ANSWERED", "Amendment", "Planner"]

ANSWERED: Final = "call:"
"""Begins what is remembered of a request that has an answer."""

# Looked up once: protobuf finds the number of an enum value by its name, every time.
_START_CHILD: Final = StartChild.type.id
_RUNNING: Final = ExecutionStatus.EXECUTION_STATUS_RUNNING
_TERMINATED: Final = ExecutionStatus.EXECUTION_STATUS_TERMINATED
_COMPLETED: Final = ExecutionStatus.EXECUTION_STATUS_COMPLETED
_FAILED: Final = ExecutionStatus.EXECUTION_STATUS_FAILED


class Planner:
    __slots__ = (
        "_remembered",
        "_retention",
        "commit",
        "execution",
        "ids",
        "now_nanos",
        "operations",
        "partition",
        "registry",
        "removed",
        "starts_child",
    )

    def __init__(
        self,
        registry: Registry,
        ids: IdSource,
        execution: Execution,
        now_nanos: int,
        retention_nanos: int | None,
        remembered: int,
    ) -> None:
        self.registry = registry
        self.ids = ids
        self.execution = execution
        self.partition = execution.partition
        self.now_nanos = now_nanos
        self._retention = retention_nanos
        self._remembered = remembered
        self.removed: Sequence[Removed] = ()
        self.starts_child = False
        self.commit = Commit(execution)
        self.operations = self.commit.operations

    def write(self, key: str, value: bytes) -> None:
        self.operations.append(SetRequest(partition=self.partition, key=key, value=value))

    def delete(self, key: str) -> None:
        self.operations.append(DeleteRequest(partition=self.partition, key=key))

    def ref_to(self, node: Node, count: int, task_id: str, attempt: int = 1) -> Ref:
        return Ref(
            self.execution.key,
            node.path,
            count,
            node._initial_version,
            node._last_version,
            node._state.version,
            task_id,
            attempt,
        )

    def execution_row(self, *, root_changed: bool, amend: Amendment | None) -> None:
        """The row that everybody checks; it comes first, so that a lost race is told as one."""
        execution = self.execution
        state = execution.root._state
        row = ExecutionRow()
        row.CopyFrom(execution.row)
        version = state.version
        history = row.history
        if execution.history and execution.history[-1].failover_version == version.failover_version:
            history[-1].max_transition_count = version.transition_count
        else:
            history.add(
                failover_version=version.failover_version, max_transition_count=version.transition_count
            )
        row.next_ordinal = state.next_ordinal
        if self.starts_child:
            row.has_children = True
        if state.removed:
            keep = 0 if execution.cluster is None else execution.cluster.tombstones
            record_deletions(row, version, dict.fromkeys(path for path, _ in state.removed), keep)
            if row.paused:
                self._forget_pauses(row)
        if root_changed:
            row.root.Clear()
            execution.root._write_row(row.root)
            data = execution.root.data(object)
            lifecycle = lifecycle_of(data)
            row.state = state_name(data)
            if row.status == _TERMINATED:
                pass
            elif lifecycle is Lifecycle.RUNNING:
                row.status = _RUNNING
                row.close_nanos = 0
            else:
                row.status = _COMPLETED if lifecycle is Lifecycle.COMPLETED else _FAILED
                row.close_nanos = row.close_nanos or self.now_nanos
            if (shown := getattr(data, "search_attributes", None)) is not None:
                self._show(row, shown())
        if amend is not None:
            amend(self, row)
            self.commit.amended = True
        before = None if execution.etag is None else execution.row
        own = owed(row, before, starts_child=self.starts_child)
        if row.close_nanos != execution.row.close_nanos:
            self._schedule_expiry(row)
        if own:
            self._add_own(row, own)
            root_changed = True
        if execution.cluster is not None:
            self.operations += marks(execution.partition, execution.key, execution.cluster)
        if row.keeps_history:
            entry = history_row(execution, self.commit, self.removed, row, root_changed=root_changed)
            entry.time_nanos = self.now_nanos
            count = version.transition_count
            self.write(history_key(*execution.key, count), entry.SerializeToString())
        self.commit.set_row(row)
        self.operations.insert(
            0,
            SetRequest(
                partition=self.partition,
                key=execution.row_key,
                value=row.SerializeToString(),
                etag=execution.etag,
            ),
        )

    def _show(self, row: ExecutionRow, shown: Mapping[str, SearchValue]) -> None:
        """Note the search attributes; of their index, only what has changed is written."""
        row.search_attributes.clear()
        for name, value in shown.items():
            write_value(row.search_attributes[name], name, value)
        key = self.execution.key
        before = set(index_keys(*key, self.execution.row.search_attributes))
        after = set(index_keys(*key, row.search_attributes))
        for gone in sorted(before - after):
            self.delete(gone)
        for added in sorted(after - before):
            self.write(added, b"")

    def remember(self, row: ExecutionRow, request: str, answer: AnswerRow | None = None) -> None:
        """Note that a request is carried out with this commit, and its answer; the oldest are forgotten.

        Only the row says which requests are known: it is read anyway. The answers have rows of their own, so
        that not every commit writes them again.
        """
        key = self.execution.key
        row.request_ids.append(request)
        if answer is not None:
            self.write(answer_key(*key, request), answer.SerializeToString())
        surplus = len(row.request_ids) - self._remembered
        if surplus > 0:
            for forgotten in row.request_ids[:surplus]:
                if forgotten.startswith(ANSWERED):
                    self.delete(answer_key(*key, forgotten))
            del row.request_ids[:surplus]

    def _add_own(self, row: ExecutionRow, own: Sequence[Task]) -> None:
        root = self.execution.root
        # No other task of one that is terminated runs any more.
        tasks = [] if row.status == _TERMINATED else list(root._tasks)
        tasks.extend([self._own_task(root, task) for task in own])
        self.commit.set_tasks(root, tasks)
        row.root.Clear()
        root._write_row(row.root)

    def _own_task(self, root: Node, task: Task) -> StateMachineTask:
        registration = self.registry.task(task.type.id)
        serializer = self.registry.task_serializer(task.type.id)
        assert registration is not None
        assert serializer is not None
        ref = self.ref_to(root, root._count, self.ids.new(self.now_nanos))
        return self._write_task(ref, task, registration.group, serializer)

    def put_back(self, row: ExecutionRow) -> None:
        """Have the parked tasks of the execution put back into their queues, by whoever sweeps."""
        state = self.execution.root._state
        tombstone = TombstoneRow(kind=TombstoneKind.TOMBSTONE_KIND_PARKED)
        name = tombstone.execution
        name.namespace, name.id, name.run_id = self.execution.key
        self.write(tombstone_key(*self.execution.key, state.take_ordinal()), tombstone.SerializeToString())
        row.next_ordinal = state.next_ordinal

    def _forget_pauses(self, row: ExecutionRow) -> None:
        """Let no machine be paused because another one was that had its key."""
        left = still_paused(row, [path for path, _ in self.execution.root._state.removed])
        if len(left) < len(row.paused):
            del row.paused[:]
            row.paused.extend(left)
            # Parked tasks of machines that are still there come up again, and may be parked again.
            self.put_back(row)
            self.commit.tombstones = self.commit.amended = True

    def notice(self) -> None:
        """Tell whoever runs the shard, in another process, to read the execution anew."""
        self.write(notice_key(*self.execution.key), b"")

    def _schedule_expiry(self, row: ExecutionRow) -> None:
        """Have a closed execution deleted in time, and one that has been opened again not."""
        key = self.execution.key
        if row.expiry_nanos:
            self.delete(expiry_key(row.expiry_nanos, *key))
            row.expiry_nanos = 0
        if row.close_nanos and self._retention is not None:
            row.expiry_nanos = row.close_nanos + self._retention
            self.write(expiry_key(row.expiry_nanos, *key), b"")

    def new_task(
        self, pending: dict[Node, list[StateMachineTask]], node: Node, count: int, task: Task
    ) -> None:
        """A task that a transition asked for: onto its node, and as a queue row."""
        type_id = task.type.id
        registration = self.registry.task(type_id)
        serializer = self.registry.task_serializer(type_id)
        if registration is None or serializer is None:
            raise NotRegisteredError(f"task type {task.type.name!r} (id {type_id}) is not registered")
        if type_id == _START_CHILD:
            self.starts_child = True
        task_id = self.ids.new(self.now_nanos)
        ref = self.ref_to(node, count, task_id)
        try:
            check_task(task, ref, node)
        except StaleReferenceError:
            return
        tasks = pending.get(node)
        if tasks is None:
            tasks = pending[node] = list(node._tasks)
        if registration.singleton is not None:
            same = [other for other in tasks if other.type == type_id]
            if registration.singleton is Singleton.IGNORE:
                # A dead letter waits for people, maybe for ever: it does not stand for the next task.
                if not all(other.dead for other in same):
                    return
                same = []
            for other in same:
                tasks.remove(other)
                self.withdraw(other)
        tasks.append(self._write_task(ref, task, registration.group, serializer))

    def _write_task(
        self, ref: Ref, task: Task, group: str, serializer: TaskSerializer[Any]
    ) -> StateMachineTask:
        try:
            data = serializer.serialize(task)
        except HSMError:
            raise
        except Exception as error:
            raise SerializationError(f"task {task.type.name!r} cannot be serialized: {error}") from error
        message = StateMachineTask(
            id=ref.task_id,
            type=task.type.id,
            data=data,
            machine_transition_count=ref.transition_count,
            group=group,
        )
        kind = task.kind
        write_kind(message.kind, kind)
        queued = QueuedTask.fresh(self.partition, message, ref, task, kind, self.execution.trace)
        self.write(queued.key, queued.value())
        self.commit.queued.append(queued)
        self.commit.decoded[ref.task_id] = task
        return message

    def withdraw(self, pending: StateMachineTask) -> None:
        """Delete the row of a pending task, be it new or old."""
        for index, queued in enumerate(self.commit.queued):
            if queued.id == pending.id:
                del self.commit.queued[index]
                self.commit.decoded.pop(pending.id, None)
                break
        self.commit.withdrawn.append(pending.id)
        self.delete(task_row_key(self.execution.key.namespace, pending))
        if self.execution.held:
            self.delete(parked_key(*self.execution.key, pending.id))

    def prune(
        self, pending: dict[Node, list[StateMachineTask]], node: Node, claim: QueuedTask | None
    ) -> None:
        """Take the tasks off a changed node that have become pointless, and the one that has just run."""
        tasks = node._tasks
        kept: list[StateMachineTask] = []
        for message in tasks:
            if claim is not None and message.id == claim.id:
                if claim.instead is not None:
                    kept.append(_moved(message, claim.instead))
            elif self.is_stale(message, node):
                self.withdraw(message)
            else:
                kept.append(message)
        if len(kept) != len(tasks) or any(map(operator.is_not, kept, tasks)):
            pending[node] = kept

    def withdraw_all(self, pending: dict[Node, list[StateMachineTask]], node: Node) -> None:
        """Take all tasks off a node, dead letters too; but for those of which the node knows nothing."""
        kept: list[StateMachineTask] = []
        for message in node._tasks:
            if message.type in UNASKED:
                kept.append(message)
                continue
            self.withdraw(message)
            if message.dead:
                self.delete(dead_letter_key(message.id))
        pending[node] = kept

    def is_stale(self, message: StateMachineTask, node: Node) -> bool:
        task = self.execution.decoded.get(message.id)
        if task is None:
            try:
                task = decode_task(self.registry, message.type, message.data, kind_of(message.kind))
            except HSMError:
                # Its own run will find out, and put it where people look.
                return False
            self.commit.decoded[message.id] = task
        try:
            # How often it was tried, only its row knows.
            check_task(task, self.ref_to(node, message.machine_transition_count, message.id, 0), node)
        except StaleReferenceError:
            return True
        except Exception:  # noqa: BLE001 - a `validate` that fails must not hold up other tasks' commits
            return False
        return False

    def remove(self, removed: Removed) -> None:
        """Delete the rows of a subtree, or leave them to the sweeper."""
        execution = self.execution
        self.delete(execution.prefix + removed.segments)
        for task in removed.tasks:
            self.withdraw(task)
        if removed.keys is not None:
            for key in removed.keys:
                self.delete(key)
            return
        tombstone = TombstoneRow(segments=removed.segments, before_ordinal=removed.before_ordinal)
        name = tombstone.execution
        name.namespace, name.id, name.run_id = execution.key
        self.write(tombstone_key(*execution.key, removed.number), tombstone.SerializeToString())
        self.commit.tombstones = True


Amendment: TypeAlias = Callable[[Planner, ExecutionRow], None]
"""Changes the execution's row, as the commit will write it, and adds operations of its own."""


def _moved(pending: StateMachineTask, row: SetRequest) -> StateMachineTask:
    """A pending task whose row is among the dead letters now, or not any more."""
    moved = StateMachineTask()
    moved.CopyFrom(pending)
    moved.dead = row.key == dead_letter_key(pending.id)
    return moved
