"""Places: where a machine is in its tree, and what is known of it without a look at its data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

from hsm.errors import AccessClosedError, ReentrantTransitionError, StateMachineDeletedError
from hsm.machine import Key, MachineDefinition, MachineType, VersionedTransition
from hsm.ref import ExecutionKey, Ref
from hsm.tree._data import UNLOADED
from hsm.tree._source import ChildSource
from hsm.tree._state import DELETED, LIVE, TreeState
from persistence.proto.hsm_pb2 import StateMachineTask

if TYPE_CHECKING:
    from hsm.tree._node import Node

__all__ = ["Place"]


class Place:
    """What a node is before any edit: its place among the others, its versions, whether it may be used."""

    __slots__ = (
        "_children",
        "_count",
        "_data",
        "_definition",
        "_gone",
        "_initial_version",
        "_key",
        "_last_version",
        "_listed",
        "_ordinal",
        "_parent",
        "_path",
        "_raw",
        "_serialize",
        "_snapshot",
        "_source",
        "_state",
        "_status",
        "_tasks",
    )

    _serialize: Callable[[Any], bytes]

    def __init__(
        self,
        state: TreeState,
        parent: Node | None,
        key: Key | None,
        definition: MachineDefinition[Any],
        raw: bytes,
        data: object = UNLOADED,
    ) -> None:
        self._state = state
        self._parent = parent
        self._key = key
        self._path: tuple[Key, ...] | None = None
        self._definition = definition
        self._serialize = definition.serialize
        self._raw: bytes = raw
        self._data = data
        self._snapshot: bytes | None = raw if state.debug else None
        self._count = 0
        self._initial_version = self._last_version = state.version
        self._ordinal = 0
        self._status = LIVE
        self._tasks: tuple[StateMachineTask, ...] = ()
        self._children: dict[Key, Node] | None = None
        self._source: ChildSource | None = None
        self._gone: set[Key] | None = None
        self._listed = True

    def __repr__(self) -> str:
        return f"<Node {self._name()} at transition {self._count}{' deleted' if self.deleted else ''}>"

    def _name(self) -> str:
        return "/".join(map(str, self.path)) or "the root"

    @property
    def key(self) -> Key | None:
        """The machine's key among its siblings; None for the root."""
        return self._key

    @property
    def parent(self) -> Node | None:
        """The node above; None for the root."""
        return self._parent

    @property
    def path(self) -> tuple[Key, ...]:
        """Keys from the root to this node; () for the root."""
        path = self._path
        if path is None:
            parent, key = self._parent, self._key
            path = () if parent is None or key is None else (*parent.path, key)
            self._path = path
        return path

    @property
    def machine_type(self) -> MachineType:
        """The type of the machine."""
        return self._definition.type

    @property
    def transition_count(self) -> int:
        """Transitions that this machine has made."""
        return self._count

    @property
    def initial_version(self) -> VersionedTransition:
        """When the machine was created."""
        return self._initial_version

    @property
    def last_update_version(self) -> VersionedTransition:
        """When the machine last changed."""
        return self._last_version

    @property
    def version(self) -> VersionedTransition:
        """What the present transaction stamps on the machines it changes."""
        return self._state.version

    @property
    def deleted(self) -> bool:
        """Whether the machine was deleted, by itself or with one above it."""
        return self._status == DELETED

    @property
    def dirty(self) -> bool:
        """Whether this machine or one below it was changed in this transaction. For the root this is O(1)."""
        dirty = self._state.dirty
        if self._parent is None or not dirty:
            return bool(dirty)
        return any(node is self or self in node._ancestors() for node in dirty)

    def _ancestors(self) -> Iterator[Place]:
        node = self._parent
        while node is not None:
            yield node
            node = node._parent

    def ref(self, execution: ExecutionKey) -> Ref:
        """A reference to this machine as it is now."""
        self._check()
        return Ref(
            execution,
            self.path,
            self._count,
            self._initial_version,
            self._last_version,
            self._state.version,
        )

    def _check(self) -> None:
        if self._status == DELETED or self._state.sealed:
            self._refuse()

    def _refuse(self) -> NoReturn:
        if self._status == DELETED:
            raise StateMachineDeletedError(f"{self._name()} was deleted")
        if self._state.sealed:
            raise AccessClosedError(f"{self._name()} was used after its access had ended")
        raise ReentrantTransitionError(f"{self._name()} is in a transition already")

    def _require_root(self, what: str) -> None:
        if self._parent is not None:
            raise ValueError(f"{what} is for the root, not for {self._name()}")
