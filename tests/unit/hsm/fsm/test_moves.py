"""Moves: what a configuration says, found at once."""

from __future__ import annotations

from hypothesis import given, strategies as st

from hsm.fsm import ConfiguredStateMachine, UnexpectedTransitionError, new_state_machine, new_transition
from hsm.fsm._moves import Moves
from persistence.proto.statemachine_pb2 import Configuration
from tests.support.fsm.asking import event

NAMES = st.sampled_from(["a", "b", "c", "d"])


@given(st.lists(st.tuples(NAMES, NAMES, NAMES), max_size=12), NAMES, NAMES)
def test_moves_do_what_the_machine_does(moves: list[tuple[str, str, str]], state: str, name: str) -> None:
    """Also where a configuration was never checked, and offers a choice."""
    configuration = Configuration(
        name="any", version="v1", states=list("abcd"), transitions=[new_transition(*each) for each in moves]
    )
    machine = new_state_machine(configuration)
    machine.state = state
    expected: object
    try:
        expected = ConfiguredStateMachine(configuration, machine).send_event(event(name, "e1"))
    except UnexpectedTransitionError as error:
        expected = (type(error), str(error))

    found: object
    try:
        found = Moves.of(configuration).made(state, event(name, "e1"))
    except UnexpectedTransitionError as error:
        found = (type(error), str(error))

    assert found == expected
