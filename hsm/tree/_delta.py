"""Deltas: what has changed in a tree since a version, and how two histories of one tree are reconciled."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Sequence

from hsm.errors import ResendError
from hsm.machine import Key, VersionedTransition
from hsm.ref import contains
from hsm.tree._proto import version_of
from persistence.proto.execution_pb2 import ExecutionRow
from persistence.proto.hsm_pb2 import StateMachineKey, StateMachineNode, StateMachinePath
from persistence.proto.replication_pb2 import Delta

__all__ = [
    "MergeResult",
    "add_node",
    "deleted_since",
    "has_changed",
    "history_of",
    "is_snapshot",
    "judge",
    "merge_row",
    "new_delta",
    "path_of",
    "record_deletions",
    "revive",
]

_UNKNOWN = VersionedTransition()


class MergeResult(enum.Enum):
    """What has become of a delta."""

    APPLIED = "taken over"
    DUPLICATE = "known already; nothing was changed"
    OUTDONE = "of a history that has lost against the one here; nothing was changed"


def history_of(row: ExecutionRow) -> tuple[VersionedTransition, ...]:
    """The last transition of each failover version, oldest first."""
    return tuple([version_of(entry) for entry in row.history])


def path_of(keys: Iterable[StateMachineKey]) -> tuple[Key, ...]:
    """The path in a message."""
    return tuple([Key(key.type, key.id) for key in keys])


def is_snapshot(delta: Delta) -> bool:
    """Whether a delta holds all there is, for whoever has nothing or something else."""
    return not delta.since.max_transition_count


def judge(mine: Sequence[VersionedTransition], delta: Delta) -> MergeResult:
    """What a delta means for somebody with the history `mine`; empty for whoever has nothing.

    If one history goes on where the other ends, the longer one is right. If they part, the one whose last
    failover version is higher is; with the same one, that of more transitions.

    Raises:
        ResendError: it would be taken over, but does not begin where this history ends.
    """
    incoming = history_of(delta.row)
    if not incoming:
        raise ValueError("the delta has no history")
    theirs, since = incoming[-1], version_of(delta.since)
    if contains(mine, theirs):
        return MergeResult.DUPLICATE
    last = mine[-1] if mine else _UNKNOWN
    if not mine or contains(incoming, last):
        if since.transition_count > last.transition_count:
            raise ResendError(f"the delta begins at {since}, what is here ends at {last}", since=last)
        return MergeResult.APPLIED
    if theirs < last:
        return MergeResult.OUTDONE
    if not is_snapshot(delta):
        raise ResendError(f"{theirs} takes the place of {last}, which needs a snapshot", since=_UNKNOWN)
    return MergeResult.APPLIED


def new_delta(row: ExecutionRow, since: VersionedTransition) -> Delta:
    """A delta without machines; a snapshot, if it is not known any more what was deleted since then."""
    delta = Delta(row=row)
    if not contains(history_of(row), since) or since.transition_count < row.tombstones_from:
        return delta
    delta.since.failover_version, delta.since.max_transition_count = since
    kept = [
        batch
        for batch in row.tombstones
        if batch.versioned_transition.max_transition_count > since.transition_count
    ]
    del delta.row.tombstones[:]
    delta.row.tombstones.extend(kept)
    delta.row.tombstones_from = since.transition_count
    return delta


def has_changed(node: StateMachineNode, since: int) -> bool:
    """Whether a machine has changed after the transaction with this count, be it only its pending tasks."""
    return node.last_update_version.max_transition_count > since or node.row_transition_count > since


def add_node(delta: Delta, path: Iterable[Key], node: StateMachineNode) -> None:
    """Put a machine into a delta, without its children, if it belongs there."""
    if not is_snapshot(delta) and not has_changed(node, delta.since.max_transition_count):
        return
    added = delta.nodes.add()
    for key in path:
        added.path.add(type=key.type, id=key.id)
    # Not copied as a whole: there may be a large subtree below it.
    for field, value in node.ListFields():
        if field.name == "children":
            continue
        if field.message_type is None:
            setattr(added.node, field.name, value)
        elif field.name == "tasks":
            added.node.tasks.extend(value)
            revive(added.node)
        else:
            getattr(added.node, field.name).CopyFrom(value)


def revive(node: StateMachineNode) -> None:
    """Make its dead letters tasks again: they are so in one database, and another one may try them."""
    for task in node.tasks:
        if task.dead:
            task.dead = False


def deleted_since(delta: Delta, count: int) -> Iterator[tuple[Key, ...]]:
    """What was deleted after the transaction with this count; some of it may have been added again."""
    for batch in delta.row.tombstones:
        if batch.versioned_transition.max_transition_count > count:
            for tombstone in batch.state_machine_tombstones:
                yield path_of(tombstone.state_machine_path.path)


def merge_row(mine: ExecutionRow | None, delta: Delta, keep: int) -> ExecutionRow:
    """The row of an execution that a delta is applied to, with up to `keep` deletions remembered."""
    row = ExecutionRow()
    row.CopyFrom(delta.row)
    if mine is not None and not is_snapshot(delta):
        last = mine.history[-1].max_transition_count
        news = [
            batch for batch in delta.row.tombstones if batch.versioned_transition.max_transition_count > last
        ]
        del row.tombstones[:]
        row.tombstones.extend(mine.tombstones)
        row.tombstones.extend(news)
        row.tombstones_from = mine.tombstones_from
    _forget(row, keep)
    return row


def record_deletions(
    row: ExecutionRow, version: VersionedTransition, paths: Iterable[tuple[Key, ...]], keep: int
) -> None:
    """Note what a transaction has deleted; of all that is noted, the latest `keep` deletions stay."""
    batch = row.tombstones.add()
    batch.versioned_transition.failover_version = version.failover_version
    batch.versioned_transition.max_transition_count = version.transition_count
    for path in paths:
        tombstone: StateMachinePath = batch.state_machine_tombstones.add().state_machine_path
        for key in path:
            tombstone.path.add(type=key.type, id=key.id)
    _forget(row, keep)


def _forget(row: ExecutionRow, keep: int) -> None:
    excess = sum(len(batch.state_machine_tombstones) for batch in row.tombstones) - keep
    while excess > 0:
        oldest = row.tombstones.pop(0)
        excess -= len(oldest.state_machine_tombstones)
        row.tombstones_from = oldest.versioned_transition.max_transition_count
