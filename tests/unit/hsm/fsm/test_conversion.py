"""Configurations as transition objects and back, for whatever works on either."""

from __future__ import annotations

import enum

import attrs
import pytest
from hypothesis import given, strategies as st

from hsm import Transition, TransitionOutput, transitions
from hsm.errors import InvalidTransitionError
from hsm.fsm import (
    ConfiguredStateMachine,
    DuplicateTransitionError,
    EventNotAllowedError,
    MissingEventNameError,
    UnexpectedTransitionError,
    UnusedStateError,
    configuration_of,
    new_event,
    new_state_machine,
    new_transition,
    transitions_of,
)
from hsm.goalstate import Planner, UnreachableGoalError
from persistence.proto.statemachine_pb2 import Configuration, FiniteStateMachine
from tests.support.fsm.configurations import configuration, counter, orders


class State(enum.Enum):
    NEW = 1
    PAID = 2
    SHIPPED = 3


@attrs.define
class Order:
    state: State = State.NEW


order = transitions(Order)


@order.move([State.NEW], State.PAID)
def pay(order: Order, event: str) -> TransitionOutput:
    return TransitionOutput()


@order.move([State.PAID, State.NEW], State.SHIPPED)
def ship(order: Order, event: int) -> None: ...


def test_transitions_are_those_of_the_configuration() -> None:
    found = transitions_of(orders())

    assert [(set(each.sources), each.destination, each.name) for each in found[:2]] == [
        ({"start"}, "accepted", "accept"),
        ({"accepted"}, "shipped", "ship"),
    ]
    assert all(each.machine is FiniteStateMachine for each in found)


def test_transition_moves_a_machine_and_writes_its_history() -> None:
    accept = transitions_of(orders())[0]
    event = new_event("accept")
    moved, expected = new_state_machine(orders()), ConfiguredStateMachine(orders())

    accept.apply(moved, event)
    expected.send_event(event)

    assert moved == expected.machine


def test_transition_from_another_state_changes_nothing() -> None:
    machine = new_state_machine(orders())

    with pytest.raises(InvalidTransitionError):
        transitions_of(orders())[1].apply(machine, new_event("ship"))

    assert machine == new_state_machine(orders())


def test_transition_on_another_event_changes_nothing() -> None:
    machine = new_state_machine(orders())

    with pytest.raises(EventNotAllowedError, match="'ship', not 'accept'"):
        transitions_of(orders())[0].apply(machine, new_event("ship"))

    assert machine == new_state_machine(orders())


def test_machine_written_as_a_class_becomes_a_configuration() -> None:
    found = configuration_of([pay, ship], name="orders", start=State.NEW, version="v7")

    assert found == Configuration(
        name="orders",
        version="v7",
        states=["NEW", "PAID", "SHIPPED"],
        starting_state="NEW",
        transitions=[
            new_transition("NEW", "PAID", "pay"),
            new_transition("NEW", "SHIPPED", "ship"),
            new_transition("PAID", "SHIPPED", "ship"),
        ],
    )


def test_states_are_called_as_the_caller_wants() -> None:
    found = configuration_of([pay], name="x", start=State.NEW, state_text=lambda state: f"in {state.value}")

    assert list(found.states) == ["in 1", "in 2"]


@pytest.mark.parametrize("given", [orders(), counter(), configuration([("a", "a", "again")])])
def test_there_and_back_is_the_same(given: Configuration) -> None:
    back = configuration_of(
        transitions_of(given), name=given.name, start=given.starting_state, version=given.version
    )

    assert back.transitions == given.transitions
    assert sorted(back.states) == sorted(given.states)


def test_what_is_no_configuration_is_refused() -> None:
    nameless: Transition[State, Order, None] = Transition([State.NEW], State.PAID, lambda *_: None, name=" ")
    nameless.name = ""
    with pytest.raises(MissingEventNameError):
        configuration_of([nameless], name="x", start=State.NEW)
    with pytest.raises(DuplicateTransitionError):
        configuration_of([pay, pay], name="x", start=State.NEW)
    with pytest.raises(UnusedStateError):
        configuration_of([pay], name="x", start=State.SHIPPED)


def test_planner_finds_a_way_through_a_configuration() -> None:
    planner = Planner(transitions_of(orders()))

    assert [step.name for step in planner.plan("start", "returned")] == ["accept", "ship", "return"]
    with pytest.raises(UnreachableGoalError):
        planner.plan("delivered", "start")


@given(st.lists(st.sampled_from(["next", "stay"]), max_size=20))
def test_transitions_do_what_the_machine_does(names: list[str]) -> None:
    expected = ConfiguredStateMachine(counter())
    machine = new_state_machine(counter())
    moves = transitions_of(counter())
    for name in names:
        event = new_event(name)
        expected.send_event(event)
        (move,) = [each for each in moves if each.name == name and each.possible(machine)]
        move.apply(machine, event)

    assert machine == expected.machine
    with pytest.raises(UnexpectedTransitionError):
        expected.send_event(new_event("unknown"))
