"""Between the tree's own values and the protobuf messages that persist them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hsm.machine import Key, VersionedTransition
from persistence.proto.hsm_pb2 import StateMachineNode, VersionedTransition as VersionedTransitionMessage

if TYPE_CHECKING:
    from hsm.tree._node import Node
    from hsm.tree._source import ChildSource

__all__ = ["highest_ordinal", "version_of", "write_row", "write_subtree"]


def version_of(message: VersionedTransitionMessage) -> VersionedTransition:
    """The version in a message; an unset one is (0, 0)."""
    return VersionedTransition(message.failover_version, message.max_transition_count)


def highest_ordinal(message: StateMachineNode) -> int:
    """The highest ordinal at and below a message."""
    highest = message.ordinal
    pending = [message]
    while pending:
        for machines in pending.pop().children.values():
            for child in machines.machines_by_id.values():
                highest = max(highest, child.ordinal)
                if child.children:
                    pending.append(child)
    return highest


def write_row(node: Node, message: StateMachineNode) -> None:
    """Put a node's own values into a message, without its children."""
    message.transition_count = node._count
    message.data = node._raw
    _write_version(message.initial_version, node._initial_version)
    _write_version(message.last_update_version, node._last_version)
    message.ordinal = node._ordinal
    if node._tasks:
        message.tasks.extend(node._tasks)


def write_subtree(node: Node, message: StateMachineNode) -> None:
    """Put a node and all below it into a message. What was never touched is copied as it is."""
    write_row(node, message)
    cached = node._children or {}
    for key, child in cached.items():
        write_subtree(child, message.children[key.type].machines_by_id[key.id])
    source = node._source
    if source is None:
        return
    for key in source.child_keys():
        if key not in cached and key not in (node._gone or ()):
            _copy_child(source, key, message)


def _copy_child(source: ChildSource, key: Key, parent: StateMachineNode) -> None:
    found = source.child(key)
    if found is None:
        return
    message, below = found
    target = parent.children[key.type].machines_by_id[key.id]
    target.CopyFrom(message)
    if below is not None and not message.children:
        for key_below in below.child_keys():
            _copy_child(below, key_below, target)


def _write_version(message: VersionedTransitionMessage, version: VersionedTransition) -> None:
    """(0, 0) leaves the message unset."""
    if version.failover_version:
        message.failover_version = version.failover_version
    if version.transition_count:
        message.max_transition_count = version.transition_count
