"""What a configuration may say, and what is told about one that may not."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from hsm.fsm import (
    ConfigurationWarning,
    DuplicateStateError,
    DuplicateTransitionError,
    EmptyStartingStateError,
    InvalidIdentifierError,
    MalformedConfigurationError,
    MismatchStartingStateError,
    MissingEventNameError,
    MissingNameError,
    MissingStatesError,
    MissingVersionError,
    UndeclaredStateError,
    UnusedStateError,
    WarningKind,
    check_id,
    check_valid,
    final_states,
    identity_of,
    new_transition,
    reachable_states,
    with_defaults,
)
from persistence.proto.statemachine_pb2 import Configuration
from tests.support.fsm.configurations import configuration, orders


def test_valid_configuration_has_nothing_to_tell() -> None:
    assert check_valid(orders()) == ()


def test_single_state_needs_a_transition_to_itself() -> None:
    alone = Configuration(name="alone", version="v1", states=["only"], starting_state="only")

    with pytest.raises(UnusedStateError, match="state only is not used in any of the transitions"):
        check_valid(alone)
    alone.transitions.append(new_transition("only", "only", "again"))

    assert check_valid(alone) == ()


def with_change(**changes: object) -> Configuration:
    changed = orders()
    for field, value in changes.items():
        changed.ClearField(field)  # type: ignore[arg-type]  # the names are checked when they are set
        if isinstance(value, list):
            getattr(changed, field).extend(value)
        else:
            setattr(changed, field, value)
    return changed


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        (with_change(name=""), MissingNameError, "has no name"),
        (with_change(states=[]), MissingStatesError, "'orders' declares no state"),
        (with_change(starting_state=""), EmptyStartingStateError, "no starting state"),
        (with_change(starting_state="begin"), MismatchStartingStateError, "'begin'.*is not one of"),
        (with_change(version=""), MissingVersionError, "'orders' has no version"),
        (with_change(states=[*orders().states, "lost"]), UnusedStateError, "state lost is not used"),
        (with_change(states=[*orders().states, "start"]), DuplicateStateError, "'start' is declared twice"),
        (
            with_change(transitions=[*orders().transitions, new_transition("start", "gone", "go")]),
            UndeclaredStateError,
            "names state 'gone', which is not declared",
        ),
        (
            with_change(transitions=[*orders().transitions, new_transition("gone", "start", "come")]),
            UndeclaredStateError,
            "names state 'gone', which is not declared",
        ),
        (
            with_change(transitions=[*orders().transitions, new_transition("start", "shipped", "accept")]),
            DuplicateTransitionError,
            "leave 'start' on 'accept': to 'accepted' and to 'shipped'",
        ),
        (
            with_change(transitions=[*orders().transitions, new_transition("start", "start", "")]),
            MissingEventNameError,
            "from 'start' to 'start' of 'orders' names no event",
        ),
    ],
)
def test_malformed_configuration_is_refused(
    changed: Configuration, error: type[MalformedConfigurationError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        check_valid(changed)
    assert isinstance(caught.value, MalformedConfigurationError)


@pytest.mark.parametrize("field", ["name", "version"])
@pytest.mark.parametrize("text", ["a:b", "a#b", "a/b", "a b", "é", "a\n", "x" * 256, "a%3A"])
def test_name_and_version_hold_no_separator(field: str, text: str) -> None:
    with pytest.raises(InvalidIdentifierError, match=f"{field} .*letters, digits"):
        check_valid(with_change(**{field: text}))


@pytest.mark.parametrize("name", ["test.orders", "a-b_c~d", "7", "x" * 255])
def test_name_fit_for_an_address_is_accepted(name: str) -> None:
    assert check_valid(with_change(name=name, version=name)) == ()


@pytest.mark.parametrize("text", ["", "a\0b", "a\nb", "\x85", "\ud800", "x" * 513])
def test_id_that_cannot_be_stored_is_refused(text: str) -> None:
    with pytest.raises(InvalidIdentifierError, match="machine id"):
        check_id(text, "machine id")


@pytest.mark.parametrize("text", ["In transit", "a:b#c/d", "Zürich", "x" * 512])
def test_id_may_hold_what_people_write(text: str) -> None:
    check_id(text, "state")


def test_state_and_event_names_are_checked_like_ids() -> None:
    with pytest.raises(InvalidIdentifierError, match="state of configuration 'test'"):
        check_valid(configuration([("a\n", "b", "go")]))
    with pytest.raises(InvalidIdentifierError, match="event of configuration 'test'"):
        check_valid(configuration([("a", "b", "go\n")]))


def test_unreachable_state_is_a_warning() -> None:
    odd = configuration([("a", "b", "go"), ("island", "b", "swim")])

    assert check_valid(odd) == (
        ConfigurationWarning(
            WarningKind.UNREACHABLE_STATE, "state 'island' cannot be reached from 'a'", "island"
        ),
    )


def test_identity_joins_name_and_version() -> None:
    assert identity_of(orders("v2")) == "orders:v2"


@pytest.mark.parametrize(
    ("changes", "error"), [({"name": ""}, MissingNameError), ({"version": ""}, MissingVersionError)]
)
def test_identity_needs_both(changes: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error, match="this configuration cannot be parsed"):
        identity_of(with_change(**changes))


def test_missing_version_becomes_v1_in_a_copy() -> None:
    bare = orders(version="")

    assert with_defaults(bare).version == "v1"
    assert bare.version == ""
    assert with_defaults(orders("v7")) == orders("v7")


def test_states_that_nothing_leaves_are_final() -> None:
    assert final_states(orders()) == {"delivered", "returned"}


names = st.sampled_from("abcdef")
edges = st.lists(st.tuples(names, names, st.sampled_from("xyz")), min_size=1, max_size=15)


@given(edges)
def test_what_can_be_reached_is_closed_under_transitions(transitions: list[tuple[str, str, str]]) -> None:
    reached = reachable_states(configuration(transitions))

    assert transitions[0][0] in reached
    assert all(target in reached for source, target, _ in transitions if source in reached)


@given(edges)
def test_accepted_configurations_leave_no_choice(transitions: list[tuple[str, str, str]]) -> None:
    choices = [(source, event) for source, _, event in transitions]
    try:
        check_valid(configuration(transitions))
    except DuplicateTransitionError:
        assert len(choices) != len(set(choices))
    else:
        assert len(choices) == len(set(choices))
