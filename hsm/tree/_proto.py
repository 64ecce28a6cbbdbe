"""Between the tree's own values and the protobuf messages that persist them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hsm.machine import VersionedTransition
from persistence.proto.hsm_pb2 import StateMachineNode, VersionedTransition as VersionedTransitionMessage

if TYPE_CHECKING:
    from hsm.tree._source import ChildSource

__all__ = ["copy_subtree", "highest_ordinal", "version_of", "write_version"]


def version_of(message: VersionedTransitionMessage) -> VersionedTransition:
    """The version in a message; an unset one is (0, 0)."""
    return VersionedTransition(message.failover_version, message.max_transition_count)


def write_version(message: VersionedTransitionMessage, version: VersionedTransition) -> None:
    """Put a version into a message; (0, 0) leaves it unset."""
    if version.failover_version:
        message.failover_version = version.failover_version
    if version.transition_count:
        message.max_transition_count = version.transition_count


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


def copy_subtree(found: tuple[StateMachineNode, ChildSource | None], target: StateMachineNode) -> None:
    """Copy a persisted child and everything below it, decoding nothing."""
    message, source = found
    target.CopyFrom(message)
    if source is None or message.children:
        return
    for key in source.child_keys():
        below = source.child(key)
        if below is not None:
            copy_subtree(below, target.children[key.type].machines_by_id[key.id])
