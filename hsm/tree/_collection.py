"""Collections: the children of one type under a node."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from hsm.errors import IncompatibleTypeError
from hsm.machine import HasState, Key
from hsm.transition import Transition, TransitionOutput
from hsm.tree import _children
from hsm.tree._node import Node

__all__ = ["Collection"]

DataT = TypeVar("DataT")
EventT = TypeVar("EventT")
MachineT = TypeVar("MachineT", bound=HasState[Any])


class Collection(Generic[DataT]):
    """A typed view of the children of one machine type. It holds nothing itself; make one when needed.

    Iteration yields ids, in order of insertion.

    Semantics: Temporal `hsm.Collection`, with an order.

    Attributes:
        type: id of the machine type.
    """

    __slots__ = ("_data_type", "_node", "type")

    def __init__(self, node: Node, type_id: int, data_type: type[DataT]) -> None:
        self._node = node
        self._data_type = data_type
        self.type: int = type_id

    def add(self, id: str, data: DataT) -> Node:
        """Add a child.

        Raises:
            StateMachineAlreadyExistsError: there is a child with this id.
            IncompatibleTypeError: the data is of another class.
        """
        key = Key(self.type, id)
        if not isinstance(data, self._data_type):
            raise IncompatibleTypeError(
                f"{key} is to hold a {self._data_type.__name__}, not a {type(data).__name__}"
            )
        return self._node.add_child(key, data)

    def node(self, id: str) -> Node:
        """A child.

        Raises:
            StateMachineNotFoundError: there is no child with this id.
        """
        return self._node.child((Key(self.type, id),))

    def data(self, id: str) -> DataT:
        """A child's data."""
        return self.node(id).data(self._data_type)

    def transition(self, id: str, fn: Callable[[DataT], TransitionOutput | None]) -> None:
        """Transition a child; see `Node.transition`."""
        self.node(id).transition(self._data_type, fn)

    def apply(
        self: Collection[MachineT],
        id: str,
        transition: Transition[Any, MachineT, EventT],
        event: EventT,
    ) -> None:
        """Apply a transition to a child; see `Node.apply`."""
        self.node(id).apply(transition, event)

    def nodes(self) -> Sequence[Node]:
        """The children, in order of insertion."""
        return _children.children_of_type(self._node, self.type)

    def __len__(self) -> int:
        return sum(key.type == self.type for key in _children.child_keys(self._node))

    def __contains__(self, id: object) -> bool:
        return isinstance(id, str) and _children.has_child(self._node, Key(self.type, id))

    def __iter__(self) -> Iterator[str]:
        return iter([node.key.id for node in self.nodes() if node.key is not None])
