"""A node's children: those that exist as objects, and those still in their persisted form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hsm.errors import StateMachineNotFoundError
from hsm.machine import Key
from hsm.tree._operation import Deleted
from hsm.tree._state import DELETED
from hsm.tree._undo import undo_delete

if TYPE_CHECKING:
    from hsm.tree._node import Node

__all__ = [
    "cached",
    "child_keys",
    "children_of_type",
    "delete",
    "has_child",
    "hydrate",
    "is_gone",
    "registered",
    "walk",
]


def is_gone(node: Node, key: Key) -> bool:
    """Whether the persisted child with this key was deleted."""
    return node._gone is not None and key in node._gone


def has_child(node: Node, key: Key) -> bool:
    """Whether there is a child with this key, registered or not."""
    node._check()
    if node._children is not None and key in node._children:
        return True
    source = node._source
    return source is not None and not is_gone(node, key) and source.child(key) is not None


def child_keys(node: Node) -> Iterator[Key]:
    """The keys of all children, registered or not, in no particular order."""
    node._check()
    children = node._children or {}
    yield from children
    if node._source is not None:
        for key in node._source.child_keys():
            if key not in children and not is_gone(node, key):
                yield key


def hydrate(node: Node, key: Key) -> Node:
    """Make the object of a persisted child. Its data is not decoded."""
    definition = node._state.registry.required_machine(key.type)
    source = node._source
    found = None if source is None or is_gone(node, key) else source.child(key)
    if found is None:
        raise StateMachineNotFoundError(f"{node._name()} has no child {key}", path=(*node.path, key))
    message, below = found
    child = node._restore(node._state, node, key, definition, message)
    if below is not None:
        child._source = below
        child._listed = False
    if node._children is None:
        node._children = {}
    node._children[key] = child
    return child


def registered(node: Node) -> list[Node]:
    """The children of registered types, in order of insertion."""
    node._check()
    if not node._listed:
        machine = node._state.registry.machine
        for key in list(child_keys(node)):
            if (node._children is None or key not in node._children) and machine(key.type) is not None:
                hydrate(node, key)
        node._children = dict(sorted((node._children or {}).items(), key=_sibling_order))
        node._listed = True
    return list((node._children or {}).values())


def children_of_type(node: Node, type_id: int) -> list[Node]:
    """The children of one type, in order of insertion."""
    node._state.registry.required_machine(type_id)
    return [child for child in registered(node) if child._definition.type.id == type_id]


def walk(node: Node) -> Iterator[Node]:
    """See `Node.walk`."""
    yield node
    if node.deleted:
        return
    for child in registered(node):
        if not child.deleted:
            yield from walk(child)


def cached(node: Node) -> Iterator[Node]:
    """The node and all below it that exist as objects."""
    yield node
    for child in (node._children or {}).values():
        yield from cached(child)


def delete(node: Node, key: Key) -> None:
    """See `Node.delete_child`."""
    state = node._state
    path = (*node.path, key)
    child = None if node._children is None else node._children.get(key)
    if child is None:
        source = node._source
        if source is None or is_gone(node, key) or source.child(key) is None:
            raise StateMachineNotFoundError(f"{node._name()} has no child {key}", path=path)
    below: list[tuple[Node, int, bool | None]] = []
    if child is not None:
        for deleted in cached(child):
            below.append((deleted, deleted._status, state.dirty.pop(deleted, None)))
            deleted._status = DELETED
        if node._children is not None:
            del node._children[key]
    hidden = node._source is not None and not is_gone(node, key)
    if hidden:
        if node._gone is None:
            node._gone = set()
        node._gone.add(key)
    was_dirty = state.dirty.get(node)
    state.dirty.setdefault(node, False)
    state.removed.append((path, state.next_ordinal))
    state.log.append(Deleted(path))
    if state.depth:
        state.undo.append((undo_delete, node, key, child, hidden, below, was_dirty))


def _sibling_order(entry: tuple[Key, Node]) -> tuple[int, Key]:
    return entry[1]._ordinal, entry[0]
