"""Commits: everything a transaction did to a tree, its tasks included, as one `multi`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hsm.engine._execution import Execution
from hsm.engine._rows import QueuedTask, decode_task, kind_of, task_row, task_row_key, write_kind
from hsm.engine._table import row_segments
from hsm.engine.ids import IdSource
from hsm.errors import HSMError, NotRegisteredError, SerializationError, StaleReferenceError
from hsm.machine import Lifecycle, lifecycle_of, state_name
from hsm.ref import Ref
from hsm.registry import Registry
from hsm.task import Singleton, Task
from hsm.tree import Node
from hsm.tree._operation import Deleted, compact
from persistence.executions import AFTER_SLASH, metadata_key, tombstone_key
from persistence.proto.execution_pb2 import (
    ExecutionMetadata,
    ExecutionStatus,
    ExecutionVersion,
    TombstoneRow,
)
from persistence.proto.hsm_pb2 import StateMachineNode, StateMachineTask
from persistence.store import CheckRequest, DeleteRequest, EngineStore, Operation, SetRequest

__all__ = ["Commit", "check_task", "plan"]

_STATUS = {
    Lifecycle.RUNNING: ExecutionStatus.EXECUTION_STATUS_RUNNING,
    Lifecycle.COMPLETED: ExecutionStatus.EXECUTION_STATUS_COMPLETED,
    Lifecycle.FAILED: ExecutionStatus.EXECUTION_STATUS_FAILED,
}


def check_task(task: Task, ref: Ref, node: Node) -> None:
    """Check that a task still makes sense.

    Raises:
        StaleReferenceError: it does not.
    """
    validate = getattr(task, "validate", None)
    if validate is not None:
        validate(ref, node)
    elif ref.transition_count and node.transition_count != ref.transition_count:
        raise StaleReferenceError(
            f"{ref} was made at transition {ref.transition_count}, the machine is at {node.transition_count}"
        )


class Commit:
    """What one commit writes, and what it changes in memory once it is written.

    Attributes:
        operations: for the store, the check of the execution's version first.
        queued: tasks that become runnable with it; their etag is that of the commit.
        metadata: the metadata row that it writes, if it does.
        withdrawn: ids of tasks whose rows it deletes because they have become pointless.
        tombstones: whether rows are left to be swept.
    """

    __slots__ = (
        "_execution",
        "_previous",
        "decoded",
        "metadata",
        "operations",
        "queued",
        "tombstones",
        "withdrawn",
    )

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._previous: list[tuple[Node, tuple[StateMachineTask, ...]]] = []
        self.operations: list[Operation] = []
        self.queued: list[QueuedTask] = []
        self.decoded: dict[str, Task] = {}
        self.metadata: ExecutionMetadata | None = None
        self.withdrawn: list[str] = []
        self.tombstones = False

    def set_tasks(self, node: Node, tasks: list[StateMachineTask]) -> None:
        """Give a node its new pending tasks, until `revert`."""
        self._previous.append((node, node._tasks))
        node._tasks = tuple(tasks)

    def revert(self) -> None:
        """Take back what planning has changed in memory."""
        for node, tasks in reversed(self._previous):
            node._tasks = tasks

    def done(self, etag: str) -> None:
        """Note that the commit took place."""
        execution = self._execution
        state = execution.root._state
        version = state.version
        if execution.history and execution.history[-1].failover_version == version.failover_version:
            execution.history = (*execution.history[:-1], version)
        else:
            execution.history = (*execution.history, version)
        execution.etag = etag
        if self.metadata is not None:
            execution.metadata = self.metadata
        for node, tasks in self._previous:
            kept = {task.id for task in node._tasks}
            for task in tasks:
                if task.id not in kept:
                    execution.decoded.pop(task.id, None)
        execution.decoded.update(self.decoded)
        for queued in self.queued:
            queued.etag = etag


class _Planner:
    __slots__ = ("commit", "execution", "ids", "now_nanos", "partition", "registry")

    def __init__(self, registry: Registry, ids: IdSource, execution: Execution, now_nanos: int) -> None:
        self.registry = registry
        self.ids = ids
        self.execution = execution
        self.partition = execution.partition
        self.now_nanos = now_nanos
        self.commit = Commit(execution)

    def write(self, key: str, value: bytes) -> None:
        self.commit.operations.append(SetRequest(partition=self.partition, key=key, value=value))

    def delete(self, key: str) -> None:
        self.commit.operations.append(DeleteRequest(partition=self.partition, key=key))

    def ref_to(self, node: Node, count: int) -> Ref:
        return Ref(
            self.execution.key,
            node.path,
            count,
            node.initial_version,
            node.last_update_version,
            node.version,
        )

    def version_row(self) -> None:
        execution = self.execution
        state = execution.root._state
        row = ExecutionVersion(next_ordinal=state.next_ordinal, root_type=execution.root._definition.type.id)
        history = execution.history
        if history and history[-1].failover_version == state.version.failover_version:
            history = history[:-1]
        for version in (*history, state.version):
            row.history.add(
                failover_version=version.failover_version, max_transition_count=version.transition_count
            )
        self.commit.operations.append(
            SetRequest(
                partition=self.partition,
                key=execution.version_key,
                value=row.SerializeToString(),
                etag=execution.etag,
            )
        )

    def new_tasks(self, pending: dict[Node, list[StateMachineTask]]) -> None:
        """The tasks that the transitions asked for: onto their nodes, and as queue rows."""
        for entry in compact(self.execution.root._state.log):
            if isinstance(entry, Deleted):
                continue
            node, output, count = entry
            for task in output.tasks:
                self.new_task(pending, node, count, task)

    def new_task(
        self, pending: dict[Node, list[StateMachineTask]], node: Node, count: int, task: Task
    ) -> None:
        type_id = task.type.id
        registration = self.registry.task(type_id)
        serializer = self.registry.task_serializer(type_id)
        if registration is None or serializer is None:
            raise NotRegisteredError(f"task type {task.type.name!r} (id {type_id}) is not registered")
        ref = self.ref_to(node, count)
        try:
            check_task(task, ref, node)
        except StaleReferenceError:
            return
        tasks = pending.get(node)
        if tasks is None:
            tasks = pending[node] = list(node._tasks)
        if registration.singleton is not None:
            same = [other for other in tasks if other.type == type_id]
            if same and registration.singleton is Singleton.IGNORE:
                return
            for other in same:
                tasks.remove(other)
                self.withdraw(other)
        try:
            data = serializer.serialize(task)
        except HSMError:
            raise
        except Exception as error:
            raise SerializationError(f"task {task.type.name!r} cannot be serialized: {error}") from error
        kind = task.kind
        message = StateMachineTask(
            id=self.ids.new(self.now_nanos),
            type=type_id,
            data=data,
            machine_transition_count=count,
            group=registration.group,
        )
        write_kind(message.kind, kind)
        tasks.append(message)
        row = task_row(message, ref)
        key = task_row_key(self.execution.key.namespace, message)
        self.write(key, row.SerializeToString())
        self.commit.queued.append(QueuedTask(self.partition, key, "", row, task=task))
        self.commit.decoded[message.id] = task

    def withdraw(self, pending: StateMachineTask) -> None:
        """Delete the row of a pending task, be it new or old."""
        for index, queued in enumerate(self.commit.queued):
            if queued.id == pending.id:
                del self.commit.queued[index]
        self.commit.withdrawn.append(pending.id)
        self.delete(task_row_key(self.execution.key.namespace, pending))

    def prune(self, pending: dict[Node, list[StateMachineTask]], node: Node, claimed: str) -> None:
        """Take the tasks off a changed node that have become pointless, and the one that has just run."""
        tasks = node._tasks
        if not tasks:
            return
        kept: list[StateMachineTask] = []
        for message in tasks:
            if message.id == claimed:
                continue
            if self.is_stale(message, node):
                self.withdraw(message)
            else:
                kept.append(message)
        if len(kept) != len(tasks):
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
            check_task(task, self.ref_to(node, message.machine_transition_count), node)
        except StaleReferenceError:
            return True
        return False

    def node_rows(self, nodes: Iterable[Node]) -> None:
        prefix = self.execution.prefix
        for node in nodes:
            message = StateMachineNode()
            node._write_row(message)
            self.write(prefix + row_segments(node.path), message.SerializeToString())

    def metadata_row(self) -> None:
        """Write the metadata if the root's state, as listings show it, has changed."""
        execution = self.execution
        data = execution.root.data(object)
        state, lifecycle = state_name(data), lifecycle_of(data)
        status = _STATUS[lifecycle]
        previous = execution.metadata
        if previous.state == state and previous.status == status and execution.etag is not None:
            return
        metadata = ExecutionMetadata()
        metadata.CopyFrom(previous)
        metadata.state = state
        metadata.status = status
        metadata.close_nanos = 0 if lifecycle is Lifecycle.RUNNING else self.now_nanos
        self.commit.metadata = metadata
        self.write(metadata_key(*execution.key), metadata.SerializeToString())


async def plan(
    store: EngineStore,
    registry: Registry,
    ids: IdSource,
    execution: Execution,
    now_nanos: int,
    *,
    claim: QueuedTask | None = None,
    keep_claim: bool = False,
    delete_rows: int = 100,
) -> Commit:
    """Work out the commit of what has been done to the execution's tree. Reads what deletes need to know.

    Args:
        store: to list rows of deleted subtrees.
        registry: serializers of tasks.
        ids: makes task ids.
        execution: with its tree changed, and its log not cleared.
        now_nanos: the time.
        claim: the queue task on whose behalf this is: its row must still be there, and goes.
        keep_claim: the claim's row stays.
        delete_rows: rows that the commit deletes itself.

    Raises:
        NotRegisteredError, SerializationError: a task cannot be written.
    """
    planner = _Planner(registry, ids, execution, now_nanos)
    commit = planner.commit
    state = execution.root._state
    planner.version_row()
    claimed = ""
    if claim is not None:
        if keep_claim:
            commit.operations.append(CheckRequest(claim.partition, claim.key, claim.etag))
        else:
            claimed = claim.id
            commit.operations.append(DeleteRequest(partition=claim.partition, key=claim.key, etag=claim.etag))
    for path, before_ordinal in state.removed:
        await _delete_rows(store, planner, row_segments(path), before_ordinal, delete_rows)
    changed: dict[Node, Any] = {node: None for node, row in state.dirty.items() if row}
    if claim is not None and claimed:
        holder = _holder(execution.root, claim)
        if holder is not None:
            changed[holder] = None
    pending: dict[Node, list[StateMachineTask]] = {}
    for node in changed:
        planner.prune(pending, node, claimed)
    planner.new_tasks(pending)
    try:
        for node, tasks in pending.items():
            commit.set_tasks(node, tasks)
        planner.node_rows(changed)
        if execution.root in changed:
            planner.metadata_row()
    except BaseException:
        commit.revert()
        raise
    return commit


def _holder(root: Node, claim: QueuedTask) -> Node | None:
    """The node that remembers a task."""
    try:
        node = root.child(claim.ref().path)
    except HSMError:
        return None
    return node if any(task.id == claim.id for task in node._tasks) else None


async def _delete_rows(
    store: EngineStore, planner: _Planner, segments: str, before_ordinal: int, limit: int
) -> None:
    execution = planner.execution
    key = execution.prefix + segments
    planner.delete(key)
    rows = [
        item async for item in store.scan(planner.partition, key + "/", key + AFTER_SLASH, limit=limit + 1)
    ]
    if len(rows) <= limit:
        for item in rows:
            planner.delete(item.key)
        return
    tombstone = TombstoneRow(before_ordinal=before_ordinal)
    tombstone.execution.CopyFrom(execution.metadata.key)
    tombstone.segments = segments
    planner.write(tombstone_key(*execution.key, before_ordinal), tombstone.SerializeToString())
    planner.commit.tombstones = True
