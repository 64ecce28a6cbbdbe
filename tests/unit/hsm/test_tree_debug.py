"""Debug mode: changes of data behind the tree's back are told, all else is as ever."""

from __future__ import annotations

from contextlib import suppress

import pytest

from hsm import Node, UntrackedChangeError
from tests.support.machines import (
    Order,
    Payment,
    amount,
    new_order,
    note,
    order_with,
    payment_key,
    reloaded,
    shop_registry,
)

A = payment_key("a")


def debugged_order(*ids: str) -> Node:
    return order_with(*ids, registry=shop_registry(debug=True))


@pytest.mark.parametrize("loaded", [False, True])
def test_change_outside_a_transition_is_told_by_the_next_transition(*, loaded: bool) -> None:
    root = debugged_order("a")
    if loaded:
        root = reloaded(root, shop_registry(debug=True))
    child = root.child([A])
    child.data(Payment).amount = 5

    with pytest.raises(UntrackedChangeError, match="the data of 2:a was changed outside a transition"):
        child.transition(Payment, amount(6))

    assert child.transition_count == 0
    assert not root.dirty


def test_change_after_a_transition_is_told_at_the_end_of_the_transaction() -> None:
    root = debugged_order()
    root.transition(Order, note("tracked"))
    root.data(Order).notes.append("untracked")

    with pytest.raises(UntrackedChangeError, match="the root"):
        root.clear_transaction_state()


def test_transitions_and_rollbacks_pass_the_check() -> None:
    root = debugged_order("a")
    child = root.child([A])
    child.transition(Payment, amount(1))

    with suppress(KeyError), root.savepoint():
        child.transition(Payment, amount(2))
        raise KeyError
    child.transition(Payment, amount(3))
    root.transition(Order, lambda _: child.transition(Payment, amount(4)))
    root.sync(reloaded(root))
    root.clear_transaction_state()

    assert child.data(Payment).amount == 4


def test_failed_transition_discards_an_untracked_change_with_its_own() -> None:
    root = debugged_order()

    def fail(order: Order) -> None:
        order.notes.append("lost")
        raise KeyError

    with pytest.raises(KeyError):
        root.transition(Order, fail)
    root.transition(Order, note("kept"))
    root.clear_transaction_state()

    assert root.data(Order).notes == ["kept"]


def test_untracked_change_of_a_deleted_machine_concerns_nobody() -> None:
    root = debugged_order("a")
    child = root.child([A])
    child.transition(Payment, amount(1))
    child.data(Payment).amount = 2

    root.delete_child(A)
    root.clear_transaction_state()


def test_without_debug_mode_the_change_goes_unnoticed() -> None:
    root = new_order()
    root.data(Order).notes.append("untracked")

    root.transition(Order, note("tracked"))

    assert reloaded(root).data(Order).notes == ["untracked", "tracked"]
