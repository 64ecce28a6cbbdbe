"""Nodes: one machine of a tree each, decoded when first touched, changed only in transitions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, NoReturn, TypeVar

from hsm.errors import (
    AccessClosedError,
    IncompatibleTypeError,
    InitialVersionMismatchError,
    ReentrantTransitionError,
    SerializationError,
    StateMachineAlreadyExistsError,
    StateMachineDeletedError,
    StateMachineNotFoundError,
    UntrackedChangeError,
)
from hsm.machine import (
    ComparableDefinition,
    HasState,
    Key,
    MachineDefinition,
    MachineType,
    TaskRegenerator,
    VersionedTransition,
)
from hsm.ref import ExecutionKey, Ref
from hsm.registry import Registry
from hsm.transition import NO_OUTPUT, Transition, TransitionOutput
from hsm.tree import _proto
from hsm.tree._operation import (
    Deleted,
    DeleteOperation,
    Operation,
    PathAndOutputs,
    TransitionOperation,
    compact,
)
from hsm.tree._source import ChildSource, MessageSource
from hsm.tree._state import Savepoint, TreeState
from persistence.proto.hsm_pb2 import StateMachineMap, StateMachineNode, StateMachineTask

__all__ = ["Node", "machine_data", "machine_transition"]

DataT = TypeVar("DataT")
EventT = TypeVar("EventT")
MachineT = TypeVar("MachineT", bound=HasState[Any])


class _Unloaded:
    """The place of data that has not been decoded, or that a rollback has discarded."""


_UNLOADED: Final = _Unloaded()

_LIVE: Final = 0
_IN_TRANSITION: Final = 1
_DELETED: Final = 2

_NO_VERSION: Final = VersionedTransition()


class Node:
    """One machine in a tree: its data, its count of transitions, and the machines below it.

    Nodes are made by `new_root`, `add_child` and `child`. The same child is the same object every time,
    until it is deleted. Data and children are decoded when they are first asked for.

    All edits go through `transition` or `apply` (data), `add_child` and `delete_child` (structure). Inside
    a transition or a savepoint they are all or nothing: data, counts, versions, children, log and tasks.

    Semantics: Temporal `hsm.Node`, without its quirks: edits inside a failing transition are undone,
    deletes make the tree dirty and a deleted handle refuses every use.
    """

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
        data: object = _UNLOADED,
    ) -> None:
        self._state = state
        self._parent = parent
        self._key = key
        self._path: tuple[Key, ...] | None = None
        self._definition = definition
        self._serialize = definition.serialize
        self._raw = raw
        self._data = data
        self._snapshot: bytes | None = raw if state.debug else None
        self._count = 0
        self._initial_version = self._last_version = state.version
        self._ordinal = 0
        self._status = _LIVE
        self._tasks: tuple[StateMachineTask, ...] = ()
        self._children: dict[Key, Node] | None = None
        self._source: ChildSource | None = None
        self._gone: set[Key] | None = None
        self._listed = True

    @classmethod
    def new_root(
        cls,
        registry: Registry,
        type_id: int,
        data: object,
        children: Mapping[int, StateMachineMap] | None = None,
        *,
        version: VersionedTransition = _NO_VERSION,
    ) -> Node:
        """A clean tree whose root holds `data`.

        Args:
            registry: types of machines.
            type_id: type of the root.
            data: the root's data.
            children: persisted children by type id, as in `StateMachineNode.children`; copied.
            version: stamped on what is changed, until `begin` says another.

        Raises:
            NotRegisteredError: the type is not registered.
            SerializationError: the data cannot be serialized, or cannot be restored from its bytes.
        """
        state = TreeState(registry, version)
        definition = registry.required_machine(type_id)
        raw = _encode(definition, data)
        root = cls(state, None, None, definition, raw, data)
        _check_restorable(registry, definition, raw)
        if children:
            message = StateMachineNode()
            for child_type, machines in children.items():
                message.children[child_type].CopyFrom(machines)
            root._attach(message)
        return root

    @classmethod
    def from_proto(
        cls,
        registry: Registry,
        type_id: int,
        message: StateMachineNode,
        *,
        version: VersionedTransition | None = None,
    ) -> Node:
        """The clean tree that `to_proto` wrote. The message is kept and must not be changed afterwards.

        Raises:
            NotRegisteredError: the root's type is not registered.
        """
        state = TreeState(registry, version or _proto.version_of(message.last_update_version))
        root = cls._restore(state, None, None, registry.required_machine(type_id), message)
        if message.children:
            root._attach(message)
        else:
            state.next_ordinal = message.next_ordinal or message.ordinal + 1
        return root

    @classmethod
    def _from_source(
        cls,
        registry: Registry,
        type_id: int,
        message: StateMachineNode,
        source: ChildSource,
        next_ordinal: int,
    ) -> Node:
        """A clean tree whose children come from elsewhere than from the message."""
        state = TreeState(registry, _proto.version_of(message.last_update_version))
        root = cls._restore(state, None, None, registry.required_machine(type_id), message)
        root._source = source
        root._listed = False
        state.next_ordinal = next_ordinal
        return root

    @classmethod
    def _restore(
        cls,
        state: TreeState,
        parent: Node | None,
        key: Key | None,
        definition: MachineDefinition[Any],
        message: StateMachineNode,
    ) -> Node:
        node = cls(state, parent, key, definition, message.data)
        node._count = message.transition_count
        node._initial_version = _proto.version_of(message.initial_version)
        node._last_version = _proto.version_of(message.last_update_version)
        node._ordinal = message.ordinal
        node._snapshot = None
        if message.tasks:
            node._tasks = tuple(message.tasks)
        return node

    def _attach(self, message: StateMachineNode) -> None:
        self._source = MessageSource(message)
        self._listed = False
        self._state.next_ordinal = message.next_ordinal
        self._state.unnumbered = message

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
        return self._status == _DELETED

    @property
    def dirty(self) -> bool:
        """Whether this machine or one below it was changed in this transaction. For the root this is O(1)."""
        dirty = self._state.dirty
        if self._parent is None or not dirty:
            return bool(dirty)
        return any(node is self or self in node._ancestors() for node in dirty)

    def _ancestors(self) -> Iterator[Node]:
        node = self._parent
        while node is not None:
            yield node
            node = node._parent

    def begin(self, version: VersionedTransition) -> None:
        """Set what this transaction stamps on the machines it changes. Only for the root."""
        self._require_root("begin")
        self._state.version = version

    def data(self, type_: type[DataT]) -> DataT:
        """The machine's data: the live object, the same every time, until a rollback discards it.

        Change it only inside a transition.

        Raises:
            IncompatibleTypeError: the data is not a `type_`.
            SerializationError: the stored bytes cannot be decoded.
        """
        if self._status == _DELETED or self._state.sealed:
            self._refuse()
        data = self._data
        if data is _UNLOADED:
            data = self._load()
        if not isinstance(data, type_):
            raise self._incompatible(type_, data)
        return data

    def child(self, path: Sequence[Key]) -> Node:
        """The node at `path` below this one: the same object each time. Decodes nothing but what it finds.

        Raises:
            NotRegisteredError: a machine type on the way is not registered; told before absence.
            StateMachineNotFoundError: there is no such machine.
        """
        if self._status == _DELETED or self._state.sealed:
            self._refuse()
        node = self
        for key in path:
            children = node._children
            found = None if children is None else children.get(key)
            node = node._hydrate(key) if found is None else found
        return node

    def add_child(self, key: Key, data: object) -> Node:
        """Add a machine below this one. The tree becomes dirty; no operation and no task come of it.

        Raises:
            StateMachineAlreadyExistsError: there is one with this key.
            NotRegisteredError: the machine type is not registered.
            SerializationError: the data cannot be serialized, or cannot be restored from its bytes.
        """
        if self._status == _DELETED or self._state.sealed:
            self._refuse()
        if self._has_child(key):
            raise StateMachineAlreadyExistsError(f"{self._name()} has a child {key} already")
        state = self._state
        definition = state.registry.required_machine(key.type)
        raw = _encode(definition, data)
        _check_restorable(state.registry, definition, raw)
        child = Node(state, self, key, definition, raw, data)
        child._ordinal = state.take_ordinal()
        if self._children is None:
            self._children = {}
        self._children[key] = child
        state.dirty[child] = True
        if state.depth:
            state.undo.append((_undo_add, self, child))
        return child

    def delete_child(self, key: Key) -> None:
        """Delete a child and everything below it, also one whose type is not registered.

        Every use of a handle to a deleted node raises `StateMachineDeletedError`.

        Raises:
            StateMachineNotFoundError: there is no such child.
        """
        if self._status == _DELETED or self._state.sealed:
            self._refuse()
        state = self._state
        path = (*self.path, key)
        child = None if self._children is None else self._children.get(key)
        if child is None:
            source = self._source
            message = None if source is None or self._is_gone(key) else source.child(key)
            if message is None:
                raise StateMachineNotFoundError(f"{self._name()} has no child {key}", path=path)
            ordinal = message[0].ordinal
        else:
            ordinal = child._ordinal
        below: list[tuple[Node, int, bool | None]] = []
        if child is not None:
            for node in child._cached():
                below.append((node, node._status, state.dirty.pop(node, None)))
                node._status = _DELETED
            if self._children is not None:
                del self._children[key]
        hidden = self._source is not None and not self._is_gone(key)
        if hidden:
            if self._gone is None:
                self._gone = set()
            self._gone.add(key)
        was_dirty = state.dirty.get(self)
        state.dirty.setdefault(self, False)
        state.removed.append((path, ordinal))
        state.log.append(Deleted(path))
        if state.depth:
            state.undo.append((_undo_delete, self, key, child, hidden, below, was_dirty))

    def transition(self, type_: type[DataT], fn: Callable[[DataT], TransitionOutput | None]) -> None:
        """Run `fn` on the data, as one transition: all of what it does, or nothing.

        The count and the version are set before `fn` runs, so that it can make references. If anything
        raises, `BaseException` included, then data, counts, versions, children, nested transitions, log and
        tasks are as they were before.

        Raises:
            IncompatibleTypeError: the data is not a `type_`.
            ReentrantTransitionError: this machine is in a transition already.
            SerializationError: the changed data cannot be serialized.
        """
        state = self._state
        if self._status or state.sealed:
            self._refuse()
        data = self._data
        if data is _UNLOADED:
            data = self._load()
        if not isinstance(data, type_):
            raise self._incompatible(type_, data)
        if state.debug:
            self._check_untracked()
        raw, count, version = self._raw, self._count, self._last_version
        undo, log = state.undo, state.log
        undo_mark, log_mark = len(undo), len(log)
        new_count = self._count = count + 1
        self._last_version = state.version
        self._status = _IN_TRANSITION
        state.depth += 1
        try:
            output = fn(data)
            if output is None:
                output = NO_OUTPUT
            elif type(output) is not TransitionOutput:
                raise TypeError(f"a transition of {self._name()} returned {output!r}, not a TransitionOutput")
            try:
                self._raw = self._serialize(data)
            except Exception as error:
                raise self._unserializable(error) from error
            if self._status != _IN_TRANSITION:
                self._refuse()
        except BaseException:
            state.roll_back(undo_mark, log_mark)
            self._raw, self._count, self._last_version = raw, count, version
            self._data = _UNLOADED
            self._status = _LIVE
            state.depth -= 1
            raise
        self._status = _LIVE
        dirty = state.dirty
        state.depth -= 1
        if state.depth:
            undo.append((_undo_transition, self, raw, count, version, dirty.get(self)))
        elif undo:
            undo.clear()
        dirty[self] = True
        log.append((self, output, new_count))
        if state.debug:
            self._snapshot = self._raw

    def apply(self, transition: Transition[Any, MachineT, EventT], event: EventT) -> None:
        """Apply a transition object: what it returns is logged, nothing is lost. Otherwise as `transition`.

        Raises:
            InvalidTransitionError: the machine is in no source state; nothing was changed.
            IncompatibleTypeError: the transition is one of another type of machine.
        """
        machine: type[Any] = transition.machine or object
        self.transition(machine, lambda data: transition.apply(data, event))

    def walk(self) -> Iterator[Node]:
        """This node and all below it: parents first, siblings in order of insertion.

        Machines of unregistered types are left out, with all below them. Children that are added to a node
        before the walk goes on from it are visited.
        """
        self._check()
        yield self
        if self.deleted:
            return
        for child in self._registered_children():
            if not child.deleted:
                yield from child.walk()

    def op_log(self) -> tuple[Operation, ...]:
        """What this transaction did, in order, without what a later delete has hidden. Only for the root."""
        self._require_root("op_log")
        return tuple(
            DeleteOperation(entry.path)
            if isinstance(entry, Deleted)
            else TransitionOperation(entry[0].path, entry[1], entry[2])
            for entry in compact(self._state.log)
        )

    def outputs(self) -> list[PathAndOutputs]:
        """What the transitions of this transaction at and below this node asked for, by machine.

        Machines come in order of their first transition; those that asked for nothing are there too.
        """
        path = self.path
        outputs: dict[Node, list[TransitionOutput]] = {}
        for entry in compact(self._state.log):
            if not isinstance(entry, Deleted) and entry[0].path[: len(path)] == path:
                outputs.setdefault(entry[0], []).append(entry[1])
        return [PathAndOutputs(node.path, tuple(listed)) for node, listed in outputs.items()]

    def clear_transaction_state(self) -> None:
        """Forget log and dirtiness: the transaction has been committed. Only for the root."""
        self._require_root("clear_transaction_state")
        self._state.clear()

    def savepoint(self) -> AbstractContextManager[None]:
        """A block whose edits, anywhere in the tree, are undone if it raises."""
        return Savepoint(self._state)

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

    def regenerate_tasks(self) -> TransitionOutput:
        """The tasks that the machine waits for now, as its data tells them.

        Raises:
            IncompatibleTypeError: the data is no `TaskRegenerator`.
        """
        return TransitionOutput(tuple(self.data(_REGENERATOR).regenerate_tasks(self)))

    def compare(self, incoming: Node) -> int:
        """Greater than 0 if this machine's state is newer than the other's, less than 0 if it is older.

        Raises:
            IncompatibleTypeError: the definition cannot compare, or the machines are of different types.
        """
        definition = self._definition
        if not isinstance(definition, ComparableDefinition):
            raise IncompatibleTypeError(f"machine type {definition.type.name!r} does not define `compare`")
        if incoming._definition.type != definition.type:
            raise IncompatibleTypeError(
                f"{definition.type} cannot be compared with {incoming._definition.type}"
            )
        return definition.compare(self.data(object), incoming.data(object))

    def sync(self, incoming: Node) -> None:
        """Take over the data of the same machine from another tree, be it newer or older.

        A transition that asks for the tasks of the new state; afterwards the last update version is the
        incoming one. Children and count are not taken over. All or nothing.

        Raises:
            InitialVersionMismatchError: the two were not created by the same transition.
            IncompatibleTypeError: they are of different types, or the data is no `TaskRegenerator`.
        """
        self._check()
        incoming._check()
        mine, other = self._initial_version, incoming._initial_version
        if mine.failover_version != other.failover_version or (
            mine.transition_count and other.transition_count and mine != other
        ):
            raise InitialVersionMismatchError(
                f"{self._name()} was created at {mine}, the incoming one at {other}"
            )
        if incoming._definition.type != self._definition.type:
            raise IncompatibleTypeError(
                f"{self._definition.type} cannot be synced with {incoming._definition.type}"
            )
        if self._status:
            self._refuse()
        state = self._state
        with Savepoint(state):
            state.undo.append(
                (_undo_transition, self, self._raw, self._count, self._last_version, state.dirty.get(self))
            )
            self._raw = incoming._raw
            self._data = _UNLOADED
            self._snapshot = None
            self.transition(_REGENERATOR, lambda _: self._regenerate())
            self._last_version = incoming._last_version

    def _regenerate(self) -> TransitionOutput:
        data = self._data
        if not isinstance(data, _REGENERATOR):
            raise self._incompatible(_REGENERATOR, data)
        return TransitionOutput(tuple(data.regenerate_tasks(self)))

    def to_proto(self) -> StateMachineNode:
        """The persisted form of this node and all below it, also in the middle of a transaction.

        Children of unregistered types are carried along as they are.
        """
        self._check()
        message = StateMachineNode()
        self._write(message)
        if self._parent is None:
            message.next_ordinal = self._state.next_ordinal
        return message

    def _write_row(self, message: StateMachineNode) -> None:
        message.transition_count = self._count
        message.data = self._raw
        _proto.write_version(message.initial_version, self._initial_version)
        _proto.write_version(message.last_update_version, self._last_version)
        message.ordinal = self._ordinal
        if self._tasks:
            message.tasks.extend(self._tasks)

    def _write(self, message: StateMachineNode) -> None:
        self._write_row(message)
        cached = self._children or {}
        for key, child in cached.items():
            child._write(message.children[key.type].machines_by_id[key.id])
        source = self._source
        if source is None:
            return
        for key in source.child_keys():
            if key not in cached and not self._is_gone(key):
                found = source.child(key)
                if found is not None:
                    _proto.copy_subtree(found, message.children[key.type].machines_by_id[key.id])

    # Children

    def _is_gone(self, key: Key) -> bool:
        return self._gone is not None and key in self._gone

    def _has_child(self, key: Key) -> bool:
        if self._status == _DELETED or self._state.sealed:
            self._refuse()
        if self._children is not None and key in self._children:
            return True
        source = self._source
        return source is not None and not self._is_gone(key) and source.child(key) is not None

    def _child_keys(self) -> Iterator[Key]:
        if self._status == _DELETED or self._state.sealed:
            self._refuse()
        children = self._children or {}
        yield from children
        if self._source is not None:
            for key in self._source.child_keys():
                if key not in children and not self._is_gone(key):
                    yield key

    def _hydrate(self, key: Key) -> Node:
        definition = self._state.registry.required_machine(key.type)
        source = self._source
        found = None if source is None or self._is_gone(key) else source.child(key)
        if found is None:
            raise StateMachineNotFoundError(f"{self._name()} has no child {key}", path=(*self.path, key))
        message, below = found
        child = Node._restore(self._state, self, key, definition, message)
        if below is not None:
            child._source = below
            child._listed = False
        if self._children is None:
            self._children = {}
        self._children[key] = child
        # What is hydrated by key comes in the order of the asking; a listing puts it in its place.
        self._listed = False
        return child

    def _registered_children(self) -> list[Node]:
        if self._status == _DELETED or self._state.sealed:
            self._refuse()
        if not self._listed:
            machine = self._state.registry.machine
            for key in list(self._child_keys()):
                if (self._children is None or key not in self._children) and machine(key.type) is not None:
                    self._hydrate(key)
            children = self._children or {}
            self._children = dict(sorted(children.items(), key=_sibling_order))
            self._listed = True
        return list((self._children or {}).values())

    def _children_of_type(self, type_id: int) -> list[Node]:
        self._state.registry.required_machine(type_id)
        return [child for child in self._registered_children() if child._definition.type.id == type_id]

    def _add_typed_child(self, key: Key, data: DataT, type_: type[DataT]) -> Node:
        if not isinstance(data, type_):
            raise IncompatibleTypeError(f"{key} is to hold a {type_.__name__}, not a {type(data).__name__}")
        return self.add_child(key, data)

    def _cached(self) -> Iterator[Node]:
        """This node and all below it that exist as objects."""
        yield self
        for child in (self._children or {}).values():
            yield from child._cached()

    # Data

    def _load(self) -> object:
        try:
            data = self._definition.deserialize(self._raw)
        except SerializationError as error:
            raise SerializationError(f"{self._name()}: {error}") from error
        except Exception as error:
            raise SerializationError(
                f"{self._name()}: {len(self._raw)} bytes are no {self._definition.type.name}: {error}"
            ) from error
        self._data = data
        if self._state.debug:
            self._snapshot = _encode(self._definition, data)
        return data

    def _check_untracked(self) -> None:
        if self._snapshot is None or self._data is _UNLOADED:
            return
        if _encode(self._definition, self._data) != self._snapshot:
            raise UntrackedChangeError(f"the data of {self._name()} was changed outside a transition")

    def _incompatible(self, type_: type[object], data: object) -> IncompatibleTypeError:
        return IncompatibleTypeError(
            f"{self._name()} holds a {type(data).__name__}, not a {getattr(type_, '__name__', type_)}"
        )

    def _unserializable(self, error: Exception) -> SerializationError:
        return SerializationError(f"{self._name()} cannot be serialized: {error}")

    # Guards

    def _check(self) -> None:
        if self._status == _DELETED or self._state.sealed:
            self._refuse()

    def _refuse(self) -> NoReturn:
        if self._status == _DELETED:
            raise StateMachineDeletedError(f"{self._name()} was deleted")
        if self._state.sealed:
            raise AccessClosedError(f"{self._name()} was used after its access had ended")
        raise ReentrantTransitionError(f"{self._name()} is in a transition already")

    def _require_root(self, what: str) -> None:
        if self._parent is not None:
            raise ValueError(f"{what} is for the root, not for {self._name()}")


_REGENERATOR: Any = TaskRegenerator
"""As a class for `isinstance`: mypy takes no protocol where a concrete class is expected."""


def machine_data(node: Node, type_: type[DataT]) -> DataT:
    """See `Node.data`."""
    return node.data(type_)


def machine_transition(
    node: Node, type_: type[DataT], fn: Callable[[DataT], TransitionOutput | None]
) -> None:
    """See `Node.transition`."""
    node.transition(type_, fn)


def _sibling_order(entry: tuple[Key, Node]) -> tuple[int, Key]:
    return entry[1]._ordinal, entry[0]


def _encode(definition: MachineDefinition[Any], data: object) -> bytes:
    try:
        return definition.serialize(data)
    except Exception as error:
        raise SerializationError(
            f"a {type(data).__name__} cannot be serialized as {definition.type.name!r}: {error}"
        ) from error


def _check_restorable(registry: Registry, definition: MachineDefinition[Any], raw: bytes) -> None:
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


def _undo_transition(
    node: Node, raw: bytes, count: int, version: VersionedTransition, was_dirty: bool | None
) -> None:
    node._raw, node._count, node._last_version = raw, count, version
    node._data = _UNLOADED
    node._snapshot = None
    node._state.restore_dirty(node, was_dirty)


def _undo_add(parent: Node, child: Node) -> None:
    for node in child._cached():
        node._status = _DELETED
        node._state.dirty.pop(node, None)
    if parent._children is not None and child._key is not None:
        del parent._children[child._key]


def _undo_delete(
    parent: Node,
    key: Key,
    child: Node | None,
    hidden: bool,
    below: Sequence[tuple[Node, int, bool | None]],
    was_dirty: bool | None,
) -> None:
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
