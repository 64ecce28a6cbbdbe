"""Trees whose children come from elsewhere than one message: from rows that may not have been read yet."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hsm import AccessClosedError, Collection, ExecutionKey, Key, Node, StateMachineNotFoundError
from hsm.tree import MissingPart
from persistence.proto.hsm_pb2 import StateMachineNode
from tests.support.machines import (
    ORDER,
    PAYMENT,
    UNKNOWN,
    Order,
    Payment,
    amount,
    new_order,
    note,
    nothing_changes,
    payment_key,
    shop_registry,
)

A, B, C = payment_key("a"), payment_key("b"), payment_key("c")


class Rows:
    """One message a machine; those that are not `known` have to be read first."""

    def __init__(self, root: Node) -> None:
        self.messages: dict[tuple[Key, ...], StateMachineNode] = {}
        for node in root.walk():
            message = node.to_proto()
            message.ClearField("children")
            self.messages[node.path] = message
        self.known: set[tuple[Key, ...]] = set(self.messages)
        self.listed = True

    def tree(self) -> Node:
        return Node._from_source(
            shop_registry(), ORDER, self.messages[()], Below(self, ()), next_ordinal=1000
        )


class Below:
    """The rows below one path."""

    def __init__(self, rows: Rows, path: tuple[Key, ...]) -> None:
        self.rows = rows
        self.path = path

    def child(self, key: Key) -> tuple[StateMachineNode, Below] | None:
        path = (*self.path, key)
        if path not in self.rows.messages:
            return None
        if path not in self.rows.known:
            raise MissingPart(path, subtree=False)
        return self.rows.messages[path], Below(self.rows, path)

    def child_keys(self) -> Iterator[Key]:
        if not self.rows.listed:
            raise MissingPart(self.path, subtree=True)
        depth = len(self.path)
        yield from (
            path[-1]
            for path in reversed(self.rows.messages)
            if len(path) == depth + 1 and path[:depth] == self.path
        )


def three_payments() -> Rows:
    root = new_order()
    for key in (B, A):
        root.add_child(key, Payment(amount=1))
    root.child([A]).add_child(C, Payment(amount=3))
    return Rows(root)


def test_tree_is_read_from_its_rows_in_order_of_insertion() -> None:
    root = three_payments().tree()

    assert [node.path for node in root.walk()] == [(), (B,), (A,), (A, C)]
    assert root.child([A, C]).data(Payment).amount == 3
    assert not root.dirty


def test_what_was_never_touched_is_written_too() -> None:
    rows = three_payments()
    rows.messages[Key(UNKNOWN, "x"),] = StateMachineNode(data=b"opaque")
    rows.messages[Key(UNKNOWN, "x"), A] = StateMachineNode(data=b"below")
    rows.known = set(rows.messages)
    root = rows.tree()
    root.child([B]).transition(Payment, amount(5))

    message = root.to_proto()

    again = Node.from_proto(shop_registry(), ORDER, message)
    assert [node.path for node in again.walk()] == [(), (B,), (A,), (A, C)]
    assert again.child([B]).data(Payment).amount == 5
    opaque = message.children[UNKNOWN].machines_by_id["x"]
    assert opaque.children[PAYMENT].machines_by_id["a"].data == b"below"


def test_part_that_is_missing_is_named_and_found_once_it_is_there() -> None:
    rows = three_payments()
    rows.known = {(), (A,)}
    root = rows.tree()

    with pytest.raises(MissingPart, match="2:a/2:c is not loaded") as caught:
        root.child([A, C])
    rows.known.add((A, C))

    assert (caught.value.path, caught.value.subtree) == ((A, C), False)
    assert root.child([A, C]).data(Payment).amount == 3
    with pytest.raises(MissingPart):
        root.child([B])
    with pytest.raises(StateMachineNotFoundError):
        root.child([C])


def test_listing_needs_all_children() -> None:
    rows = three_payments()
    rows.listed = False
    root = rows.tree()

    for listing in (
        lambda: list(root.walk()),
        root.to_proto,
        lambda: len(Collection(root, PAYMENT, Payment)),
    ):
        with pytest.raises(MissingPart, match="the root is not loaded") as caught:
            listing()
        assert caught.value.subtree

    rows.listed = True
    assert len(list(root.walk())) == 4


def test_function_that_needs_a_missing_part_is_undone_even_if_it_handles_errors() -> None:
    rows = three_payments()
    rows.known = {()}
    root = rows.tree()

    def handle_everything(order: Order) -> None:
        order.notes.append("half done")
        root.add_child(payment_key("new"), Payment())
        try:
            root.child([A])
        except Exception:  # noqa: BLE001 - what such functions do
            order.notes.append("swallowed")

    with pytest.raises(MissingPart):
        root.transition(Order, handle_everything)
    rows.known = set(rows.messages)

    assert root.data(Order).notes == []
    assert not root.dirty
    assert len(list(root.walk())) == 4


@pytest.mark.parametrize(
    "edit", [lambda root: root.delete_child(A), lambda root: root.add_child(A, Payment())]
)
def test_edit_of_a_child_that_is_not_loaded_changes_nothing(edit: object) -> None:
    rows = three_payments()
    rows.known = {()}
    root = rows.tree()

    assert callable(edit)
    with pytest.raises(MissingPart):
        edit(root)

    assert not root.dirty
    assert root.op_log() == ()


def test_new_child_follows_all_others_whether_they_are_loaded_or_not() -> None:
    root = three_payments().tree()

    root.add_child(payment_key("0"), Payment())

    assert list(Collection(root, PAYMENT, Payment)) == ["b", "a", "0"]


def test_node_of_a_closed_access_is_refused() -> None:
    root = three_payments().tree()
    child = root.child([A])
    root._state.sealed = True

    for use in (
        lambda: child.data(Payment),
        lambda: child.transition(Payment, amount(1)),
        lambda: child.add_child(B, Payment()),
        lambda: child.delete_child(C),
        lambda: child.child([C]),
        child.walk,
        child.to_proto,
        child.savepoint,
        child.outputs,
        child.regenerate_tasks,
        lambda: child.ref(ExecutionKey("shop", "1")),
        lambda: child.sync(new_order()),
    ):
        with pytest.raises(AccessClosedError, match="2:a was used after its access had ended"):
            use()

    root._state.sealed = False
    with nothing_changes(root, KeyError), root.savepoint():
        root.transition(Order, note("x"))
        raise KeyError
