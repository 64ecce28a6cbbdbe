"""Planning: how what a transaction did to a tree becomes the operations of one `multi`."""

from __future__ import annotations

from collections.abc import Sequence

from hsm.engine._commit import Commit, Removed
from hsm.engine._execution import Execution
from hsm.engine._planner import Amendment, Planner
from hsm.engine._rows import QueuedTask
from hsm.engine._table import row_segments
from hsm.engine.ids import IdSource
from hsm.errors import HSMError
from hsm.registry import Registry
from hsm.tree import Node
from hsm.tree._operation import Deleted, compact
from persistence.proto.hsm_pb2 import StateMachineNode, StateMachineTask
from persistence.store import CheckRequest, DeleteRequest

__all__ = ["plan"]


def plan(
    registry: Registry,
    ids: IdSource,
    execution: Execution,
    now_nanos: int,
    *,
    claim: QueuedTask | None = None,
    keep_claim: bool = False,
    removed: Sequence[Removed] = (),
    amend: Amendment | None = None,
    retention_nanos: int | None = None,
    remembered: int,
    refresh: bool = False,
) -> Commit:
    """Work out the commit of what has been done to the execution's tree.

    Args:
        registry: serializers of tasks.
        ids: makes task ids.
        execution: with its tree changed, and its log not cleared.
        now_nanos: the time.
        claim: the queue task on whose behalf this is: its row must still be there, and goes.
        keep_claim: the claim's row stays.
        removed: what `find_removed` has found.
        amend: what else changes, besides the tree.
        retention_nanos: how long closed executions are kept; None: for ever.
        remembered: requests that an execution remembers.
        refresh: the changed machines ask for all their tasks anew.

    Raises:
        NotRegisteredError, SerializationError: a task cannot be written.
    """
    planner = Planner(registry, ids, execution, now_nanos, retention_nanos, remembered)
    planner.removed = removed
    commit, operations = planner.commit, planner.operations
    state = execution.root._state
    changed = {node: None for node, row in state.dirty.items() if row}
    claimed = None if keep_claim else claim
    if claimed is not None:
        holder = _holder(execution.root, claimed)
        if holder is not None:
            changed[holder] = None
    if claimed is not None:
        operations.append(DeleteRequest(partition=claimed.partition, key=claimed.key, etag=claimed.etag))
        if claimed.instead is not None:
            operations.append(claimed.instead)
    elif claim is not None:
        operations.append(CheckRequest(claim.partition, claim.key, claim.etag))
    for subtree in removed:
        planner.remove(subtree)
    pending: dict[Node, list[StateMachineTask]] = {}
    for node in changed:
        if not node._tasks:
            continue
        if refresh:
            planner.withdraw_all(pending, node)
        else:
            planner.prune(pending, node, claimed)
    for entry in compact(state.log) if state.removed else state.log:
        if not isinstance(entry, Deleted):
            for task in entry[1].tasks:
                planner.new_task(pending, entry[0], entry[2], task)
    try:
        for node, tasks in pending.items():
            commit.set_tasks(node, tasks)
        for node in changed:
            if node is not execution.root:
                message = StateMachineNode()
                node._write_row(message)
                planner.write(execution.prefix + row_segments(node.path), message.SerializeToString())
        planner.execution_row(root_changed=execution.root in changed, amend=amend)
    except BaseException:
        commit.revert()
        raise
    return commit


def _holder(root: Node, claim: QueuedTask) -> Node | None:
    """The node that remembers a task, if it remembers any."""
    try:
        node = root.child(claim.ref().path)
    except HSMError:
        return None
    return node if node._tasks else None
