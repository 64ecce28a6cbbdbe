"""What events do to machines of a configuration."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

import pytest
from google.protobuf import json_format
from hypothesis import given, strategies as st

from hsm.errors import InvalidTransitionError
from hsm.fsm import (
    ConfiguredStateMachine,
    EventNotAllowedError,
    MalformedConfigurationError,
    MalformedMachineError,
    MismatchStartingStateError,
    MissingConfigurationNameError,
    MissingDestinationError,
    MissingEventNameError,
    TransitionNotAllowedError,
    check_request,
    new_event,
    new_state_machine,
    source_of,
    update_event,
)
from persistence.proto.statemachine_pb2 import (
    Configuration,
    Event,
    EventRequest,
    FiniteStateMachine,
    Transition,
)
from tests.support.fsm.configurations import configuration, counter, orders

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


def test_new_machine_is_at_the_start_without_history() -> None:
    assert new_state_machine(orders("v2")) == FiniteStateMachine(config_id="orders:v2", state="start")


@pytest.mark.parametrize("missing", [Configuration(version="v1"), Configuration(name="orders")])
def test_machine_needs_a_configuration_with_an_identity(missing: Configuration) -> None:
    with pytest.raises(MalformedConfigurationError, match="cannot be parsed"):
        new_state_machine(missing)


def test_configuration_from_json_makes_machines() -> None:
    text = """{"name": "compiler", "version": "v1", "states": ["src", "built"], "startingState": "src",
               "transitions": [{"from": "src", "to": "built", "event": "build"}]}"""

    machine = new_state_machine(json_format.Parse(text, Configuration()))

    assert machine.config_id == "compiler:v1"
    assert machine.state == "src"


def test_events_walk_the_machine_and_make_its_history() -> None:
    space = configuration([("earth", "orbit", "launch"), ("orbit", "mars", "land")])
    machine = ConfiguredStateMachine(space)

    machine.send_event(new_event("launch"))
    machine.send_event(new_event("land", details="softly"))

    assert machine.state == "mars"
    assert machine.is_final
    assert [source_of(event.transition) for event in machine.machine.history] == ["earth", "orbit"]
    assert [event.transition.to for event in machine.machine.history] == ["orbit", "mars"]
    assert machine.machine.history[1].details == "softly"


def test_what_was_sent_as_from_and_to_does_not_count() -> None:
    event = Event(event_id="1", transition=Transition(**{"from": "shipped"}, to="returned", event="accept"))
    before = Event.FromString(event.SerializeToString())
    machine = ConfiguredStateMachine(orders())

    made = machine.send_event(event)

    assert event == before
    assert (source_of(made.transition), made.transition.to) == ("start", "accepted")


@pytest.mark.parametrize(
    ("state", "event", "error", "message"),
    [
        ("start", "explode", EventNotAllowedError, "'orders' knows no event 'explode'"),
        ("start", "ship", TransitionNotAllowedError, "leaves the state 'start' on 'ship'"),
        ("delivered", "ship", TransitionNotAllowedError, "leaves the final state 'delivered' on 'ship'"),
        ("start", "Accept", EventNotAllowedError, "'Accept'"),
        ("start", "", MissingEventNameError, "no event name"),
    ],
)
def test_refused_event_leaves_the_machine_as_it_was(
    state: str, event: str, error: type[Exception], message: str
) -> None:
    machine = ConfiguredStateMachine(orders(), FiniteStateMachine(config_id="orders:v1", state=state))

    with pytest.raises(error, match=message):
        machine.send_event(new_event(event))

    assert machine.machine == FiniteStateMachine(config_id="orders:v1", state=state)


def test_event_without_a_transition_is_refused_like_one_without_a_name() -> None:
    with pytest.raises(MissingEventNameError):
        ConfiguredStateMachine(orders()).send_event(Event())


def test_refusal_is_an_invalid_transition() -> None:
    with pytest.raises(InvalidTransitionError, match="unexpected event transition"):
        ConfiguredStateMachine(orders()).send_event(new_event("ship"))


def test_first_of_several_transitions_wins() -> None:
    ambiguous = configuration([("a", "b", "go"), ("a", "c", "go")])
    machine = ConfiguredStateMachine(ambiguous)

    machine.send_event(new_event("go"))

    assert machine.state == "b"


def test_reset_goes_back_to_the_start_and_forgets() -> None:
    machine = ConfiguredStateMachine(orders())
    machine.send_event(new_event("accept"))

    machine.reset()

    assert machine.machine == new_state_machine(orders())


@pytest.mark.parametrize(
    ("configured", "machine", "error"),
    [
        (orders(), FiniteStateMachine(config_id="orders:v1", state="lost"), MalformedMachineError),
        (orders(), FiniteStateMachine(config_id="orders:v2", state="start"), MalformedMachineError),
        (
            configuration([("a", "b", "go")], start="c"),
            FiniteStateMachine(config_id="test:v1", state="c"),
            MismatchStartingStateError,
        ),
    ],
)
def test_machine_must_belong_to_its_configuration(
    configured: Configuration, machine: FiniteStateMachine, error: type[Exception]
) -> None:
    with pytest.raises(error):
        ConfiguredStateMachine(configured, machine).check_valid()


def test_machine_of_its_configuration_is_valid() -> None:
    ConfiguredStateMachine(orders()).check_valid()


def test_new_event_has_an_id_and_a_time() -> None:
    event = new_event("ship", now=NOON)

    assert uuid.UUID(event.event_id).version == 4
    assert event.timestamp.ToDatetime(UTC) == NOON
    assert event.transition == Transition(event="ship")


def test_update_fills_in_what_is_missing_only() -> None:
    event = Event(event_id="mine")
    event.timestamp.FromDatetime(NOON)

    update_event(event, now=datetime(2040, 1, 1, tzinfo=UTC))

    assert event.event_id == "mine"
    assert event.timestamp.ToDatetime(UTC) == NOON


@pytest.mark.parametrize(
    ("missing", "error"),
    [
        ("id", MissingDestinationError),
        ("config", MissingConfigurationNameError),
        ("event", MissingEventNameError),
    ],
)
def test_request_names_machine_configuration_and_event(missing: str, error: type[Exception]) -> None:
    request = EventRequest(id="1", config="orders", event=new_event("ship"))
    check_request(request)
    request.ClearField(missing)  # type: ignore[arg-type]  # one of the names above

    with pytest.raises(error):
        check_request(request)


@given(st.lists(st.sampled_from(["next", "stay", "unknown"]), max_size=30))
def test_history_is_a_path_from_the_start_to_the_state(events: list[str]) -> None:
    machine = ConfiguredStateMachine(counter())
    accepted = 0
    for event in events:
        try:
            machine.send_event(new_event(event))
        except EventNotAllowedError:
            continue
        accepted += 1

    state = "s0"
    for made in machine.machine.history:
        assert source_of(made.transition) == state
        state = made.transition.to
    assert state == machine.state
    assert len(machine.machine.history) == accepted
