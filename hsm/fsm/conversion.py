"""Conversion: configurations as transition objects, and transition objects as configurations.

So a planner, or whatever else works on transitions, works on configurations; and machines written as classes
can be drawn, or handed to other programs, as data.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeAlias, TypeVar

from hsm.fsm.configuration import check_valid, new_transition, source_of
from hsm.fsm.errors import EventNotAllowedError
from hsm.fsm.keys import DEFAULT_VERSION, UNEXPECTED_TRANSITION_MESSAGE
from hsm.transition import Transition
from persistence.proto.statemachine_pb2 import (
    Configuration,
    Event,
    FiniteStateMachine,
    Transition as ConfiguredTransition,
)

__all__ = ["MachineTransition", "configuration_of", "text_of", "transitions_of"]

StateT = TypeVar("StateT", bound=Hashable)

MachineTransition: TypeAlias = Transition[str, FiniteStateMachine, Event]
"""A transition of machines that come from configuration."""


def transitions_of(configuration: Configuration) -> tuple[MachineTransition, ...]:
    """The transitions of a configuration, in its order, each named after its event.

    Applied to a machine with an event, one does what `ConfiguredStateMachine.send_event` does: it moves the
    machine, and puts the event into the history. It raises `InvalidTransitionError` if the machine is in
    another state, and `EventNotAllowedError` if the event has another name; then nothing is changed.
    """
    return tuple(map(_transition_of, configuration.transitions))


def _transition_of(configured: ConfiguredTransition) -> MachineTransition:
    def apply(machine: FiniteStateMachine, event: Event) -> None:
        if event.transition.event != configured.event:
            raise EventNotAllowedError(
                f"{UNEXPECTED_TRANSITION_MESSAGE}: {event.transition.event!r}, not {configured.event!r}"
            )
        made = machine.history.add()
        made.CopyFrom(event)
        made.transition.CopyFrom(configured)

    return Transition(
        [source_of(configured)], configured.to, apply, machine=FiniteStateMachine, name=configured.event
    )


def configuration_of(
    transitions: Iterable[Transition[StateT, Any, Any]],
    *,
    name: str,
    start: StateT,
    version: str = DEFAULT_VERSION,
    state_text: Callable[[StateT], str] | None = None,
) -> Configuration:
    """A configuration with the states and moves of transition objects, without the functions that they run.

    A transition from several states becomes one for each, in the order of their texts. Its name is the event.

    Args:
        transitions: of one type of machine.
        name: of the configuration.
        start: the state in which its machines begin.
        version: of the configuration.
        state_text: what a state is called; without it `text_of`.

    Raises:
        MalformedConfigurationError: as `check_valid`: a transition has no name, two of one name leave one
            state, or no transition leads from or to `start`.
    """
    called: Callable[[StateT], str] = state_text or text_of
    moves = [
        new_transition(source, called(each.destination), each.name)
        for each in transitions
        for source in sorted(map(called, each.sources))
    ]
    states = dict.fromkeys([called(start)])
    for move in moves:
        states |= dict.fromkeys([source_of(move), move.to])
    configuration = Configuration(
        name=name, version=version, starting_state=called(start), states=states, transitions=moves
    )
    check_valid(configuration)
    return configuration


def text_of(state: object) -> str:
    """What a state is called: the name of an enum member, else its text."""
    return state.name if isinstance(state, enum.Enum) else str(state)
