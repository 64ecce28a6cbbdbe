"""All or nothing: what a failed transition, and a savepoint that is left by an error, leave behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from hsm import (
    IncompatibleTypeError,
    Key,
    Node,
    SerializationError,
    StateMachineDeletedError,
    StateMachineNotFoundError,
    TransitionOperation,
    TransitionOutput,
    VersionedTransition,
)
from tests.support.machines import (
    UNKNOWN,
    Charge,
    Money,
    Order,
    OrderState,
    Parcel,
    Payment,
    PaymentState,
    amount,
    new_order,
    note,
    nothing_changes,
    order_with,
    parcel_key,
    payment_key,
    reloaded,
    settle,
    snapshot,
)

A, B, C = payment_key("a"), payment_key("b"), payment_key("c")


class RefusedError(Exception):
    """A function's own reason to fail."""


def failing(*edits: Callable[[], object]) -> Callable[[object], None]:
    """A transition that makes these edits and then fails."""

    def edit_and_fail(_: object) -> None:
        for edit in edits:
            edit()
        raise RefusedError

    return edit_and_fail


@contextmanager
def given_up(node: Node) -> Iterator[None]:
    """A savepoint that ends with an error, which goes no further."""
    with suppress(RefusedError), node.savepoint():
        yield
        raise RefusedError


@pytest.mark.parametrize(
    "error", [RefusedError, KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError]
)
def test_any_exception_undoes_a_transition(error: type[BaseException]) -> None:
    root = order_with("a", "b")
    root.transition(Order, note("before"))

    def edit_everything(order: Order) -> None:
        order.notes.append("lost")
        order.state = OrderState.PAID
        root.add_child(C, Payment())
        root.delete_child(A)
        root.child([B]).apply(settle, Money(5))
        raise error

    with nothing_changes(root, error):
        root.transition(Order, edit_everything)


def test_failed_transition_leaves_no_child_behind_and_a_clean_tree_clean() -> None:
    root = new_order()

    with nothing_changes(root, RefusedError):
        root.transition(Order, failing(lambda: root.add_child(A, Payment())))

    assert not root.dirty
    with pytest.raises(StateMachineNotFoundError):
        root.child([A])


def test_handle_of_a_child_whose_addition_was_undone_is_refused() -> None:
    root = new_order()
    handles: list[Node] = []

    with pytest.raises(RefusedError):
        root.transition(
            Order,
            failing(
                lambda: handles.append(root.add_child(A, Payment())),
                lambda: handles.append(handles[0].add_child(B, Payment())),
            ),
        )

    for handle in handles:
        assert handle.deleted
        with pytest.raises(StateMachineDeletedError):
            handle.data(Payment)


def test_child_deleted_by_a_failed_transition_is_the_same_child_again() -> None:
    root = order_with("a", "b")
    child = root.child([A])
    below = child.add_child(C, Payment(amount=7))
    root.clear_transaction_state()

    with nothing_changes(root, RefusedError):
        root.transition(Order, failing(lambda: root.delete_child(A)))

    assert root.child([A]) is child
    assert root.child([A, C]) is below
    assert (child.deleted, below.deleted, root.dirty) == (False, False, False)
    assert below.data(Payment).amount == 7


def test_child_deleted_by_a_failed_transition_keeps_its_place_among_its_siblings() -> None:
    root = reloaded(order_with("b", "a", "c"))

    with nothing_changes(root, RefusedError):
        root.transition(Order, failing(lambda: root.delete_child(B)))

    assert [node.key for node in root.walk()] == [None, B, A, C]


def test_failed_transition_undoes_the_nested_one_of_a_child() -> None:
    root = order_with("a")
    child = root.child([A])
    child.transition(Payment, amount(1))
    root.clear_transaction_state()
    root.begin(VersionedTransition(1, 9))

    with nothing_changes(root, RefusedError):
        root.transition(Order, failing(lambda: child.apply(settle, Money(5))))

    assert child.data(Payment) == Payment(amount=1)
    assert child.transition_count == 1
    assert child.last_update_version == VersionedTransition(1, 1)
    assert not child.dirty


def test_nested_transition_may_fail_alone() -> None:
    root = order_with("a", "b")
    a, b = root.child([A]), root.child([B])

    def go_on(order: Order) -> None:
        b.transition(Payment, amount(1))
        with pytest.raises(RefusedError):
            a.transition(
                Payment, failing(lambda: b.transition(Payment, amount(2)), lambda: root.delete_child(B))
            )
        order.notes.append("went on")

    root.transition(Order, go_on)

    assert root.data(Order).notes == ["went on"]
    assert (a.data(Payment).amount, a.transition_count) == (0, 0)
    assert (b.data(Payment).amount, b.transition_count) == (1, 1)
    assert [operation.path for operation in root.op_log()] == [(B,), ()]


def test_count_of_a_failed_transition_is_given_back_and_no_two_operations_share_one() -> None:
    root = order_with("a")
    child = root.child([A])

    with pytest.raises(RefusedError):
        root.transition(
            Order,
            failing(
                lambda: child.transition(Payment, amount(1)), lambda: child.transition(Payment, amount(2))
            ),
        )
    child.transition(Payment, amount(3))
    child.transition(Payment, amount(4))

    counts = [op.transition_count for op in root.op_log() if isinstance(op, TransitionOperation)]
    assert counts == [1, 2]
    assert child.transition_count == 2


def test_dirty_is_what_it_was_before_the_failure() -> None:
    root = order_with("a", "b")
    a, b = root.child([A]), root.child([B])
    a.transition(Payment, amount(1))

    with nothing_changes(root, RefusedError):
        root.transition(
            Order,
            failing(
                lambda: a.transition(Payment, amount(2)),
                lambda: b.transition(Payment, amount(2)),
                lambda: root.delete_child(A),
            ),
        )

    assert (root.dirty, a.dirty, b.dirty) == (True, True, False)


def test_dirty_child_that_a_failed_transition_deleted_is_dirty_again() -> None:
    root = order_with("a")
    child = root.child([A])
    below = child.add_child(C, Payment())

    with nothing_changes(root, RefusedError):
        root.transition(Order, failing(lambda: root.delete_child(A)))

    assert (child.dirty, below.dirty) == (True, True)


def test_child_that_was_deleted_before_it_was_ever_looked_at_is_listed_again() -> None:
    root = reloaded(order_with("a", "b"))
    listed: list[list[Key | None]] = []

    with pytest.raises(RefusedError):
        root.transition(
            Order,
            failing(lambda: root.delete_child(A), lambda: listed.append([node.key for node in root.walk()])),
        )

    assert listed == [[None, B]]
    assert [node.key for node in root.walk()] == [None, A, B]


def test_data_that_cannot_be_serialized_undoes_the_transition() -> None:
    root = order_with("a")

    def spoil(payment: Payment) -> None:
        payment.amount = object()  # type: ignore[assignment]

    with nothing_changes(root, SerializationError):
        root.child([A]).transition(Payment, spoil)

    with pytest.raises(SerializationError, match="2:a cannot be serialized"):
        root.child([A]).transition(Payment, spoil)


def test_data_of_a_failed_transition_is_decoded_afresh() -> None:
    root = order_with("a")
    child = root.child([A])
    orphan = child.data(Payment)

    def spoil(payment: Payment) -> None:
        payment.amount = 666
        raise RefusedError

    with pytest.raises(RefusedError):
        child.transition(Payment, spoil)

    assert child.data(Payment) == Payment(amount=0)
    assert child.data(Payment) is not orphan


def test_root_is_readable_after_a_failed_transition() -> None:
    root = new_order()

    with pytest.raises(RefusedError):
        root.transition(Order, failing())
    with pytest.raises(RefusedError):
        root.transition(Order, failing())

    assert root.data(Order) == Order()


def test_failed_transition_that_deleted_and_added_the_same_key_brings_the_old_node_back() -> None:
    root = reloaded(order_with("a"))
    old = root.child([A])

    with nothing_changes(root, RefusedError):
        root.transition(
            Order,
            failing(
                lambda: root.delete_child(A),
                lambda: root.add_child(A, Payment(amount=1)),
                lambda: root.child([A]).apply(settle, Money(2)),
                lambda: root.delete_child(A),
                lambda: root.add_child(A, Payment(amount=3)),
            ),
        )

    assert root.child([A]) is old
    assert old.data(Payment).amount == 0


def test_machine_cannot_delete_itself_in_its_own_transition() -> None:
    root = order_with("a")
    child = root.child([A])

    with nothing_changes(root, StateMachineDeletedError):
        child.transition(Payment, lambda _: root.delete_child(A))

    child.transition(Payment, amount(1))


def test_parent_may_delete_a_child_that_made_a_transition_before() -> None:
    root = order_with("a")

    def settle_and_delete(_: Order) -> TransitionOutput:
        root.child([A]).apply(settle, Money(5))
        root.delete_child(A)
        return TransitionOutput((Charge("refund"),))

    root.transition(Order, settle_and_delete)

    assert [node.key for node in root.walk()] == [None]
    assert len(root.op_log()) == 2


def test_savepoint_without_an_error_keeps_everything() -> None:
    root = order_with("a")

    with root.savepoint():
        root.child([A]).transition(Payment, amount(1))
        root.add_child(B, Payment())

    assert root.child([A]).data(Payment).amount == 1
    assert [node.key for node in root.walk()] == [None, A, B]


@pytest.mark.parametrize("error", [RefusedError, KeyboardInterrupt, asyncio.CancelledError, GeneratorExit])
def test_savepoint_undoes_edits_anywhere_in_the_tree(error: type[BaseException]) -> None:
    root = order_with("a", "b")
    a = root.child([A])
    root.transition(Order, note("before"))

    with nothing_changes(root, error), a.savepoint():
        root.transition(Order, note("lost"))
        a.apply(settle, Money(1))
        a.add_child(C, Payment())
        root.delete_child(B)
        raise error


def test_inner_savepoint_is_undone_alone_and_the_outer_one_with_all_within() -> None:
    root = order_with("a", "b")
    a, b = root.child([A]), root.child([B])

    with nothing_changes(root, RefusedError), root.savepoint():
        a.transition(Payment, amount(1))
        after_one = snapshot(root)
        with given_up(root):
            a.transition(Payment, amount(2))
            b.transition(Payment, amount(2))
        assert snapshot(root) == after_one
        with root.savepoint():
            b.transition(Payment, amount(3))
        assert b.data(Payment).amount == 3
        raise RefusedError


def test_savepoint_inside_a_transition_takes_back_what_was_done_to_others() -> None:
    root = order_with("a")

    def try_and_give_up(order: Order) -> None:
        with given_up(root):
            root.child([A]).transition(Payment, amount(1))
            root.add_child(B, Payment())
        order.notes.append("gave up")

    root.transition(Order, try_and_give_up)

    assert root.data(Order).notes == ["gave up"]
    assert root.child([A]).data(Payment) == Payment(PaymentState.OPEN, 0)
    assert [node.key for node in root.walk()] == [None, A]


def test_failing_bad_edits_leave_nothing_behind() -> None:
    root = order_with("a")

    with nothing_changes(root, StateMachineNotFoundError):
        root.delete_child(B)
    with nothing_changes(root, IncompatibleTypeError):
        root.add_child(parcel_key("x"), Payment())
    with nothing_changes(root, SerializationError):
        root.add_child(parcel_key("x"), Parcel(object()))  # type: ignore[arg-type]


def test_deletion_of_an_opaque_child_is_undone() -> None:
    message = order_with("a").to_proto()
    message.children[UNKNOWN].machines_by_id["x"].data = b"opaque"
    root = Node.from_proto(new_order()._state.registry, 1, message)

    with nothing_changes(root, RefusedError):
        root.transition(Order, failing(lambda: root.delete_child(Key(UNKNOWN, "x"))))

    assert root.to_proto().children[UNKNOWN].machines_by_id["x"].data == b"opaque"
