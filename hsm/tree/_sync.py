"""Two trees that hold the same machine: which state is newer, and how one takes over the other's."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hsm.errors import IncompatibleTypeError, InitialVersionMismatchError
from hsm.machine import TaskRegenerator
from hsm.transition import TransitionOutput
from hsm.tree._data import UNLOADED
from hsm.tree._state import Savepoint
from hsm.tree._undo import undo_transition

if TYPE_CHECKING:
    from hsm.tree._node import Node

__all__ = ["compare", "regenerate", "sync"]

_REGENERATOR: Any = TaskRegenerator
"""As a class for `isinstance`: mypy takes no protocol where a concrete class is expected."""


def regenerate(node: Node) -> TransitionOutput:
    """See `Node.regenerate_tasks`."""
    return TransitionOutput(tuple(node.data(_REGENERATOR).regenerate_tasks(node)))


def compare(node: Node, incoming: Node) -> int:
    """See `Node.compare`."""
    definition, other = node._definition, incoming._definition
    comparison: Callable[[object, object], int] | None = getattr(definition, "compare", None)
    if comparison is None:
        raise IncompatibleTypeError(f"machine type {definition.type.name!r} does not define `compare`")
    if other.type != definition.type:
        raise IncompatibleTypeError(f"{definition.type} cannot be compared with {other.type}")
    return comparison(node.data(object), incoming.data(object))


def sync(node: Node, incoming: Node) -> None:
    """See `Node.sync`."""
    node._check()
    incoming._check()
    if node._status:
        node._refuse()
    _check_same_machine(node, incoming)
    state = node._state
    with Savepoint(state):
        state.undo.append(
            (undo_transition, node, node._raw, node._count, node._last_version, state.dirty.get(node))
        )
        node._raw = incoming._raw
        node._data = UNLOADED
        node._snapshot = None
        node.transition(_REGENERATOR, lambda _: regenerate(node))
        node._last_version = incoming._last_version


def _check_same_machine(node: Node, incoming: Node) -> None:
    mine, other = node._initial_version, incoming._initial_version
    if mine.failover_version != other.failover_version or (
        mine.transition_count and other.transition_count and mine != other
    ):
        raise InitialVersionMismatchError(
            f"{node._name()} was created at {mine}, the incoming one at {other}"
        )
    if incoming._definition.type != node._definition.type:
        raise IncompatibleTypeError(
            f"{node._definition.type} cannot be synced with {incoming._definition.type}"
        )
