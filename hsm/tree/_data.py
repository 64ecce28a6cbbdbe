"""A node's data: to bytes and back, and the check that nobody changed it behind the tree's back."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Final

from hsm.errors import IncompatibleTypeError, SerializationError, UntrackedChangeError
from hsm.machine import MachineDefinition
from hsm.registry import Registry

if TYPE_CHECKING:
    from hsm.tree._node import Node

__all__ = [
    "UNLOADED",
    "check_restorable",
    "check_untracked",
    "encode",
    "incompatible",
    "load",
    "no_output",
    "unserializable",
]


class _Unloaded:
    """The place of data that has not been decoded, or that a rollback has discarded."""


UNLOADED: Final = _Unloaded()


def encode(definition: MachineDefinition[Any], data: object) -> bytes:
    """The bytes of data that is new to the tree."""
    expected: type[object] | None = getattr(definition, "data_type", None)
    if expected is not None and type(data) is not expected:
        raise IncompatibleTypeError(
            f"machine type {definition.type.name!r} holds a {expected.__name__}, not a {type(data).__name__}"
        )
    try:
        raw = definition.serialize(data)
    except Exception as error:
        raise SerializationError(
            f"a {type(data).__name__} cannot be serialized as {definition.type.name!r}: {error}"
        ) from error
    if not isinstance(raw, bytes):  # pyright: ignore[reportUnnecessaryIsInstance] - a definition is user code
        raise SerializationError(
            f"machine type {definition.type.name!r} serializes to a {type(raw).__name__}, not to bytes"
        )
    return raw


def check_restorable(registry: Registry, definition: MachineDefinition[Any], raw: bytes) -> None:
    """Refuse data that a rollback could not bring back; once for each type of machine."""
    if definition.type.id in registry._restorable:
        return
    try:
        definition.deserialize(raw)
    except Exception as error:
        raise SerializationError(
            f"machine type {definition.type.name!r} does not restore what it serialized: {error}"
        ) from error
    registry._restorable.add(definition.type.id)


def load(node: Node) -> object:
    """Decode the data of a node and keep it there."""
    definition, raw = node._definition, node._raw
    try:
        data = definition.deserialize(raw)
    except SerializationError as error:
        raise SerializationError(f"{node._name()}: {error}") from error
    except Exception as error:
        raise SerializationError(
            f"{node._name()}: {len(raw)} bytes are no {definition.type.name}: {error}"
        ) from error
    node._data = data
    if node._state.debug:
        node._snapshot = encode(definition, data)
    return data


def check_untracked(node: Node) -> None:
    """Debug mode: compare the data with what it was after the last transition."""
    if node._snapshot is None or node._data is UNLOADED:
        return
    if encode(node._definition, node._data) != node._snapshot:
        raise UntrackedChangeError(f"the data of {node._name()} was changed outside a transition")


def incompatible(node: Node, type_: type[object], data: object) -> IncompatibleTypeError:
    """The error for data of another class than was asked for."""
    return IncompatibleTypeError(
        f"{node._name()} holds a {type(data).__name__}, not a {getattr(type_, '__name__', type_)}"
    )


def unserializable(node: Node, error: Exception) -> SerializationError:
    """The error for data that a transition left in a state that has no bytes."""
    return SerializationError(f"{node._name()} cannot be serialized: {error}")


def no_output(node: Node, output: object) -> TypeError:
    """The error for what a transition must not return; a coroutine is closed, for nobody will await it."""
    if inspect.iscoroutine(output):
        output.close()
    return TypeError(f"a transition of {node._name()} returned {output!r}, not a TransitionOutput")
