"""Export: what another database lacks of an execution, as the rows here say."""

from __future__ import annotations

from collections.abc import Iterator

from hsm.engine._execution import decode_row
from hsm.engine._table import row_path
from hsm.errors import ExecutionNotFoundError
from hsm.machine import Key, VersionedTransition
from hsm.ref import ExecutionKey
from hsm.tree._delta import add_node, new_delta, revive
from persistence.executions import answer_prefix, execution_keys, prefix_end, unescape
from persistence.proto.execution_pb2 import AnswerRow, ExecutionRow
from persistence.proto.hsm_pb2 import StateMachineNode
from persistence.proto.replication_pb2 import Delta
from persistence.store import EngineStore, GetRequest

__all__ = ["read_delta"]


async def read_delta(
    store: EngineStore, partition: str, key: ExecutionKey, since: VersionedTransition
) -> Delta:
    """See `Engine.changes_since`. All is from between two commits."""
    row_key, prefix = execution_keys(*key)
    kept = answer_prefix(*key)
    found = await store.get(GetRequest(partition=partition, key=row_key))
    while True:
        if found.data is None:
            raise ExecutionNotFoundError(
                f"there is no execution {key.namespace}/{key.id} (run {key.run_id!r})"
            )
        rows = [item async for item in store.scan(partition, prefix, prefix_end(prefix))]
        answers = [item async for item in store.scan(partition, kept, prefix_end(kept))]
        again = await store.get(GetRequest(partition=partition, key=row_key))
        if again.etag == found.etag:
            break
        found = again
    row = decode_row(ExecutionRow, row_key, found.data)
    revive(row.root)
    delta = new_delta(row, since)
    delta.execution.namespace, delta.execution.id, delta.execution.run_id = key
    # There are few of them, and nothing says which are new.
    for item in answers:
        request = unescape(item.key[len(kept) :])
        delta.answers[request].CopyFrom(decode_row(AnswerRow, item.key, item.value))
    nodes = {
        row_path(item.key[len(prefix) :]): decode_row(StateMachineNode, item.key, item.value) for item in rows
    }
    for path, node in _in_order(nodes, row.root.ordinal):
        add_node(delta, path, node)
    return delta


def _in_order(
    nodes: dict[tuple[Key, ...], StateMachineNode], root: int
) -> Iterator[tuple[tuple[Key, ...], StateMachineNode]]:
    """The machines below the root: parents first, siblings in order of insertion."""
    children: dict[tuple[Key, ...], list[tuple[int, Key]]] = {}
    for path, node in nodes.items():
        children.setdefault(path[:-1], []).append((node.ordinal, path[-1]))
    pending: list[tuple[tuple[Key, ...], int]] = [((), root)]
    while pending:
        path, ordinal = pending.pop()
        if path:
            yield path, nodes[path]
        # A row older than its parent belongs to a deleted machine and waits to be swept.
        for own, key in sorted(children.get(path, []), reverse=True):
            if own >= ordinal:
                pending.append(((*path, key), own))
