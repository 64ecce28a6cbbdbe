"""History: what each commit has changed in an execution, and the tree as it was after any of them."""

from __future__ import annotations

from collections.abc import AsyncIterator

from hsm.engine._execution import decode_row
from hsm.engine._executions import Executions
from hsm.engine._table import row_path
from hsm.engine._translation import translated
from hsm.engine.clock import from_nanos
from hsm.engine.history import tree_of
from hsm.engine.info import HistoryEntry
from hsm.errors import NoHistoryError
from hsm.ref import ExecutionKey, contains
from hsm.registry import Registry
from hsm.tree import Node
from hsm.tree._delta import history_of
from hsm.tree._proto import version_of
from persistence import errors as storage
from persistence.executions import history_key, history_prefix, prefix_end
from persistence.proto.execution_pb2 import HistoryRow
from persistence.store import EngineStore

__all__ = ["history", "tree_at"]


async def history(
    executions: Executions, store: EngineStore, key: ExecutionKey, after: int
) -> AsyncIterator[HistoryEntry]:
    """See `Engine.history`."""
    async for row in _rows(executions, store, await executions.resolve(key), after):
        yield HistoryEntry(
            version_of(row.version),
            from_nanos(row.time_nanos),
            tuple(row_path(node.segments) for node in row.changed),
            tuple(row_path(deleted.segments) for deleted in row.deleted),
            tuple(row.added_tasks),
            row.SerializeToString(),
        )


async def tree_at(
    executions: Executions, store: EngineStore, registry: Registry, key: ExecutionKey, count: int
) -> Node:
    """See `Engine.tree_at`."""
    key = await executions.resolve(key)
    rows: list[HistoryRow] = []
    async for row in _rows(executions, store, key):
        if row.version.max_transition_count > count:
            break
        rows.append(row)
    if not rows or rows[-1].version.max_transition_count != count:
        raise NoHistoryError(
            f"nothing is known of transition {count} of {key.namespace}/{key.id}, whose history ends before"
            " it, if it is kept at all"
        )
    if len(rows) < count:
        lacking = next(
            number for number, row in enumerate(rows, 1) if row.version.max_transition_count != number
        )
        raise NoHistoryError(
            f"the tree at transition {count} cannot be made: the history here lacks transition {lacking} of"
            f" {key.namespace}/{key.id}, as one that was written in another cluster"
        )
    return tree_of(registry, rows)


async def _rows(
    executions: Executions, store: EngineStore, key: ExecutionKey, after: int = 0
) -> AsyncIterator[HistoryRow]:
    start, end = history_key(*key, after + 1), prefix_end(history_prefix(*key))
    versions = history_of((await executions.stored_row(key))[0])
    try:
        async for item in store.scan(executions.partition(key), start, end):
            row = decode_row(HistoryRow, item.key, item.value)
            # Commits that were lost in a failover have left their rows.
            if contains(versions, version_of(row.version)):
                yield row
    except storage.PersistenceError as error:
        raise translated(error) from error
