"""Nodes: one machine of a tree each, decoded when first touched, changed only in transitions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, TypeVar

from hsm.errors import (
    ReentrantTransitionError,
    StateMachineAlreadyExistsError,
)
from hsm.machine import HasState, Key, MachineDefinition, VersionedTransition
from hsm.registry import Registry
from hsm.transition import NO_OUTPUT, Transition, TransitionOutput
from hsm.tree import _children, _data, _proto, _sync
from hsm.tree._data import UNLOADED
from hsm.tree._operation import Operation, PathAndOutputs, operations, outputs
from hsm.tree._place import Place
from hsm.tree._source import ChildSource, MessageSource
from hsm.tree._state import DELETED, IN_TRANSITION, LIVE, Savepoint, TreeState
from hsm.tree._undo import undo_add, undo_transition
from persistence.proto.hsm_pb2 import StateMachineMap, StateMachineNode

__all__ = ["Node", "machine_data", "machine_transition"]

DataT = TypeVar("DataT")
EventT = TypeVar("EventT")
MachineT = TypeVar("MachineT", bound=HasState[Any])

_NO_VERSION: Final = VersionedTransition()


class Node(Place):
    """One machine in a tree: its data, its count of transitions, and the machines below it.

    Nodes are made by `new_root`, `add_child` and `child`. The same child is the same object every time,
    until it is deleted. Data and children are decoded when they are first asked for.

    All edits go through `transition` or `apply` (data), `add_child` and `delete_child` (structure). Inside
    a transition or a savepoint they are all or nothing: data, counts, versions, children, log and tasks.

    Semantics: Temporal `hsm.Node`, without its quirks: edits inside a failing transition are undone,
    deletes make the tree dirty and a deleted handle refuses every use.
    """

    __slots__ = ()

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
            IncompatibleTypeError: the data is of another class than the type's definition says.
            SerializationError: the data cannot be serialized, or cannot be restored from its bytes.
        """
        state = TreeState(registry, version)
        definition = registry.required_machine(type_id)
        raw = _data.encode(definition, data)
        root = cls(state, None, None, definition, raw, data)
        _data.check_restorable(registry, definition, raw)
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
        if self._status == DELETED or self._state.sealed:
            self._refuse()
        data = self._data
        if data is UNLOADED:
            data = _data.load(self)
        if not isinstance(data, type_):
            raise _data.incompatible(self, type_, data)
        return data

    def child(self, path: Sequence[Key]) -> Node:
        """The node at `path` below this one: the same object each time. Decodes nothing but what it finds.

        Raises:
            NotRegisteredError: a machine type on the way is not registered; told before absence.
            StateMachineNotFoundError: there is no such machine.
        """
        if self._status == DELETED or self._state.sealed:
            self._refuse()
        node = self
        for key in path:
            children = node._children
            found = None if children is None else children.get(key)
            node = _children.hydrate(node, key) if found is None else found
        return node

    def add_child(self, key: Key, data: object) -> Node:
        """Add a machine below this one. The tree becomes dirty; no operation and no task come of it.

        The object is the machine's from then on, and nobody else's.

        Raises:
            StateMachineAlreadyExistsError: there is one with this key.
            NotRegisteredError: the machine type is not registered.
            IncompatibleTypeError: the data is of another class than the type's definition says.
            SerializationError: the data cannot be serialized, or cannot be restored from its bytes.
        """
        if _children.has_child(self, key):
            raise StateMachineAlreadyExistsError(f"{self._name()} has a child {key} already")
        state = self._state
        definition = state.registry.required_machine(key.type)
        raw = _data.encode(definition, data)
        _data.check_restorable(state.registry, definition, raw)
        child = Node(state, self, key, definition, raw, data)
        child._ordinal = state.take_ordinal()
        if self._children is None:
            self._children = {}
        self._children[key] = child
        state.dirty[child] = True
        if state.depth:
            state.undo.append((undo_add, self, child))
        return child

    def delete_child(self, key: Key) -> None:
        """Delete a child and everything below it, also one whose type is not registered.

        Every use of a handle to a deleted node raises `StateMachineDeletedError`.

        Raises:
            StateMachineNotFoundError: there is no such child.
        """
        self._check()
        _children.delete(self, key)

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
        if data is UNLOADED:
            data = _data.load(self)
        if not isinstance(data, type_):
            raise _data.incompatible(self, type_, data)
        if state.debug:
            _data.check_untracked(self)
        raw, count, version = self._raw, self._count, self._last_version
        undo, log = state.undo, state.log
        undo_mark, log_mark = len(undo), len(log)
        new_count = self._count = count + 1
        self._last_version = state.version
        self._status = IN_TRANSITION
        state.depth += 1
        try:
            output = fn(data)
            if output is None:
                output = NO_OUTPUT
            elif type(output) is not TransitionOutput:
                raise _data.no_output(self, output)
            try:
                self._raw = self._serialize(data)
            except Exception as error:
                raise _data.unserializable(self, error) from error
            if self._status != IN_TRANSITION:
                self._refuse()
        except BaseException:
            state.roll_back(undo_mark, log_mark)
            self._raw, self._count, self._last_version = raw, count, version
            self._data = UNLOADED
            self._status = LIVE
            state.depth -= 1
            raise
        self._status = LIVE
        dirty = state.dirty
        state.depth -= 1
        if state.depth:
            undo.append((undo_transition, self, raw, count, version, dirty.get(self)))
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
        return _children.walk(self)

    def op_log(self) -> tuple[Operation, ...]:
        """What this transaction did, in order, without what a later delete has hidden. Only for the root."""
        self._require_root("op_log")
        return operations(self._state.log)

    def outputs(self) -> list[PathAndOutputs]:
        """What the transitions of this transaction at and below this node asked for, by machine.

        Machines come in order of their first transition; those that asked for nothing are there too.
        """
        self._check()
        return outputs(self._state.log, self.path)

    def clear_transaction_state(self) -> None:
        """Forget log and dirtiness: the transaction has been committed. Only for the root.

        Raises:
            ReentrantTransitionError: a transition or savepoint is open, which could not be undone any more.
        """
        self._require_root("clear_transaction_state")
        if self._state.depth:
            raise ReentrantTransitionError("a transition or a savepoint of this tree is open")
        self._state.check()
        self._state.clear()

    def savepoint(self) -> AbstractContextManager[None]:
        """A block whose edits, anywhere in the tree, are undone if it raises.

        Inside a transition it takes back what was done to other machines; the data in the hands of that
        transition is put back only if the transition itself fails.
        """
        self._check()
        return Savepoint(self._state)

    def regenerate_tasks(self) -> TransitionOutput:
        """The tasks that the machine waits for now, as its data tells them.

        Raises:
            IncompatibleTypeError: the data is no `TaskRegenerator`.
        """
        return _sync.regenerate(self)

    def compare(self, incoming: Node) -> int:
        """Greater than 0 if this machine's state is newer than the other's, less than 0 if it is older.

        Raises:
            IncompatibleTypeError: the definition cannot compare, or the machines are of different types.
        """
        return _sync.compare(self, incoming)

    def sync(self, incoming: Node) -> None:
        """Take over the data of the same machine from another tree, be it newer or older.

        A transition that asks for the tasks of the new state; afterwards the last update version is the
        incoming one. Children and count are not taken over. All or nothing.

        Raises:
            InitialVersionMismatchError: the two were not created by the same transition.
            IncompatibleTypeError: they are of different types, or the data is no `TaskRegenerator`.
        """
        _sync.sync(self, incoming)

    def to_proto(self) -> StateMachineNode:
        """The persisted form of this node and all below it, also in the middle of a transaction.

        Children of unregistered types are carried along as they are.
        """
        self._check()
        message = StateMachineNode()
        _proto.write_subtree(self, message)
        if self._parent is None:
            message.next_ordinal = self._state.next_ordinal
        return message

    def _write_row(self, message: StateMachineNode) -> None:
        _proto.write_row(self, message)
        version = self._state.version
        if self._last_version != version:
            message.row_transition_count = version.transition_count


def machine_data(node: Node, type_: type[DataT]) -> DataT:
    """See `Node.data`."""
    return node.data(type_)


def machine_transition(
    node: Node, type_: type[DataT], fn: Callable[[DataT], TransitionOutput | None]
) -> None:
    """See `Node.transition`."""
    node.transition(type_, fn)
