"""The same machine in two trees: sync, comparison and the tasks that follow from data."""

from __future__ import annotations

from collections.abc import Iterable

import attrs
import pytest

from hsm import (
    IncompatibleTypeError,
    InitialVersionMismatchError,
    Node,
    PathAndOutputs,
    ReentrantTransitionError,
    SerializationError,
    Task,
    TransitionOutput,
    VersionedTransition,
    attrs_definition,
)
from tests.support.machines import (
    ORDER_TYPE,
    Charge,
    Money,
    Order,
    OrderState,
    Payment,
    Ranked,
    new_order,
    note,
    nothing_changes,
    order_with,
    pay,
    payment_key,
    reloaded,
    ship,
    shop_registry,
)

A = payment_key("a")


def two_orders() -> tuple[Node, Node]:
    """The same order in two trees."""
    mine = new_order()
    return mine, reloaded(mine)


def test_sync_takes_over_the_data_and_asks_for_its_tasks() -> None:
    mine, other = two_orders()
    other.begin(VersionedTransition(1, 9))
    other.apply(pay, Money(3))

    mine.sync(other)

    assert mine.data(Order) == Order(OrderState.PAID, ["paid 3"])
    assert mine.outputs() == [PathAndOutputs((), (TransitionOutput((Charge("paid 3"),)),))]
    assert mine.last_update_version == VersionedTransition(1, 9)
    assert (mine.transition_count, mine.dirty) == (1, True)


def test_sync_does_not_touch_the_incoming_tree() -> None:
    mine, other = two_orders()
    other.transition(Order, note("x"))
    other.clear_transaction_state()

    mine.sync(other)
    mine.transition(Order, note("mine"))

    assert other.data(Order).notes == ["x"]
    assert not other.dirty


def test_sync_takes_over_an_older_state_too() -> None:
    mine, other = two_orders()
    mine.begin(VersionedTransition(1, 5))
    mine.transition(Order, note("newer"))

    mine.sync(other)

    assert mine.data(Order).notes == []
    assert mine.last_update_version == VersionedTransition(1, 1)
    assert mine.transition_count == 2


def test_sync_takes_over_neither_children_nor_count() -> None:
    mine, other = order_with("a"), new_order()
    for _ in range(5):
        other.transition(Order, note("x"))
    other.add_child(payment_key("b"), Payment())

    mine.sync(other)

    assert [node.key for node in mine.walk()] == [None, A]
    assert mine.transition_count == 1


@pytest.mark.parametrize(
    ("mine", "other", "same"),
    [
        ((1, 1), (1, 1), True),
        ((1, 1), (2, 1), False),
        ((1, 1), (1, 2), False),
        ((1, 0), (1, 2), True),
        ((1, 2), (1, 0), True),
        ((1, 0), (2, 0), False),
    ],
)
def test_only_machines_of_one_creation_are_synced(
    mine: tuple[int, int], other: tuple[int, int], *, same: bool
) -> None:
    node = new_order(version=VersionedTransition(*mine))
    incoming = new_order(version=VersionedTransition(*other))
    incoming.transition(Order, note("x"))

    if same:
        node.sync(incoming)
        assert node.data(Order).notes == ["x"]
    else:
        with nothing_changes(node, InitialVersionMismatchError):
            node.sync(incoming)


def test_sync_of_another_type_is_refused() -> None:
    root = order_with("a")

    with nothing_changes(root, IncompatibleTypeError):
        root.sync(root.child([A]))


def test_sync_of_data_that_names_no_tasks_is_refused_and_changes_nothing() -> None:
    mine, other = order_with("a"), order_with("a")
    other.child([A]).transition(Payment, lambda payment: setattr(payment, "amount", 5))

    with nothing_changes(mine, IncompatibleTypeError):
        mine.child([A]).sync(other.child([A]))


def test_sync_whose_tasks_cannot_be_named_changes_nothing() -> None:
    registry = shop_registry(attrs_definition(ORDER_TYPE, Moody))
    mine = Node.new_root(registry, 1, Moody())
    other = Node.new_root(registry, 1, Moody(angry=True))

    with nothing_changes(mine, RuntimeError):
        mine.sync(other)

    assert not mine.dirty


def test_sync_of_undecodable_data_changes_nothing() -> None:
    mine, other = two_orders()
    message = other.to_proto()
    message.data = b"garbage"

    with nothing_changes(mine, SerializationError):
        mine.sync(Node.from_proto(shop_registry(), 1, message))


def test_sync_is_undone_by_a_savepoint_around_it() -> None:
    mine, other = two_orders()
    other.transition(Order, note("x"))

    with nothing_changes(mine, KeyError), mine.savepoint():
        mine.sync(other)
        raise KeyError


def test_sync_inside_a_transition_of_the_same_machine_is_refused() -> None:
    mine, other = two_orders()

    with nothing_changes(mine, ReentrantTransitionError):
        mine.transition(Order, lambda _: mine.sync(other))


def test_tasks_are_told_from_the_data() -> None:
    root = new_order()
    root.transition(Order, note("acme"))
    root.clear_transaction_state()

    assert root.regenerate_tasks() == TransitionOutput((Charge("acme"),))
    assert not root.dirty


def test_data_that_names_no_tasks_cannot_be_refreshed() -> None:
    with pytest.raises(IncompatibleTypeError, match="2:a holds a Payment, not a TaskRegenerator"):
        order_with("a").child([A]).regenerate_tasks()


def test_compare_tells_which_state_is_newer() -> None:
    registry = shop_registry(Ranked(attrs_definition(ORDER_TYPE, Order)))
    new, paid, shipped = (new_order(registry) for _ in range(3))
    for node in (paid, shipped):
        node.apply(pay, Money(1))
    shipped.apply(ship, "mail")

    assert new.compare(paid) < 0
    assert shipped.compare(paid) > 0
    assert paid.compare(paid) == 0


def test_definition_without_an_order_cannot_compare() -> None:
    with pytest.raises(IncompatibleTypeError, match="'order' does not define `compare`"):
        new_order().compare(new_order())


def test_machines_of_two_types_are_not_compared() -> None:
    root = order_with("a", registry=shop_registry(Ranked(attrs_definition(ORDER_TYPE, Order))))

    with pytest.raises(IncompatibleTypeError):
        root.compare(root.child([A]))


@attrs.define
class Moody(Order):
    """Cannot say what it waits for when it is angry."""

    angry: bool = False

    def regenerate_tasks(self, node: Node) -> Iterable[Task]:
        if self.angry:
            raise RuntimeError(f"{node} does not want to say")
        return []
