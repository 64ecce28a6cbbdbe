"""Runs of executions, as their rows say they are: in the database, or when they were deleted from it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final

from hsm import ExecutionKey, Registry
from hsm.engine import CHILD_EXECUTION, ChildExecution, register_child_executions
from hsm.engine._table import row_path
from hsm.machine import Key
from persistence.executions import parse_execution_key
from persistence.proto.execution_pb2 import ExecutionRow, ExecutionStatus
from persistence.proto.hsm_pb2 import StateMachineNode
from persistence.store import DeleteRequest, Operation
from persistence.stores.memory import MemoryStore

__all__ = ["Archive", "Finding", "Path", "Rows", "Run", "rows_of", "runs_of"]

Rows = list[tuple[str, str, bytes]]
Path = tuple[Key, ...]

_TERMINATED: Final = ExecutionStatus.EXECUTION_STATUS_TERMINATED
_registry: Final = Registry()
register_child_executions(_registry)
_CHILDREN: Final = _registry.required_machine(CHILD_EXECUTION.id)


class Finding(Exception):  # noqa: N818 - what the audit is for
    """Something that must not be."""


def rows_of(store: MemoryStore) -> Rows:
    """All rows of all shards: partition, key, value."""
    return [
        (partition, key, table.rows[key].value)
        for partition, table in sorted(store._data.tables.items())
        if partition.startswith("exec/")
        for key in table.keys
    ]


class Run:
    """One run.

    Attributes:
        key: of it.
        row: of the execution.
        nodes: the rows of its machines.
        lines: of those machines that are ledgers.
        children: those machines that stand for child executions.
        deleted_at: when it was deleted, in nanoseconds; 0 if it was not.
    """

    def __init__(self, key: ExecutionKey, row: ExecutionRow, nodes: dict[Path, StateMachineNode]) -> None:
        self.key = key
        self.row = row
        self.nodes = nodes
        self.lines: dict[Path, list[str]] = {}
        self.children: dict[Path, ChildExecution] = {}
        self.deleted_at = 0
        for path, node in nodes.items():
            if path and path[-1].type == CHILD_EXECUTION.id:
                self.children[path] = _CHILDREN.deserialize(node.data)
            else:
                self.lines[path] = node.data.decode().split("\n")[1:]

    def __str__(self) -> str:
        return f"{self.key.id}/{self.key.run_id}"

    @property
    def id(self) -> str:
        """The run id."""
        return self.key.run_id

    @property
    def terminated(self) -> bool:
        return self.row.status == _TERMINATED

    @property
    def closed(self) -> bool:
        return bool(self.row.close_nanos)


def runs_of(rows: Rows) -> dict[str, Run]:
    """All runs in some rows, by their ids."""
    nodes: dict[str, dict[Path, StateMachineNode]] = defaultdict(dict)
    for _, key, value in rows:
        if key.startswith("n/"):
            _, _, _, run, *segments = key.split("/")
            nodes[run][row_path("/".join(segments))] = StateMachineNode.FromString(value)
    runs: dict[str, Run] = {}
    for _, key, value in rows:
        if key.startswith("e/"):
            name = ExecutionKey(*parse_execution_key(key))
            row = ExecutionRow.FromString(value)
            runs[name.run_id] = Run(name, row, {(): row.root, **nodes[name.run_id]})
    return runs


class Archive:
    """Runs as they were when they were deleted.

    Attributes:
        runs: by their ids.
    """

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.runs: dict[str, Run] = {}

    def doomed(self, operations: Iterable[Operation]) -> Sequence[Run]:
        """The runs that some operations delete, as they are now."""
        names = [
            (operation.partition, operation.key[2:])
            for operation in operations
            if isinstance(operation, DeleteRequest) and operation.key.startswith("e/")
        ]
        if not names:
            return ()
        rows = [
            row
            for row in rows_of(self._store)
            if any(
                row[0] == partition and (row[1] == f"e/{name}" or row[1].startswith(f"n/{name}/"))
                for partition, name in names
            )
        ]
        return [Run(run.key, run.row, _living(run.nodes)) for run in runs_of(rows).values()]

    def take(self, runs: Iterable[Run], now_nanos: int) -> None:
        """Keep runs that have been deleted."""
        for run in runs:
            run.deleted_at = now_nanos
            self.runs[run.id] = run


def _living(nodes: dict[Path, StateMachineNode]) -> dict[Path, StateMachineNode]:
    """The machines without those that were deleted and have not been swept."""
    living: dict[Path, StateMachineNode] = {}
    for path in sorted(nodes, key=len):
        above = living.get(path[:-1]) if path else None
        if not path or (above is not None and nodes[path].ordinal >= above.ordinal):
            living[path] = nodes[path]
    return living
