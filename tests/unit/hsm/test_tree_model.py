"""The tree against a plain model: random edits, nested and failing, must leave both the same.

The model takes back a failed edit by putting a copy of itself in place, and compacts its log whenever
something is deleted: both in another way than the tree does.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, Final, TypeAlias

import attrs
import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hsm import (
    Collection,
    DeleteOperation,
    Key,
    Node,
    NotRegisteredError,
    Operation,
    PathAndOutputs,
    ReentrantTransitionError,
    Registry,
    SerializationError,
    StateMachineAlreadyExistsError,
    StateMachineDeletedError,
    StateMachineNotFoundError,
    TransitionOperation,
    TransitionOutput,
    VersionedTransition,
)
from tests.support.machines import PARCEL, PAYMENT, Charge, Parcel, Payment, persisted, shop_registry

Path: TypeAlias = tuple[Key, ...]

CLASSES: Final[dict[int, type[Any]]] = {PAYMENT: Payment, PARCEL: Parcel}
FIELDS: Final = {PAYMENT: "amount", PARCEL: "weight"}
ALL_KNOWN: Final = shop_registry()
NO_PARCELS: Final = shop_registry(without=[PARCEL])


class PlannedError(Exception):
    """A function's own reason to fail."""


class PlannedInterrupt(BaseException):
    """One that is no `Exception`."""


PLANNED = (PlannedError, PlannedInterrupt, SerializationError, StateMachineDeletedError)


# Edits. A number that picks something is taken modulo how much there is to pick from.


@attrs.frozen
class Add:
    parent: int
    key: Key
    number: int


@attrs.frozen
class Delete:
    parent: int
    child: int


@attrs.frozen
class Move:
    """A transition, with edits inside."""

    node: int
    number: int
    failure: str
    caught: bool
    edits: Sequence[Edit] = ()


@attrs.frozen
class Save:
    """A savepoint, with edits inside."""

    failure: str
    caught: bool
    edits: Sequence[Edit] = ()


@attrs.frozen
class Look:
    """No edit, but it makes objects of what was only bytes, one or all."""

    node: int
    everything: bool


Edit: TypeAlias = "Add | Delete | Move | Save | Look"

picks = st.integers(0, 11)
keys = st.builds(Key, st.sampled_from([PAYMENT, PARCEL]), st.sampled_from(["", "a", "b", "ü"]))
additions = st.builds(Add, picks, keys, st.integers(0, 99))
deletions = st.builds(Delete, picks, picks)
looks = st.builds(Look, picks, st.booleans())
failures = st.sampled_from(["", "", "", "error", "interrupt"])
move_failures = st.sampled_from(["", "", "", "error", "interrupt", "bytes"])


def with_edits(edits: st.SearchStrategy[Edit]) -> st.SearchStrategy[Edit]:
    inside = st.lists(edits, max_size=4)
    return st.builds(Move, picks, st.integers(0, 99), move_failures, st.booleans(), inside) | st.builds(
        Save, failures, st.booleans(), inside
    )


any_edit: st.SearchStrategy[Edit] = st.recursive(
    additions | deletions | looks | st.builds(Move, picks, st.integers(0, 99), move_failures, st.booleans()),
    with_edits,
    max_leaves=8,
)


@attrs.define
class Machine:
    """The model of a node."""

    uid: int
    path: Path
    type: int
    number: int
    version: VersionedTransition
    last: VersionedTransition
    count: int = 0
    touched: bool = False
    children: dict[Key, Machine] = attrs.field(factory=dict)

    def below(self) -> Iterator[Machine]:
        yield self
        for child in self.children.values():
            yield from child.below()

    def known(self, registry: Registry) -> Iterator[Machine]:
        yield self
        for child in self.children.values():
            if registry.machine(child.type) is not None:
                yield from child.known(registry)


@attrs.define
class Model:
    """The model of a tree and its transaction."""

    root: Machine
    log: list[Operation] = attrs.field(factory=list)

    def at(self, path: Path) -> Machine:
        machine = self.root
        for key in path:
            machine = machine.children[key]
        return machine

    def find(self, uid: int) -> Machine | None:
        return next((machine for machine in self.root.below() if machine.uid == uid), None)

    def delete(self, parent: Machine, key: Key) -> None:
        path = (*parent.path, key)
        del parent.children[key]
        parent.touched = True
        self.log = [operation for operation in self.log if operation.path[: len(path)] != path]
        self.log.append(DeleteOperation(path))


class TreeMachine(RuleBasedStateMachine):
    """Runs every edit on a tree and on its model."""

    def __init__(self) -> None:
        super().__init__()
        self.registry = ALL_KNOWN
        self.version = VersionedTransition(1, 1)
        self.tree = Node.new_root(ALL_KNOWN, PAYMENT, Payment(), version=self.version)
        self.model = Model(Machine(0, (), PAYMENT, 0, self.version, self.version))
        self.handles: dict[int, Node] = {0: self.tree}
        self.in_transition: list[int] = []
        self.uids = 0
        self.tags = 0

    # One edit on both

    def run(self, edit: Edit) -> None:
        """Raises what the edit is planned to raise, unless it is planned to be caught."""
        match edit:
            case Add():
                self.add(edit)
            case Delete():
                self.delete(edit)
            case Look():
                self.look(edit)
            case Move() | Save():
                before = copy.deepcopy(self.model)
                try:
                    if isinstance(edit, Move):
                        self.move(edit)
                    else:
                        self.save(edit)
                except PLANNED:
                    self.model = before
                    if not edit.caught:
                        raise

    def add(self, edit: Add) -> None:
        parent = self.pick(edit.parent)
        node, data = (
            self.tree.child(parent.path),
            CLASSES[edit.key.type](**{FIELDS[edit.key.type]: edit.number}),
        )
        if edit.key in parent.children:
            with pytest.raises(StateMachineAlreadyExistsError):
                node.add_child(edit.key, data)
            return
        if self.registry.machine(edit.key.type) is None:
            with pytest.raises(NotRegisteredError):
                node.add_child(edit.key, data)
            return
        self.uids += 1
        self.handles[self.uids] = node.add_child(edit.key, data)
        parent.children[edit.key] = Machine(
            self.uids,
            (*parent.path, edit.key),
            edit.key.type,
            edit.number,
            self.version,
            self.version,
            touched=True,
        )

    def delete(self, edit: Delete) -> None:
        parent = self.pick(edit.parent)
        node, found = self.tree.child(parent.path), list(parent.children)
        if not found:
            with pytest.raises(StateMachineNotFoundError):
                node.delete_child(Key(PAYMENT, "a"))
            return
        key = found[edit.child % len(found)]
        node.delete_child(key)
        self.model.delete(parent, key)

    def move(self, edit: Move) -> None:
        machine = self.pick(edit.node)
        uid, path = machine.uid, machine.path
        node = self.tree.child(path)
        if uid in self.in_transition:
            with pytest.raises(ReentrantTransitionError):
                node.transition(CLASSES[machine.type], lambda _: None)
            return
        self.tags += 1
        output = TransitionOutput((Charge(f"task {self.tags}"),))
        doomed = False

        def fn(data: object) -> TransitionOutput:
            nonlocal doomed
            doomed = True
            machine.number, machine.last = edit.number, self.version
            machine.count += 1
            assert node.transition_count == machine.count
            setattr(data, FIELDS[machine.type], edit.number)
            for inner in edit.edits:
                self.run(inner)
            if edit.failure == "bytes":
                setattr(data, FIELDS[machine.type], object())
            self.fail(edit.failure)
            doomed = edit.failure == "bytes" or self.model.find(uid) is None
            return output

        self.in_transition.append(uid)
        try:
            node.transition(CLASSES[machine.type], fn)
        except PLANNED:
            assert doomed
            raise
        finally:
            self.in_transition.remove(uid)
        assert not doomed
        changed = self.model.at(path)
        changed.touched = True
        self.model.log.append(TransitionOperation(path, output, changed.count))

    def save(self, edit: Save) -> None:
        with self.tree.savepoint():
            for inner in edit.edits:
                self.run(inner)
            self.fail(edit.failure)

    def look(self, edit: Look) -> None:
        if edit.everything:
            self.agree(self.tree, self.registry)
        machine = self.pick(edit.node)
        node = self.tree.child(machine.path)
        assert self.handles.setdefault(machine.uid, node) is node
        assert value(node) == machine.number

    @staticmethod
    def fail(failure: str) -> None:
        if failure == "error":
            raise PlannedError
        if failure == "interrupt":
            raise PlannedInterrupt

    def pick(self, number: int) -> Machine:
        known = list(self.model.root.known(self.registry))
        return known[number % len(known)]

    # Rules

    @initialize(additions=st.lists(additions, max_size=6))
    def grow(self, additions: list[Add]) -> None:
        for edit in additions:
            self.run(edit)

    @rule(edit=any_edit)
    def edit(self, edit: Edit) -> None:
        try:
            self.run(edit)
        except PLANNED:
            assert isinstance(edit, Move | Save)
            assert not edit.caught

    @rule(edits=st.lists(any_edit, min_size=1, max_size=4), failure=failures)
    def edit_in_a_savepoint(self, edits: list[Edit], failure: str) -> None:
        self.edit(Save(failure, caught=False, edits=edits))

    @rule(edits=st.lists(additions | deletions | looks, min_size=2, max_size=5), failure=failures)
    def edit_what_was_not_looked_at(self, edits: list[Edit], failure: str) -> None:
        self.go_through_protobuf(self.registry)
        self.edit(Save(failure, caught=False, edits=edits))

    @rule(key=keys, parent=picks, failure=failures)
    def use_a_key_again(self, key: Key, parent: int, failure: str) -> None:
        machine = self.pick(parent)
        if key not in machine.children or self.registry.machine(key.type) is None:
            return
        index, where = list(machine.children).index(key), self.place(machine)
        self.edit(Save(failure, caught=True, edits=[Delete(where, index), Add(where, key, 7)]))

    @rule(count=st.integers(0, 9))
    def commit(self, count: int) -> None:
        self.tree.clear_transaction_state()
        self.forget_transaction()
        self.version = VersionedTransition(
            self.version.failover_version, self.version.transition_count + count
        )
        self.tree.begin(self.version)

    @rule(registry=st.sampled_from([ALL_KNOWN, NO_PARCELS]))
    def go_through_protobuf(self, registry: Registry) -> None:
        self.agree(self.tree, self.registry)
        self.registry = registry
        self.tree = Node.from_proto(registry, PAYMENT, persisted(self.tree), version=self.version)
        self.forget_transaction()
        self.handles = {0: self.tree}

    @rule(number=picks)
    @precondition(lambda self: len(self.handles) > 1)
    def use_any_handle(self, number: int) -> None:
        uid, node = list(self.handles.items())[number % len(self.handles)]
        if self.model.find(uid) is None:
            with pytest.raises(StateMachineDeletedError):
                node.transition(object, lambda _: None)
            with pytest.raises(StateMachineDeletedError):
                node.child([])
        else:
            assert node.child([]) is node

    def forget_transaction(self) -> None:
        self.model.log.clear()
        for machine in self.model.root.below():
            machine.touched = False

    def place(self, machine: Machine) -> int:
        return [found.uid for found in self.model.root.known(self.registry)].index(machine.uid)

    # What has to hold after every rule

    @invariant()
    def log_and_outputs_agree(self) -> None:
        assert self.tree.op_log() == tuple(self.model.log)
        outputs: dict[Path, tuple[TransitionOutput, ...]] = {}
        for operation in self.model.log:
            if isinstance(operation, TransitionOperation):
                outputs[operation.path] = (*outputs.get(operation.path, ()), operation.output)
        assert self.tree.outputs() == [PathAndOutputs(path, found) for path, found in outputs.items()]

    @invariant()
    def no_two_operations_of_a_machine_share_a_count(self) -> None:
        counts = [
            (op.path, op.transition_count) for op in self.tree.op_log() if isinstance(op, TransitionOperation)
        ]
        assert len(counts) == len(set(counts))

    @invariant()
    def dirtiness_agrees(self) -> None:
        assert self.tree.dirty == any(machine.touched for machine in self.model.root.below())
        for uid, node in self.handles.items():
            machine = self.model.find(uid)
            if machine is not None:
                assert node.dirty == any(found.touched for found in machine.below())

    @invariant()
    def deleted_handles_agree(self) -> None:
        for uid, node in self.handles.items():
            assert node.deleted == (self.model.find(uid) is None)

    @invariant()
    def bytes_agree(self) -> None:
        # Before the tree itself is walked, which decodes it and puts siblings in order.
        self.agree(Node.from_proto(ALL_KNOWN, PAYMENT, persisted(self.tree)), ALL_KNOWN)

    def teardown(self) -> None:
        self.agree(self.tree, self.registry)

    def agree(self, tree: Node, registry: Registry) -> None:
        expected = list(self.model.root.known(registry))
        nodes = list(tree.walk())
        assert [node.path for node in nodes] == [machine.path for machine in expected]
        for node, machine in zip(nodes, expected, strict=True):
            assert value(node) == machine.number
            assert node.transition_count == machine.count
            assert node.initial_version == machine.version
            assert node.last_update_version == machine.last
            for type_id, class_ in CLASSES.items():
                ids = [key.id for key in machine.children if key.type == type_id]
                collection = Collection(node, type_id, class_)
                assert len(collection) == len(ids)
                assert all(id_ in collection for id_ in ids)
                if registry.machine(type_id) is not None:
                    assert list(collection) == ids


def value(node: Node) -> object:
    number: object = getattr(node.data(object), FIELDS[node.machine_type.id])
    return number


TestTree = TreeMachine.TestCase
TestTree.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
