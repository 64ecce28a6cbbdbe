"""The operation log: what a transaction did to the tree, in order, without what it undid again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeAlias

import attrs

from hsm.machine import Key
from hsm.transition import TransitionOutput

if TYPE_CHECKING:
    from hsm.tree._node import Node

__all__ = [
    "DeleteOperation",
    "Deleted",
    "LogEntry",
    "Operation",
    "PathAndOutputs",
    "TransitionOperation",
    "compact",
    "operations",
    "outputs",
]


@attrs.frozen
class TransitionOperation:
    """A machine made a transition.

    Attributes:
        path: of the machine.
        output: what the transition asked for.
        transition_count: of the machine, counted when this transition began.
    """

    path: tuple[Key, ...]
    output: TransitionOutput
    transition_count: int


@attrs.frozen
class DeleteOperation:
    """A machine was deleted, with everything below it.

    Attributes:
        path: of the machine.
    """

    path: tuple[Key, ...]


Operation: TypeAlias = TransitionOperation | DeleteOperation


@attrs.frozen
class PathAndOutputs:
    """What the transitions of one machine asked for.

    Attributes:
        path: of the machine.
        outputs: in order of the transitions.
    """

    path: tuple[Key, ...]
    outputs: tuple[TransitionOutput, ...]


Transitioned: TypeAlias = "tuple[Node, TransitionOutput, int]"
"""A log entry: the node and not its path, for a key can be used again after a delete; output and count."""


@attrs.frozen
class Deleted:
    """A log entry."""

    path: tuple[Key, ...]


LogEntry: TypeAlias = "Transitioned | Deleted"


def compact(log: Iterable[LogEntry]) -> list[LogEntry]:
    """The entries that still matter, in order.

    A delete hides the earlier entries of its path and of everything below it; it stays itself, unless
    a later delete of the same path or of one above it takes its place.
    """
    entries = list(log)
    if not any(type(entry) is Deleted for entry in entries):
        return entries
    kept: list[LogEntry] = []
    deleted: set[tuple[Key, ...]] = set()
    for entry in reversed(entries):
        path = entry.path if isinstance(entry, Deleted) else entry[0].path
        if any(path[:depth] in deleted for depth in range(1, len(path) + 1)):
            continue
        if isinstance(entry, Deleted):
            deleted.add(path)
        kept.append(entry)
    kept.reverse()
    return kept


def operations(log: Iterable[LogEntry]) -> tuple[Operation, ...]:
    """See `Node.op_log`."""
    return tuple(
        DeleteOperation(entry.path)
        if isinstance(entry, Deleted)
        else TransitionOperation(entry[0].path, entry[1], entry[2])
        for entry in compact(log)
    )


def outputs(log: Iterable[LogEntry], path: tuple[Key, ...]) -> list[PathAndOutputs]:
    """See `Node.outputs`; `path` is that of the node which is asked."""
    found: dict[Node, list[TransitionOutput]] = {}
    for entry in compact(log):
        if not isinstance(entry, Deleted) and entry[0].path[: len(path)] == path:
            found.setdefault(entry[0], []).append(entry[1])
    return [PathAndOutputs(node.path, tuple(listed)) for node, listed in found.items()]
