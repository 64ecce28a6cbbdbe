"""Sources: where the persisted form of a node's children comes from, read only when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from hsm.machine import Key
from persistence.proto.hsm_pb2 import StateMachineNode

__all__ = ["ChildSource", "MessageSource", "MissingPart"]


class MissingPart(BaseException):
    """A part of the tree is needed that has not been loaded.

    Whoever holds the tree loads the part and runs the function again. Not an `Exception`, so that
    functions which handle errors do not swallow it by accident.

    Attributes:
        path: what is needed.
        subtree: everything below `path` too.
    """

    def __init__(self, path: tuple[Key, ...], *, subtree: bool) -> None:
        super().__init__(f"{'/'.join(map(str, path)) or 'the root'} is not loaded")
        self.path = path
        self.subtree = subtree


class ChildSource(Protocol):
    """The persisted children of one node. The messages may or may not hold children of their own."""

    def child(self, key: Key) -> tuple[StateMachineNode, ChildSource | None] | None:
        """A child's message and the source of its own children; None if there is no such child.

        Raises:
            MissingPart: the child has not been loaded.
        """
        ...

    def child_keys(self) -> Iterator[Key]:
        """The keys of all children, in no particular order.

        Raises:
            MissingPart: the children have not been loaded.
        """
        ...


class MessageSource:
    """The children inside a `StateMachineNode`."""

    __slots__ = ("_message",)

    def __init__(self, message: StateMachineNode) -> None:
        self._message = message

    def child(self, key: Key) -> tuple[StateMachineNode, ChildSource | None] | None:
        """See `ChildSource`."""
        children = self._message.children
        if key.type not in children:
            return None
        machines = children[key.type].machines_by_id
        if key.id not in machines:
            return None
        message = machines[key.id]
        return message, MessageSource(message) if message.children else None

    def child_keys(self) -> Iterator[Key]:
        """See `ChildSource`."""
        for type_id, machines in self._message.children.items():
            for id_ in machines.machines_by_id:
                yield Key(type_id, id_)
