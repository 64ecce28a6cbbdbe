"""Machines of a configuration: new ones, what an event does to them, and back to the start. No storage."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime

from hsm.fsm.configuration import check_id, check_valid, final_states, identity_of, source_of
from hsm.fsm.errors import (
    EventNotAllowedError,
    MalformedMachineError,
    MissingConfigurationNameError,
    MissingDestinationError,
    MissingEventNameError,
    TransitionNotAllowedError,
    UnexpectedTransitionError,
)
from hsm.fsm.keys import (
    MISSING_CONFIG_MESSAGE,
    MISSING_DESTINATION_MESSAGE,
    MISSING_EVENT_NAME_MESSAGE,
    UNEXPECTED_TRANSITION_MESSAGE,
)
from persistence.proto.statemachine_pb2 import (
    Configuration,
    Event,
    EventRequest,
    FiniteStateMachine,
    Transition,
)

__all__ = [
    "ConfiguredStateMachine",
    "check_names",
    "check_request",
    "new_event",
    "new_state_machine",
    "next_transition",
    "refusal_of",
    "update_event",
]


def new_state_machine(configuration: Configuration) -> FiniteStateMachine:
    """A machine in the starting state, with no history.

    Raises:
        MissingNameError, MissingVersionError: the configuration has no identity.
    """
    return FiniteStateMachine(config_id=identity_of(configuration), state=configuration.starting_state)


def next_transition(configuration: Configuration, state: str, event: str) -> Transition:
    """The transition that an event makes in a state: the first in the order of the configuration.

    Raises:
        EventNotAllowedError: no transition of the configuration is on this event.
        TransitionNotAllowedError: there is one, but none from this state.
    """
    known = False
    for transition in configuration.transitions:
        if transition.event == event:
            if source_of(transition) == state:
                return transition
            known = True
    final = state in final_states(configuration)
    raise refusal_of(configuration.name, state, event, known=known, final=final)


def refusal_of(name: str, state: str, event: str, *, known: bool, final: bool) -> UnexpectedTransitionError:
    """The error of an event that makes no transition in a state of configuration `name`.

    Args:
        name: of the configuration.
        state: in which the machine is.
        event: name of the event.
        known: whether there is a transition on the event at all.
        final: whether no transition leaves the state.
    """
    if not known:
        return EventNotAllowedError(f"{UNEXPECTED_TRANSITION_MESSAGE}: {name!r} knows no event {event!r}")
    what = "final state" if final else "state"
    return TransitionNotAllowedError(
        f"{UNEXPECTED_TRANSITION_MESSAGE}: no transition leaves the {what} {state!r} on {event!r}"
    )


def new_event(name: str, *, now: datetime | None = None, originator: str = "", details: str = "") -> Event:
    """An event of a name, with an id of its own, at this time."""
    event = Event(transition=Transition(event=name), originator=originator, details=details)
    update_event(event, now=now)
    return event


def update_event(
    event: Event, *, now: datetime | None = None, new_id: Callable[[], str] = lambda: str(uuid.uuid4())
) -> None:
    """Give an event an id (a random UUID) and a time (`now`, UTC) where it has none."""
    if not event.event_id:
        event.event_id = new_id()
    if not event.HasField("timestamp"):
        event.timestamp.FromDatetime((now or datetime.now(UTC)).astimezone(UTC))


def check_request(request: EventRequest) -> None:
    """Refuse a request that does not name a machine, a configuration and an event.

    Raises:
        EventError: a subclass for each of them.
    """
    if not request.id:
        raise MissingDestinationError(MISSING_DESTINATION_MESSAGE)
    if not request.config:
        raise MissingConfigurationNameError(MISSING_CONFIG_MESSAGE)
    if not request.event.transition.event:
        raise MissingEventNameError(MISSING_EVENT_NAME_MESSAGE)


def check_names(request: EventRequest) -> None:
    """Refuse names and ids that no store, key or address can carry; what is missing is `check_request`'s.

    Raises:
        InvalidIdentifierError: as `configuration.check_id`.
    """
    for text, what in (
        (request.id, "id of the machine"),
        (request.config, "name of the configuration"),
        (request.event.event_id, "id of the event"),
        (request.event.transition.event, "name of the event"),
    ):
        if text:
            check_id(text, what)


class ConfiguredStateMachine:
    """A machine together with the configuration that it follows.

    Changes go to `machine`, the message that was given. A refused event leaves it as it was.

    Semantics: go-statemachine (v0.14.0) `ConfiguredStateMachine`.
    """

    __slots__ = ("configuration", "machine")

    def __init__(self, configuration: Configuration, machine: FiniteStateMachine | None = None) -> None:
        """Take a machine, or make a new one.

        Raises:
            MalformedConfigurationError: there is no machine, and the configuration has no identity.
        """
        self.configuration: Configuration = configuration
        self.machine: FiniteStateMachine = new_state_machine(configuration) if machine is None else machine

    def __repr__(self) -> str:
        return f"<ConfiguredStateMachine {self.machine.config_id} in {self.machine.state!r}>"

    @property
    def state(self) -> str:
        """The state that the machine is in."""
        return self.machine.state

    @property
    def is_final(self) -> bool:
        """Whether no event can move the machine any more."""
        return self.machine.state in final_states(self.configuration)

    def check_valid(self) -> None:
        """Refuse a machine that does not belong to its configuration.

        Raises:
            MalformedConfigurationError: as `configuration.check_valid`.
            MalformedMachineError: it names another configuration, or is in none of its states.
        """
        check_valid(self.configuration)
        self.check_machine()

    def check_machine(self) -> None:
        """As `check_valid`, of a configuration that is known to be valid.

        Raises:
            MalformedMachineError: the machine names another configuration, or is in none of its states.
        """
        identity = identity_of(self.configuration)
        if self.machine.config_id != identity:
            raise MalformedMachineError(f"machine of {self.machine.config_id!r} is used with {identity!r}")
        if self.machine.state not in self.configuration.states:
            raise MalformedMachineError(f"state {self.machine.state!r} is not one of {identity!r}")

    def send_event(self, event: Event) -> Event:
        """Move the machine; the event as it goes into the history: with the move that was made.

        `from` and `to` of the event that is given do not count. It is not changed.

        Raises:
            MissingEventNameError: the event has no transition, or one without a name.
            EventNotAllowedError, TransitionNotAllowedError: as `next_transition`; nothing was changed.
        """
        if not event.transition.event:
            raise MissingEventNameError(MISSING_EVENT_NAME_MESSAGE)
        transition = next_transition(self.configuration, self.machine.state, event.transition.event)
        made = self.machine.history.add()
        made.CopyFrom(event)
        made.transition.CopyFrom(transition)
        self.machine.state = transition.to
        return made

    def reset(self) -> None:
        """Put the machine back into the starting state, and forget its history."""
        self.machine.state = self.configuration.starting_state
        self.machine.ClearField("history")
        self.machine.ClearField("history_dropped")
