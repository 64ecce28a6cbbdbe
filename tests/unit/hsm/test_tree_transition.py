"""Transitions of nodes: what one leaves behind when it succeeds."""

from __future__ import annotations

import pytest

from hsm import (
    IncompatibleTypeError,
    InvalidTransitionError,
    Key,
    Node,
    PathAndOutputs,
    ReentrantTransitionError,
    TransitionOperation,
    TransitionOutput,
    VersionedTransition,
    machine_data,
    machine_transition,
)
from tests.support.machines import (
    Charge,
    Money,
    Order,
    OrderState,
    Payment,
    amount,
    charge,
    new_order,
    note,
    nothing_changes,
    order_with,
    pay,
    payment_key,
    settle,
    ship,
)


def test_transition_changes_the_data_and_counts() -> None:
    root = new_order()

    root.transition(Order, note("hello"))

    assert root.data(Order).notes == ["hello"]
    assert root.transition_count == 1


def test_transition_logs_what_it_asked_for_with_its_own_count() -> None:
    root = new_order()

    root.transition(Order, charge("one"))
    root.transition(Order, charge("two"))

    assert root.op_log() == (
        TransitionOperation((), TransitionOutput((Charge("one"),)), 1),
        TransitionOperation((), TransitionOutput((Charge("two"),)), 2),
    )


def test_transition_may_return_nothing() -> None:
    root = new_order()

    root.transition(Order, note("quiet"))

    assert root.op_log() == (TransitionOperation((), TransitionOutput(), 1),)


def test_transition_makes_its_node_and_all_above_dirty_but_no_sibling() -> None:
    root = order_with("a", "b")
    a, b = root.child([payment_key("a")]), root.child([payment_key("b")])

    a.transition(Payment, amount(1))

    assert (root.dirty, a.dirty, b.dirty) == (True, True, False)


def test_transition_stamps_the_version_of_the_transaction() -> None:
    root = order_with("a")
    child = root.child([payment_key("a")])

    root.begin(VersionedTransition(2, 7))
    child.transition(Payment, amount(1))

    assert child.last_update_version == VersionedTransition(2, 7)
    assert child.initial_version == VersionedTransition(1, 1)
    assert root.last_update_version == VersionedTransition(1, 1)
    assert child.version == VersionedTransition(2, 7)


def test_function_sees_the_new_count_and_version_so_that_it_can_make_references() -> None:
    root = new_order()
    root.begin(VersionedTransition(1, 5))
    seen: list[tuple[int, VersionedTransition]] = []

    def look(_: Order) -> None:
        seen.append((root.transition_count, root.last_update_version))

    root.transition(Order, look)

    assert seen == [(1, VersionedTransition(1, 5))]


def test_references_taken_earlier_see_later_transitions() -> None:
    root = new_order()
    data = root.data(Order)

    root.transition(Order, note("later"))

    assert data.notes == ["later"]
    assert root.data(Order) is data


def test_apply_runs_a_transition_object_and_logs_its_tasks() -> None:
    root = new_order()

    root.apply(pay, Money(3))

    assert root.data(Order) == Order(OrderState.PAID, ["paid 3"])
    assert root.outputs() == [PathAndOutputs((), (TransitionOutput((Charge(),)),))]


def test_apply_from_another_state_changes_nothing() -> None:
    root = new_order()

    with nothing_changes(root, InvalidTransitionError):
        root.apply(ship, "mail")


def test_apply_of_another_machines_transition_is_refused() -> None:
    root = new_order()

    with nothing_changes(root, IncompatibleTypeError):
        root.apply(settle, Money(1))


def test_transition_for_another_class_is_refused_and_both_classes_are_named() -> None:
    root = new_order()

    with pytest.raises(IncompatibleTypeError, match="the root holds a Order, not a Payment"):
        root.transition(Payment, amount(1))

    assert root.transition_count == 0
    assert not root.dirty


def test_data_of_another_class_is_refused_and_stays_readable_as_its_own() -> None:
    root = order_with("a")
    child = root.child([payment_key("a")])

    with pytest.raises(IncompatibleTypeError, match="2:a holds a Payment, not a Order"):
        child.data(Order)

    assert child.data(Payment) == Payment()


def test_transition_that_returns_something_else_is_refused() -> None:
    root = new_order()

    with nothing_changes(root, TypeError):
        root.transition(Order, lambda _: [Charge()])  # type: ignore[arg-type, return-value]


def test_coroutine_function_is_refused_as_a_transition() -> None:
    root = new_order()

    async def later(_: Order) -> None: ...

    with nothing_changes(root, TypeError):
        root.transition(Order, later)  # type: ignore[arg-type]


def test_nested_transition_of_a_child_is_logged_before_that_of_its_parent() -> None:
    root = order_with("a")
    child = root.child([payment_key("a")])

    def both(order: Order) -> None:
        order.notes.append("both")
        child.apply(settle, Money(5))

    root.transition(Order, both)

    assert child.data(Payment).amount == 5
    assert [operation.path for operation in root.op_log()] == [(payment_key("a"),), ()]


def test_nested_transitions_are_logged_with_counts_of_their_own() -> None:
    root = order_with("a")
    child = root.child([payment_key("a")])

    def thrice(_: Order) -> None:
        for number in range(3):
            child.transition(Payment, amount(number))

    root.transition(Order, thrice)

    assert [operation.transition_count for operation in ops(root)] == [1, 2, 3, 1]


def test_child_may_transition_its_parent_while_the_parent_rests() -> None:
    root = order_with("a")
    child = root.child([payment_key("a")])

    child.transition(Payment, lambda _: root.transition(Order, note("from below")))

    assert root.data(Order).notes == ["from below"]


@pytest.mark.parametrize("through_child", [False, True])
def test_node_is_not_transitioned_from_inside_itself(*, through_child: bool) -> None:
    root = order_with("a")
    child = root.child([payment_key("a")])

    def again(_: Order) -> None:
        if through_child:
            child.transition(Payment, lambda _: root.transition(Order, note("twice")))
        root.transition(Order, note("twice"))

    with nothing_changes(root, ReentrantTransitionError):
        root.transition(Order, again)

    root.transition(Order, note("afterwards"))
    assert root.transition_count == 1


def test_refused_reentrance_can_be_caught_and_costs_nothing() -> None:
    root = new_order()

    def again(order: Order) -> None:
        with pytest.raises(ReentrantTransitionError):
            root.transition(Order, note("twice"))
        order.notes.append("once")

    root.transition(Order, again)

    assert root.data(Order).notes == ["once"]
    assert [operation.transition_count for operation in ops(root)] == [1]


def test_outputs_are_grouped_by_machine_in_order_of_their_first_transition() -> None:
    root = order_with("a", "b")
    a, b = root.child([payment_key("a")]), root.child([payment_key("b")])

    b.transition(Payment, charge("one"))
    a.transition(Payment, amount(1))
    b.transition(Payment, charge("two"))

    assert root.outputs() == [
        PathAndOutputs((payment_key("b"),), (asked("one"), asked("two"))),
        PathAndOutputs((payment_key("a"),), (TransitionOutput(),)),
    ]
    assert a.outputs() == [PathAndOutputs((payment_key("a"),), (TransitionOutput(),))]


def test_clearing_the_transaction_empties_the_log_and_cleans_every_node() -> None:
    root = order_with("a")
    child = root.child([payment_key("a")])
    child.transition(Payment, amount(1))
    root.transition(Order, note("x"))

    root.clear_transaction_state()

    assert (root.op_log(), root.outputs(), root.dirty, child.dirty) == ((), [], False, False)
    assert (root.transition_count, child.data(Payment).amount) == (1, 1)


def test_transaction_is_not_cleared_while_a_transition_could_still_be_undone() -> None:
    root = new_order()

    with nothing_changes(root, ReentrantTransitionError):
        root.transition(Order, lambda _: root.clear_transaction_state())

    with root.savepoint(), pytest.raises(ReentrantTransitionError):
        root.clear_transaction_state()


@pytest.mark.parametrize("method", ["clear_transaction_state", "op_log"])
def test_transaction_belongs_to_the_root(method: str) -> None:
    root = order_with("a")
    child = root.child([payment_key("a")])
    child.transition(Payment, amount(1))

    with pytest.raises(ValueError, match=f"{method} is for the root, not for 2:a"):
        getattr(child, method)()
    with pytest.raises(ValueError, match="begin is for the root"):
        child.begin(VersionedTransition(9, 9))

    assert child.dirty
    assert len(root.op_log()) == 1


def test_log_keeps_its_operations_when_more_follow() -> None:
    root = new_order()
    root.transition(Order, note("one"))
    log = root.op_log()

    root.transition(Order, note("two"))

    assert len(log) == 1


def test_functions_do_what_the_methods_do() -> None:
    root = new_order()

    machine_transition(root, Order, note("x"))

    assert machine_data(root, Order) is root.data(Order)
    assert root.data(Order).notes == ["x"]


def test_node_says_what_it_is() -> None:
    root = order_with("a")
    child = root.child([payment_key("a")])

    assert repr(child) == "<Node 2:a at transition 0>"
    assert repr(root) == "<Node the root at transition 0>"
    assert (root.key, root.parent, root.path) == (None, None, ())
    assert (child.key, child.parent, child.path) == (payment_key("a"), root, (payment_key("a"),))
    assert str(Key(2, "a")) == "2:a"
    assert str(Key(2, "")) == "2:"


def asked(bank: str) -> TransitionOutput:
    return TransitionOutput((Charge(bank),))


def ops(root: Node) -> list[TransitionOperation]:
    return [operation for operation in root.op_log() if isinstance(operation, TransitionOperation)]
