"""Commits: everything a transaction did to a tree, its tasks included, as one `multi`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from google.protobuf.message import DecodeError

from hsm.engine._execution import Execution, is_held
from hsm.engine._rows import QueuedTask
from hsm.engine._table import row_segments
from hsm.errors import StaleReferenceError
from hsm.ref import Ref
from hsm.task import Task
from hsm.tree import Node
from persistence.executions import AFTER_SLASH
from persistence.proto.execution_pb2 import ExecutionRow
from persistence.proto.hsm_pb2 import StateMachineNode, StateMachineTask
from persistence.store import EngineStore, GetRequest, Item, Operation

__all__ = ["Commit", "Removed", "check_task", "find_removed", "tasks_of"]


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


class Removed(NamedTuple):
    """The rows of a deleted subtree.

    Attributes:
        segments: where it was, as part of the rows' keys.
        before_ordinal: its rows have a lower ordinal.
        keys: of its rows; None if they are too many for one commit.
        tasks: that its machines have waited for, as far as the rows were read.
        number: of its tombstone, never used twice in an execution.
    """

    segments: str
    before_ordinal: int
    keys: Sequence[str] | None
    tasks: Sequence[StateMachineTask] = ()
    number: int = 0


class Commit:
    """What one commit writes, and what it changes in memory once it is written.

    Attributes:
        operations: for the store, the check of the execution's version first.
        queued: tasks that become runnable with it; their etag is that of the commit.
        withdrawn: ids of tasks whose rows it deletes because they have become pointless.
        tombstones: whether rows are left to be swept.
        amended: whether more than the tree has changed.
    """

    __slots__ = (
        "_execution",
        "_previous",
        "_row",
        "amended",
        "decoded",
        "operations",
        "queued",
        "tombstones",
        "withdrawn",
    )

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._previous: list[tuple[Node, tuple[StateMachineTask, ...]]] = []
        self._row = execution.row
        self.operations: list[Operation] = []
        self.queued: list[QueuedTask] = []
        self.decoded: dict[str, Task] = {}
        self.withdrawn: list[str] = []
        self.tombstones = False
        self.amended = False

    def set_row(self, row: ExecutionRow) -> None:
        """The execution's row, once this is done."""
        self._row = row

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
        version = execution.root._state.version
        history = execution.history
        if history and history[-1].failover_version == version.failover_version:
            history = history[:-1]
        execution.history = (*history, version)
        execution.etag = etag
        execution.row = self._row
        if self.amended:
            execution.held = is_held(self._row)
        decoded = execution.decoded
        if self.tombstones:
            # Nobody has looked at the tasks below them.
            decoded.clear()
        if self.decoded:
            decoded.update(self.decoded)
        for task_id in self.withdrawn:
            decoded.pop(task_id, None)
        for node, tasks in self._previous:
            if tasks:
                kept = {task.id for task in node._tasks}
                for task in tasks:
                    if task.id not in kept:
                        decoded.pop(task.id, None)
        for queued in self.queued:
            queued.etag = etag


async def find_removed(store: EngineStore, execution: Execution, limit: int) -> list[Removed]:
    """What the store holds of the subtrees that were deleted, up to `limit` rows in all."""
    found: list[Removed] = []
    partition, state = execution.partition, execution.root._state
    for path, before_ordinal in state.removed:
        segments = row_segments(path)
        key = execution.prefix + segments
        own = await store.get(GetRequest(partition=partition, key=key))
        below = store.scan(partition, key + "/", key + AFTER_SLASH, limit=limit + 1)
        items: list[Item] = [item async for item in below]
        if len(items) > limit:
            tasks = tasks_of([own.data or b""])
            found.append(Removed(segments, before_ordinal, None, tasks, state.take_ordinal()))
            continue
        limit -= len(items)
        tasks = tasks_of([own.data or b"", *(item.value for item in items)])
        found.append(Removed(segments, before_ordinal, [item.key for item in items], tasks))
    return found


def tasks_of(rows: Iterable[bytes]) -> list[StateMachineTask]:
    """The pending tasks in rows of machines; those of a row that cannot be decoded find out by themselves."""
    tasks: list[StateMachineTask] = []
    for row in rows:
        with contextlib.suppress(DecodeError):
            tasks += StateMachineNode.FromString(row).tasks
    return tasks
