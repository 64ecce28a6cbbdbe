"""Entries of a history: what a commit is about to change, told from its operations."""

from __future__ import annotations

from collections.abc import Sequence

from hsm.engine._commit import Commit, Removed
from hsm.engine._execution import Execution
from persistence.proto.execution_pb2 import ExecutionRow, HistoryRow
from persistence.proto.hsm_pb2 import StateMachineNode
from persistence.store import SetRequest

__all__ = ["empty_entry", "history_row"]


def empty_entry(row: ExecutionRow) -> HistoryRow:
    """The entry of a commit that changes no machine, and writes the execution's row as `row`."""
    return HistoryRow(version=row.history[-1], next_ordinal=row.next_ordinal, root_type=row.root_type)


def history_row(
    execution: Execution, commit: Commit, removed: Sequence[Removed], row: ExecutionRow, *, root_changed: bool
) -> HistoryRow:
    """What a commit adds to the history of an execution, whose row it will write as `row`."""
    entry = empty_entry(row)
    for subtree in removed:
        entry.deleted.add(segments=subtree.segments, before_ordinal=subtree.before_ordinal)
    if root_changed:
        entry.changed.add(segments="", node=row.root)
    prefix = execution.prefix
    for operation in commit.operations:
        if isinstance(operation, SetRequest) and operation.key.startswith(prefix):
            node = StateMachineNode.FromString(operation.value)
            entry.changed.add(segments=operation.key[len(prefix) :], node=node)
    entry.added_tasks.extend([queued.id for queued in commit.queued])
    return entry
