"""How to take one edit of the tree back. They are run last edit first, so each finds what it left behind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hsm.machine import Key, VersionedTransition
from hsm.tree._data import UNLOADED
from hsm.tree._state import DELETED

if TYPE_CHECKING:
    from hsm.tree._node import Node

__all__ = ["undo_add", "undo_delete", "undo_transition"]


def undo_transition(
    node: Node, raw: bytes, count: int, version: VersionedTransition, was_dirty: bool | None
) -> None:
    """Put bytes, count and version back; the data is decoded again when it is asked for."""
    node._raw, node._count, node._last_version = raw, count, version
    node._data = UNLOADED
    node._snapshot = None
    node._state.restore_dirty(node, was_dirty)


def undo_add(parent: Node, child: Node) -> None:
    """Take a child away; what was added below it is gone already."""
    child._status = DELETED
    child._state.dirty.pop(child, None)
    if parent._children is not None and child._key is not None:
        del parent._children[child._key]


def undo_delete(
    parent: Node,
    key: Key,
    child: Node | None,
    hidden: bool,
    below: Sequence[tuple[Node, int, bool | None]],
    was_dirty: bool | None,
) -> None:
    """Put a child back with all handles below it."""
    state = parent._state
    state.removed.pop()
    if hidden and parent._gone is not None:
        parent._gone.discard(key)
    if child is not None:
        if parent._children is None:
            parent._children = {}
        parent._children[key] = child
    parent._listed = False
    for node, status, dirty in below:
        node._status = status
        state.restore_dirty(node, dirty)
    state.restore_dirty(parent, was_dirty)
