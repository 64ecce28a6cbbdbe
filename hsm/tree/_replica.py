"""Replicas: a tree with its history, so that copies of it can be kept in several places."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Final

from google.protobuf.message import Message

from hsm.errors import ReentrantTransitionError, ResendError
from hsm.machine import Key, VersionedTransition
from hsm.registry import Registry
from hsm.tree._delta import (
    MergeResult,
    add_node,
    deleted_since,
    history_of,
    is_snapshot,
    judge,
    merge_row,
    new_delta,
    path_of,
    record_deletions,
    revive,
)
from hsm.tree._node import Node
from hsm.tree._operation import DeleteOperation
from persistence.proto.execution_pb2 import ExecutionRow
from persistence.proto.hsm_pb2 import StateMachineNode
from persistence.proto.replication_pb2 import Delta

__all__ = ["Replica"]

_UNKNOWN: Final = VersionedTransition()


class Replica:
    """A tree of which there are copies elsewhere, all of which come to be the same.

    Changes are made in transactions, each of which has a version. Whoever has a version of the tree gets what
    it lacks from `changes_since`, and takes it over with `apply`: in any order, as often as it comes.

    One copy is written to at a time. Before another one is, it is given a higher failover version with
    `take_over`. What the first one writes meanwhile, and has told nobody, is lost then, everywhere.

    Semantics: Temporal's replication of state, with its rules of conflict.
    """

    def __init__(self, root: Node, *, tombstones: int = 64) -> None:
        """Make the first copy.

        Args:
            root: of a clean tree.
            tombstones: deletions that are remembered; who lacks more of them gets the whole tree.
        """
        version = root.version
        self._root = root
        self._tombstones = tombstones
        self._row = ExecutionRow(root_type=root.machine_type.id)
        self._advance(version._replace(transition_count=max(version.transition_count, 1)))
        self._row.tombstones_from = self.version.transition_count
        self._failover_version = version.failover_version

    @classmethod
    def restore(cls, registry: Registry, snapshot: Delta, *, tombstones: int = 64) -> Replica:
        """A copy of what `changes_since` has told of the whole tree.

        Raises:
            ResendError: it is not the whole tree.
            NotRegisteredError: the root's type is not registered.
        """
        if not is_snapshot(snapshot):
            raise ResendError("only a snapshot can be restored", since=_UNKNOWN)
        message = _merged(StateMachineNode(), snapshot, 0)
        replica = cls(
            Node.from_proto(registry, snapshot.row.root_type, message, version=history_of(snapshot.row)[-1]),
            tombstones=tombstones,
        )
        replica._row = _without_root(merge_row(None, snapshot, tombstones))
        return replica

    @property
    def root(self) -> Node:
        """The tree. `apply` makes another one: nodes of before are of no use then."""
        return self._root

    @property
    def history(self) -> tuple[VersionedTransition, ...]:
        """The last transaction of each failover version, oldest first."""
        return history_of(self._row)

    @property
    def version(self) -> VersionedTransition:
        """The last transaction."""
        return self.history[-1] if self._row.history else _UNKNOWN

    def take_over(self, failover_version: int) -> None:
        """Let later transactions have this failover version, which nobody else uses.

        Raises:
            ValueError: it is not higher than that of the last transaction.
        """
        if failover_version <= self.version.failover_version:
            raise ValueError(f"failover version {failover_version} is not after {self.version}")
        self._failover_version = failover_version

    @contextmanager
    def transaction(self) -> Generator[Node, None, None]:
        """A block that changes the tree: all of what it does, as one version, or nothing."""
        root = self._root
        self._require_clean()
        root.begin(VersionedTransition(self._failover_version, self.version.transition_count + 1))
        with root.savepoint():
            yield root
        if not root.dirty:
            return
        self._advance(root.version)
        deleted = [entry.path for entry in root.op_log() if isinstance(entry, DeleteOperation)]
        if deleted:
            record_deletions(self._row, root.version, deleted, self._tombstones)
        root.clear_transaction_state()

    def changes_since(self, version: VersionedTransition = _UNKNOWN) -> Delta:
        """What whoever has `version` lacks; all there is, if that cannot be told, or for (0, 0)."""
        self._require_clean()
        message = self._root.to_proto()
        delta = new_delta(self._row, version)
        delta.row.next_ordinal = message.next_ordinal
        for path, node in _walk(message):
            if path:
                add_node(delta, path, node)
        message.ClearField("children")
        message.ClearField("next_ordinal")
        delta.row.root.CopyFrom(message)
        revive(delta.row.root)
        return delta

    def apply(self, delta: Delta) -> MergeResult:
        """Take over what another copy has told. All or nothing.

        Raises:
            ResendError: something before it is missing, or all has to be sent; says since when.
        """
        self._require_clean()
        result = judge(self.history, delta)
        if result is not MergeResult.APPLIED:
            return result
        old = self._root
        message = _merged(old.to_proto(), delta, self.version.transition_count)
        version = history_of(delta.row)[-1]
        registry = old._state.registry
        self._root = Node.from_proto(registry, delta.row.root_type, message, version=version)
        self._row = _without_root(merge_row(self._row, delta, self._tombstones))
        self._failover_version = version.failover_version
        old._state.sealed = True
        return result

    def _advance(self, version: VersionedTransition) -> None:
        history = self._row.history
        if not history or history[-1].failover_version != version.failover_version:
            history.add(failover_version=version.failover_version)
        history[-1].max_transition_count = version.transition_count

    def _require_clean(self) -> None:
        if self._root.dirty or self._root._state.depth:
            raise ReentrantTransitionError("the tree has changes that no transaction has noted yet")


def _without_root(row: ExecutionRow) -> ExecutionRow:
    row.ClearField("root")
    return row


def _walk(
    message: StateMachineNode, path: tuple[Key, ...] = ()
) -> Iterator[tuple[tuple[Key, ...], StateMachineNode]]:
    """All machines of a message: parents first, siblings in order of insertion."""
    yield path, message
    children = [
        (child.ordinal, Key(type_id, id_), child)
        for type_id, machines in message.children.items()
        for id_, child in machines.machines_by_id.items()
    ]
    for _, key, child in sorted(children, key=lambda entry: entry[:2]):
        yield from _walk(child, (*path, key))


def _merged(tree: StateMachineNode, delta: Delta, mine: int) -> StateMachineNode:
    """The tree after a delta; it was at transaction `mine` before, and is changed."""
    if is_snapshot(delta):
        tree.ClearField("children")
    else:
        for path in deleted_since(delta, mine):
            parent = _find(tree, path[:-1])
            if parent is not None and path[-1].type in parent.children:
                parent.children[path[-1].type].machines_by_id.pop(path[-1].id, None)
    _overwrite(tree, delta.row.root)
    tree.next_ordinal = delta.row.next_ordinal
    for changed in sorted(delta.nodes, key=lambda changed: len(changed.path)):
        path = path_of(changed.path)
        parent = _find(tree, path[:-1])
        if parent is None:
            raise ResendError(f"the delta has {path} without what is above it", since=_UNKNOWN)
        _overwrite(parent.children[path[-1].type].machines_by_id[path[-1].id], changed.node)
    return tree


def _find(tree: StateMachineNode, path: tuple[Key, ...]) -> StateMachineNode | None:
    for type_id, id_ in path:
        if type_id not in tree.children or id_ not in tree.children[type_id].machines_by_id:
            return None
        tree = tree.children[type_id].machines_by_id[id_]
    return tree


def _overwrite(node: StateMachineNode, incoming: StateMachineNode) -> None:
    """Put another state of the same machine into its place. Its children stay."""
    _clear(node, but="children")
    node.MergeFrom(incoming)


def _clear(message: Message, *, but: str) -> None:
    for field, _ in message.ListFields():
        if field.name != but:
            message.ClearField(field.name)
