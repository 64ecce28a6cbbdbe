"""Moves: a configuration prepared for events, each of which then costs the same, however large it is."""

from __future__ import annotations

import attrs

from hsm.fsm.configuration import final_states, source_of
from hsm.fsm.domain import refusal_of
from persistence.proto.statemachine_pb2 import Configuration, Event, Transition

__all__ = ["Moves"]


@attrs.frozen
class Moves:
    """A configuration, with its transitions where they are found at once. Shared, and not to be changed."""

    configuration: Configuration
    _transitions: dict[tuple[str, str], Transition]
    _events: frozenset[str]
    _final: frozenset[str]

    @classmethod
    def of(cls, configuration: Configuration) -> Moves:
        """The moves of a configuration. Of several on one event from one state, the first counts."""
        transitions = {(source_of(each), each.event): each for each in reversed(configuration.transitions)}
        events = frozenset(each.event for each in configuration.transitions)
        return cls(configuration, transitions, events, final_states(configuration))

    def made(self, state: str, event: Event) -> Event:
        """An event as it goes into the history of a machine that it finds in a state: with the move.

        Raises:
            EventNotAllowedError, TransitionNotAllowedError: as `domain.next_transition`.
        """
        name = event.transition.event
        transition = self._transitions.get((state, name))
        if transition is None:
            raise refusal_of(
                self.configuration.name, state, name, known=name in self._events, final=state in self._final
            )
        made = Event()
        made.CopyFrom(event)
        made.transition.CopyFrom(transition)
        return made
