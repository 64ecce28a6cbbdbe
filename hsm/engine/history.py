"""Trees from the entries of a history: what each commit has changed, one on top of the other."""

from __future__ import annotations

from collections.abc import Iterable

from hsm.engine._table import RowTable
from hsm.errors import NoHistoryError
from hsm.registry import Registry
from hsm.tree import Node
from persistence.proto.execution_pb2 import HistoryRow
from persistence.proto.hsm_pb2 import StateMachineNode

__all__ = ["tree_of"]


def tree_of(registry: Registry, rows: Iterable[HistoryRow]) -> Node:
    """The tree as it was after the last of the rows, which begin with the first one of the execution.

    Raises:
        NoHistoryError: there are no rows.
        NotRegisteredError: the type of the root is not registered.
    """
    nodes: dict[str, StateMachineNode] = {}
    last: HistoryRow | None = None
    for row in rows:
        last = row
        for deleted in row.deleted:
            for segments in [each for each in nodes if _covers(deleted.segments, each)]:
                if nodes[segments].ordinal < deleted.before_ordinal:
                    del nodes[segments]
        for changed in row.changed:
            nodes[changed.segments] = changed.node
    if last is None:
        raise NoHistoryError("a tree cannot be made of no history")
    table = RowTable("")
    below = {segments: nodes[segments].SerializeToString() for segments in sorted(nodes) if segments}
    table.add_first(below, complete=True)
    root = nodes[""]
    return Node._from_source(
        registry, last.root_type, root, table.source("", root.ordinal), last.next_ordinal
    )


def _covers(deleted: str, segments: str) -> bool:
    return segments == deleted or segments.startswith(deleted + "/")
