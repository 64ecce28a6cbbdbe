"""Children: adding, finding, deleting and listing them."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from hsm import (
    Collection,
    DeleteOperation,
    ExecutionKey,
    IncompatibleTypeError,
    Key,
    MachineType,
    Node,
    NotRegisteredError,
    SerializationError,
    StateMachineAlreadyExistsError,
    StateMachineDeletedError,
    StateMachineNotFoundError,
    TransitionOperation,
    TransitionOutput,
    VersionedTransition,
)
from tests.support.machines import (
    ORDER,
    ORDER_TYPE,
    PARCEL,
    PAYMENT,
    UNKNOWN,
    Charge,
    Money,
    Order,
    Parcel,
    Payment,
    PaymentState,
    amount,
    charge,
    new_order,
    note,
    nothing_changes,
    order_with,
    parcel_key,
    payment_key,
    reloaded,
    settle,
    shop_registry,
)

A, B, C = payment_key("a"), payment_key("b"), payment_key("c")


def test_new_root_is_clean() -> None:
    root = new_order(version=VersionedTransition(3, 4))

    assert not root.dirty
    assert root.op_log() == ()
    assert root.transition_count == 0
    assert root.initial_version == root.last_update_version == VersionedTransition(3, 4)


def test_root_of_an_unknown_type_is_refused() -> None:
    with pytest.raises(NotRegisteredError, match="99"):
        Node.new_root(shop_registry(), UNKNOWN, Order())


def test_root_takes_persisted_children_as_a_copy() -> None:
    children = order_with("a").to_proto().children

    root = Node.new_root(shop_registry(), ORDER, Order(), children)
    root.delete_child(A)
    root.add_child(B, Payment())

    assert [node.key for node in root.walk()] == [None, B]
    assert list(children[PAYMENT].machines_by_id) == ["a"]


def test_added_child_makes_the_tree_dirty_and_logs_nothing() -> None:
    root = new_order()
    root.begin(VersionedTransition(1, 6))

    child = root.add_child(A, Payment(amount=4))

    assert (root.dirty, child.dirty) == (True, True)
    assert root.op_log() == ()
    assert root.outputs() == []
    assert child.transition_count == 0
    assert child.initial_version == child.last_update_version == VersionedTransition(1, 6)
    assert root.last_update_version == VersionedTransition(1, 1)


def test_added_child_holds_the_very_object() -> None:
    data = Payment()

    assert new_order().add_child(A, data).data(Payment) is data


def test_same_id_under_two_types_is_two_children_and_an_id_may_be_empty() -> None:
    root = new_order()

    both = root.add_child(payment_key(""), Payment()), root.add_child(parcel_key(""), Parcel())

    assert [root.child([payment_key("")]), root.child([parcel_key("")])] == list(both)


def test_key_is_used_once() -> None:
    root = reloaded(order_with("a"))

    with nothing_changes(root, StateMachineAlreadyExistsError):
        root.add_child(A, Payment())


def test_existence_is_told_before_an_unknown_type() -> None:
    root = with_opaque_child()

    with pytest.raises(StateMachineAlreadyExistsError):
        root.add_child(Key(UNKNOWN, "x"), Payment())
    with pytest.raises(NotRegisteredError):
        root.add_child(Key(UNKNOWN, "y"), Payment())


def test_child_is_the_same_object_every_time() -> None:
    root = reloaded(order_with("a"))
    child = root.child([A])

    assert root.child([A]) is child
    assert next(node for node in root.walk() if node.key == A) is child
    assert payments(root).node("a") is child
    assert root.child([]) is root


def test_unknown_type_is_told_before_absence() -> None:
    with pytest.raises(NotRegisteredError):
        new_order().child([Key(UNKNOWN, "nowhere")])


def test_missing_child_is_named_with_its_path() -> None:
    root = order_with("a")

    with pytest.raises(StateMachineNotFoundError, match="2:a has no child 2:b") as caught:
        root.child([A, B, C])

    assert caught.value.path == (A, B)


def test_deep_path_finds_its_node() -> None:
    root = new_order()
    node = root
    for id_ in "abcdef":
        node = node.add_child(payment_key(id_), Payment())

    again = reloaded(root).child(node.path)

    assert again.path == tuple(payment_key(id_) for id_ in "abcdef")


def test_delete_makes_the_parent_dirty_and_is_logged() -> None:
    root = order_with("a", "b")

    root.delete_child(A)

    assert root.dirty
    assert root.op_log() == (DeleteOperation((A,)),)
    assert [node.key for node in root.walk()] == [None, B]


def test_delete_alone_makes_only_the_nodes_above_dirty() -> None:
    root = order_with("a", "b")
    root.child([A]).add_child(C, Payment())
    root.clear_transaction_state()

    root.child([A]).delete_child(C)

    assert (root.dirty, root.child([A]).dirty, root.child([B]).dirty) == (True, True, False)
    assert root.transition_count == root.child([A]).transition_count == 0


def test_deleted_child_is_gone_from_every_view() -> None:
    root = reloaded(order_with("a", "b"))

    root.delete_child(A)

    assert list(payments(root)) == ["b"]
    assert "a" not in payments(root)
    assert len(payments(root)) == 1
    assert list(root.to_proto().children[PAYMENT].machines_by_id) == ["b"]
    with pytest.raises(StateMachineNotFoundError):
        root.child([A])
    with pytest.raises(StateMachineNotFoundError):
        root.delete_child(A)


EVERY_USE: dict[str, Callable[[Node], object]] = {
    "data": lambda node: node.data(Payment),
    "child": lambda node: node.child([B]),
    "self as child": lambda node: node.child([]),
    "add_child": lambda node: node.add_child(B, Payment()),
    "delete_child": lambda node: node.delete_child(B),
    "transition": lambda node: node.transition(Payment, amount(1)),
    "apply": lambda node: node.apply(settle, Money(1)),
    "walk": lambda node: node.walk(),
    "outputs": lambda node: node.outputs(),
    "savepoint": lambda node: node.savepoint(),
    "ref": lambda node: node.ref(ExecutionKey("shop", "1")),
    "to_proto": lambda node: node.to_proto(),
    "sync": lambda node: node.sync(new_order()),
    "sync from": lambda node: new_order().sync(node),
    "compare": lambda node: node.compare(node),
    "regenerate_tasks": lambda node: node.regenerate_tasks(),
    "collection add": lambda node: payments(node).add("b", Payment()),
    "collection nodes": lambda node: payments(node).nodes(),
    "collection length": lambda node: len(payments(node)),
    "collection contains": lambda node: "b" in payments(node),
    "collection iteration": lambda node: list(payments(node)),
}


@pytest.mark.parametrize("below", [False, True])
@pytest.mark.parametrize("use", EVERY_USE)
def test_every_use_of_a_deleted_handle_is_refused(use: str, *, below: bool) -> None:
    registry = shop_registry(*[ComparablePayments()])
    root = order_with("a", registry=registry)
    node = root.child([A])
    if below:
        node = node.add_child(C, Payment())
    root.delete_child(A)
    if below:
        root.clear_transaction_state()

    assert node.deleted
    with nothing_changes(root, StateMachineDeletedError):
        EVERY_USE[use](node)


def test_deleted_handle_still_says_what_it_was() -> None:
    root = order_with("a")
    child = root.child([A])
    root.delete_child(A)

    assert (child.key, child.path, child.deleted) == (A, (A,), True)
    assert repr(child).endswith("deleted>")


def test_deleted_handle_stays_deleted_when_its_key_is_used_again() -> None:
    root = order_with("a")
    old = root.child([A])
    root.delete_child(A)

    new = root.add_child(A, Payment(amount=9))

    assert old.deleted
    assert not new.deleted
    assert root.child([A]) is new
    assert new.transition_count == 0


def test_delete_hides_earlier_operations_of_its_node_and_of_all_below() -> None:
    root = order_with("a")
    child = root.child([A])
    below = child.add_child(C, Payment())
    root.transition(Order, note("stays"))
    child.transition(Payment, charge("hidden"))
    below.transition(Payment, charge("hidden too"))

    root.delete_child(A)

    assert root.op_log() == (TransitionOperation((), TransitionOutput(), 1), DeleteOperation((A,)))
    assert [found.path for found in root.outputs()] == [()]


def test_operations_of_a_key_that_is_used_again_are_kept() -> None:
    root = order_with("a")
    root.child([A]).transition(Payment, charge("old"))
    root.delete_child(A)
    root.add_child(A, Payment()).transition(Payment, charge("new"))

    assert root.op_log() == (
        DeleteOperation((A,)),
        TransitionOperation((A,), TransitionOutput((Charge("new"),)), 1),
    )
    assert [found.outputs for found in root.outputs()] == [(TransitionOutput((Charge("new"),)),)]


def test_key_that_is_deleted_twice_keeps_its_last_delete() -> None:
    root = order_with("a", "b")
    root.delete_child(A)
    root.add_child(A, Payment())
    root.delete_child(B)
    root.delete_child(A)

    assert root.op_log() == (DeleteOperation((B,)), DeleteOperation((A,)))


def test_delete_of_a_child_that_was_added_in_the_same_transaction_is_kept() -> None:
    root = new_order()
    root.add_child(A, Payment())

    root.delete_child(A)

    assert root.op_log() == (DeleteOperation((A,)),)
    assert root.dirty


def test_delete_of_an_ancestor_absorbs_the_deletes_below() -> None:
    root = order_with("a")
    child = root.child([A])
    child.add_child(C, Payment())
    child.delete_child(C)

    root.delete_child(A)

    assert root.op_log() == (DeleteOperation((A,)),)


def test_delete_below_a_key_that_is_used_again_is_kept() -> None:
    root = order_with("a")
    root.delete_child(A)
    child = root.add_child(A, Payment())
    child.add_child(C, Payment())
    child.delete_child(C)

    assert root.op_log() == (DeleteOperation((A,)), DeleteOperation((A, C)))


def test_siblings_come_in_order_of_insertion_whatever_is_asked_for_first() -> None:
    root = new_order()
    root.add_child(B, Payment())
    root.add_child(parcel_key("z"), Parcel())
    root.add_child(A, Payment())
    again = reloaded(root)

    again.child([A])

    assert [node.key for node in again.walk()] == [None, B, parcel_key("z"), A]
    assert list(payments(again)) == ["b", "a"]


def test_key_that_is_used_again_goes_to_the_end() -> None:
    root = reloaded(order_with("a", "b"))

    root.delete_child(A)
    root.add_child(A, Payment())

    assert list(payments(root)) == list(payments(reloaded(root))) == ["b", "a"]


def test_walk_goes_parents_first() -> None:
    root = order_with("a", "b")
    root.child([A]).add_child(C, Payment())

    assert [node.path for node in root.walk()] == [(), (A,), (A, C), (B,)]
    assert [node.path for node in root.child([A]).walk()] == [(A,), (A, C)]


def test_walk_visits_children_that_are_added_on_the_way() -> None:
    root = order_with("a")
    visited: list[Key | None] = []

    for node in root.walk():
        visited.append(node.key)
        if node.key == A:
            node.add_child(C, Payment())

    assert visited == [None, A, C]


def test_walk_skips_what_is_deleted_on_the_way() -> None:
    root = order_with("a", "b", "c")
    root.child([A]).add_child(C, Payment())
    visited: list[tuple[Key, ...]] = []

    for node in root.walk():
        visited.append(node.path)
        if node.path == (A,):
            root.delete_child(B)
            root.delete_child(A)

    assert visited == [(), (A,), (C,)]


def test_opaque_child_is_carried_along_as_it_is() -> None:
    root = with_opaque_child()
    root.transition(Order, note("x"))
    root.add_child(A, Payment())

    again = reloaded(reloaded(root))

    opaque = again.to_proto().children[UNKNOWN].machines_by_id["x"]
    assert opaque.data == b"opaque"
    assert opaque.children[UNKNOWN].machines_by_id["below"].data == b"also opaque"


def test_touching_an_opaque_child_is_refused_and_it_is_left_out_of_walks() -> None:
    root = with_opaque_child()

    with pytest.raises(NotRegisteredError):
        root.child([Key(UNKNOWN, "x")])
    with pytest.raises(NotRegisteredError):
        root.child([Key(UNKNOWN, "x"), A])
    with pytest.raises(NotRegisteredError):
        Collection(root, UNKNOWN, Payment).nodes()

    assert [node.key for node in root.walk()] == [None]


def test_opaque_child_is_deleted_with_its_parent_or_alone() -> None:
    root = with_opaque_child()
    root.delete_child(Key(UNKNOWN, "x"))

    below = order_with("a")
    message = below.to_proto()
    message.children[PAYMENT].machines_by_id["a"].children[UNKNOWN].machines_by_id["x"].data = b"opaque"
    outer = Node.from_proto(shop_registry(), ORDER, message)
    outer.delete_child(A)

    assert root.op_log() == (DeleteOperation((Key(UNKNOWN, "x"),)),)
    assert not root.to_proto().children
    assert not outer.to_proto().children
    with pytest.raises(StateMachineNotFoundError):
        root.delete_child(Key(UNKNOWN, "x"))


def test_data_of_the_wrong_type_is_refused_at_the_door() -> None:
    root = new_order()

    with nothing_changes(root, IncompatibleTypeError):
        root.add_child(parcel_key("x"), Payment())
    with pytest.raises(IncompatibleTypeError, match="'parcel' holds a Parcel, not a Payment"):
        root.add_child(parcel_key("x"), Payment())
    with pytest.raises(IncompatibleTypeError, match="'order' holds a Order, not a Parcel"):
        Node.new_root(shop_registry(), ORDER, Parcel())


def test_definition_that_cannot_restore_its_data_is_refused_at_the_door() -> None:
    registry = shop_registry(OneWay(), without=[ORDER])
    one_way = shop_registry(OneWay())

    with pytest.raises(SerializationError, match="'order' does not restore what it serialized"):
        Node.new_root(one_way, ORDER, Order())
    with pytest.raises(NotRegisteredError):
        Node.new_root(registry, ORDER, Order())


def test_definition_that_serializes_to_something_else_than_bytes_is_refused_at_the_door() -> None:
    with pytest.raises(SerializationError, match="serializes to a str, not to bytes"):
        Node.new_root(shop_registry(Texts()), ORDER, Order())


@pytest.mark.parametrize("size", [10, 1000])
def test_dirtiness_of_the_root_is_known_without_a_search(size: int) -> None:
    root = order_with(*map(str, range(size)))
    assert calls_made_by(lambda: root.dirty) <= 1
    for child in root.walk():
        if child.key is not None:
            child.transition(Payment, amount(1))

    assert root.dirty
    assert calls_made_by(lambda: root.dirty) <= 1


@pytest.mark.parametrize("size", [10, 1000])
def test_transition_costs_the_same_in_a_small_and_in_a_large_tree(size: int) -> None:
    root = order_with(*map(str, range(size)))
    child = root.child([payment_key("5")])

    calls = [calls_made_by(lambda: child.transition(Payment, amount(1))) for _ in range(3)]

    smallest = order_with("5").child([payment_key("5")])
    assert calls == [calls_made_by(lambda: smallest.transition(Payment, amount(1)))] * 3


def test_collection_is_a_typed_view_of_one_type() -> None:
    root = new_order()
    root.add_child(parcel_key("a"), Parcel())
    collection = payments(root)

    added = collection.add("a", Payment(amount=1))
    collection.add("b", Payment())
    collection.transition("b", amount(5))
    collection.apply("b", settle, Money(6))

    assert collection.type == PAYMENT
    assert collection.node("a") is added
    assert collection.data("b") == Payment(PaymentState.DONE, 6)
    assert list(collection) == ["a", "b"]
    assert list(collection.nodes()) == [root.child([A]), root.child([B])]
    assert len(collection) == 2
    assert "a" in collection
    assert "c" not in collection
    assert 5 not in collection


def test_empty_collection_is_empty() -> None:
    collection = Collection(new_order(), PARCEL, Parcel)

    assert (list(collection), len(collection), list(collection.nodes())) == ([], 0, [])
    with pytest.raises(StateMachineNotFoundError):
        collection.data("a")


def test_collection_refuses_data_of_another_class() -> None:
    root = new_order()

    with nothing_changes(root, IncompatibleTypeError):
        payments(root).add("a", Parcel())  # type: ignore[arg-type]


def test_collection_knows_its_size_without_making_objects() -> None:
    registry = shop_registry()
    message = order_with("a", "b").to_proto()
    message.children[PAYMENT].machines_by_id["broken"].data = b"not a payment"

    root = Node.from_proto(registry, ORDER, message)

    assert len(payments(root)) == 3
    assert "broken" in payments(root)


def test_node_of_a_broken_child_can_be_had_and_its_data_names_it() -> None:
    message = order_with("a").to_proto()
    message.children[PAYMENT].machines_by_id["broken"].data = b"not a payment"
    root = Node.from_proto(shop_registry(), ORDER, message)

    with pytest.raises(SerializationError, match="2:broken"):
        payments(root).data("broken")

    assert payments(root).data("a") == Payment()
    root.delete_child(payment_key("broken"))


def payments(node: Node) -> Collection[Payment]:
    return Collection(node, PAYMENT, Payment)


def with_opaque_child() -> Node:
    message = new_order().to_proto()
    opaque = message.children[UNKNOWN].machines_by_id["x"]
    opaque.data = b"opaque"
    opaque.children[UNKNOWN].machines_by_id["below"].data = b"also opaque"
    return Node.from_proto(shop_registry(), ORDER, message)


def calls_made_by(function: Callable[[], object]) -> int:
    """How many calls the function makes: a measure of its cost that does not depend on the machine."""
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in {"call", "c_call"}

    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(None)
    return calls - 2  # `function` itself and the call that ends the count


class OneWay:
    type = ORDER_TYPE

    def serialize(self, _: Order, /) -> bytes:
        return b""

    def deserialize(self, _: bytes, /) -> Order:
        raise NotImplementedError("orders are not read back")


class Texts:
    type = ORDER_TYPE

    def serialize(self, _: Order, /) -> bytes:
        return "text"  # type: ignore[return-value]

    def deserialize(self, _: bytes, /) -> Order:
        return Order()


class ComparablePayments:
    type = MachineType(PAYMENT, "payment")

    def serialize(self, payment: Payment, /) -> bytes:
        return str(payment.amount).encode()

    def deserialize(self, data: bytes, /) -> Payment:
        return Payment(amount=int(data))

    def compare(self, a: Payment, b: Payment, /) -> int:
        return a.amount - b.amount
