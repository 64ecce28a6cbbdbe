"""Transition objects, on their own."""

from __future__ import annotations

import pytest

from hsm import InvalidTransitionError, Transition, TransitionOutput
from tests.support.machines import Charge, Money, Order, OrderState, order, pay, ship


def test_transition_sets_the_state_and_returns_the_tasks() -> None:
    machine = Order()

    output = pay.apply(machine, Money(3))

    assert machine == Order(OrderState.PAID, ["paid 3"])
    assert output == TransitionOutput((Charge(),))


def test_function_sees_the_machine_where_it_is_going() -> None:
    seen: list[OrderState] = []

    @order.move([OrderState.NEW], OrderState.PAID)
    def look(order: Order, _: None) -> None:
        seen.append(order.state)

    look.apply(Order(), None)

    assert seen == [OrderState.PAID]


def test_function_that_returns_nothing_asks_for_nothing() -> None:
    assert ship.apply(Order(OrderState.PAID), "mail") == TransitionOutput()


def test_change_changes_the_state_and_asks_for_nothing() -> None:
    back = order.change([OrderState.PAID], OrderState.NEW)
    machine = Order(OrderState.PAID)

    assert back.apply(machine, None) == TransitionOutput()
    assert machine == Order(OrderState.NEW)
    assert (back.machine, back.name) == (Order, "change")
    with pytest.raises(InvalidTransitionError, match=r"change to OrderState.NEW .* from OrderState.NEW"):
        back.apply(machine, None)


def test_impossible_transition_changes_nothing_and_says_from_where_to_where() -> None:
    machine = Order()

    with pytest.raises(
        InvalidTransitionError, match=r"ship to OrderState.SHIPPED .* from OrderState.NEW .*str"
    ):
        ship.apply(machine, "a secret")

    assert machine == Order()


def test_error_does_not_print_the_event() -> None:
    with pytest.raises(InvalidTransitionError) as caught:
        ship.apply(Order(), "a secret")

    assert "a secret" not in str(caught.value)


def test_possible_is_told_by_the_state() -> None:
    assert pay.possible(Order())
    assert not pay.possible(Order(OrderState.PAID))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_state_is_put_back_if_the_function_raises(error: type[BaseException]) -> None:
    @order.move([OrderState.NEW], OrderState.PAID)
    def fail(_order: Order, _event: None) -> None:
        raise error

    machine = Order()
    with pytest.raises(error):
        fail.apply(machine, None)

    assert machine.state is OrderState.NEW


def test_many_sources_and_the_same_state_are_allowed() -> None:
    @order.move(OrderState, OrderState.PAID)
    def repeat(order: Order, event: str) -> None:
        order.notes.append(event)

    machine = Order(OrderState.PAID)
    repeat.apply(machine, "once")
    repeat.apply(machine, "twice")

    assert machine == Order(OrderState.PAID, ["once", "twice"])


def test_sources_are_taken_at_once() -> None:
    @order.move(iter([OrderState.NEW]), OrderState.PAID)
    def once(_order: Order, _event: None) -> None: ...

    assert once.sources == {OrderState.NEW}
    assert once.possible(Order())
    assert once.possible(Order())


def test_text_is_no_collection_of_sources() -> None:
    with pytest.raises(TypeError, match=r"a list of states: \['new'\]"):
        Transition("new", "paid", lambda _machine, _event: None)


def test_transition_knows_its_name_and_machine() -> None:
    assert (pay.name, pay.machine, pay.destination) == ("pay", Order, OrderState.PAID)
    assert repr(pay) == "<Transition 'pay' from {OrderState.NEW} to OrderState.PAID>"


def test_transition_is_written_without_a_decorator_too() -> None:
    def relabel(machine: Numbered, event: str) -> None:
        machine.label = event

    bump: Transition[int, Numbered, str] = Transition([0], 1, relabel, name="bump")
    machine = Numbered()

    bump.apply(machine, "new")

    assert (machine.state, machine.label, bump.name, bump.machine) == (1, "new", "bump", None)


class Numbered:
    """Data whose states are numbers, as those of a protobuf enum are."""

    def __init__(self) -> None:
        self.state = 0
        self.label = ""
