"""Configurations: machines described by data, and everything that can be wrong with such a description."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import attrs

from hsm.fsm.errors import (
    DuplicateStateError,
    DuplicateTransitionError,
    EmptyStartingStateError,
    InvalidIdentifierError,
    MismatchStartingStateError,
    MissingEventNameError,
    MissingNameError,
    MissingStatesError,
    MissingVersionError,
    UndeclaredStateError,
    UnusedStateError,
)
from hsm.fsm.keys import DEFAULT_VERSION, MALFORMED_MESSAGE, config_id_of
from persistence.proto.statemachine_pb2 import Configuration, Transition

__all__ = [
    "ConfigurationWarning",
    "WarningKind",
    "check_id",
    "check_name",
    "check_valid",
    "final_states",
    "identity_of",
    "new_transition",
    "reachable_states",
    "source_of",
    "with_defaults",
]

_LONGEST_NAME: Final = 255
_LONGEST_ID: Final = 512
# Unreserved characters of RFC 3986: a name and a version are safe in a URL, and hold no separator of a key.
_NAME: Final = re.compile(r"[A-Za-z0-9._~-]+").fullmatch
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]").search
_MOST_LISTED: Final = 20


class WarningKind(enum.Enum):
    """What can be odd about a configuration that is valid."""

    UNREACHABLE_STATE = "unreachable-state"


@attrs.frozen
class ConfigurationWarning:
    """Something odd about a valid configuration.

    Attributes:
        kind: what is odd.
        message: the same for people.
        state: the state that it is about; "" if it is about the whole.
    """

    kind: WarningKind
    message: str
    state: str = ""


def identity_of(configuration: Configuration) -> str:
    """The `name:version` of a configuration.

    Raises:
        MalformedConfigurationError: the name or the version is missing.
    """
    if not configuration.name:
        raise MissingNameError(f"{MALFORMED_MESSAGE}: it has no name")
    if not configuration.version:
        raise MissingVersionError(f"{MALFORMED_MESSAGE}: {configuration.name!r} has no version")
    return config_id_of(configuration.name, configuration.version)


def with_defaults(configuration: Configuration) -> Configuration:
    """A copy whose version is `v1` if none is given."""
    copy = Configuration()
    copy.CopyFrom(configuration)
    copy.version = copy.version or DEFAULT_VERSION
    return copy


def check_valid(configuration: Configuration) -> tuple[ConfigurationWarning, ...]:
    """Refuse a configuration that describes no machines; what is merely odd about it is returned.

    Checks, the first that fails decides: name; one state at least; starting state given; starting state
    declared; version; names, versions, states and events fit to be identifiers; no state twice; transitions
    between declared states and on a named event; no two transitions from one state on one event; every state
    used by a transition. Semantics: go-statemachine (v0.14.0) `CheckValid`, which stops after the starting
    state and asks for use only.

    Raises:
        MalformedConfigurationError: a subclass for each check; names what is wrong.
    """
    name = configuration.name
    if not name:
        raise MissingNameError("a configuration has no name")
    if not configuration.states:
        raise MissingStatesError(f"configuration {name!r} declares no state")
    if not configuration.starting_state:
        raise EmptyStartingStateError(f"configuration {name!r} has no starting state")
    if configuration.starting_state not in configuration.states:
        raise MismatchStartingStateError(
            f"starting state {configuration.starting_state!r} of configuration {name!r}"
            f" is not one of its states: {_listed(configuration.states)}"
        )
    if not configuration.version:
        raise MissingVersionError(f"configuration {name!r} has no version")
    check_name(name, "name")
    check_name(configuration.version, "version")
    _check_states(configuration)
    _check_transitions(configuration)
    _check_use(configuration)
    return tuple(_warnings(configuration))


def check_id(id: str, what: str) -> None:  # noqa: A002  the word of the field
    """Refuse an id, state or event name that no store or address can carry.

    Raises:
        InvalidIdentifierError: it is empty, longer than 512 bytes, or holds a control character or a lone
            surrogate.
    """
    if not id:
        raise InvalidIdentifierError(f"{what} is empty")
    try:
        size = len(id.encode())
    except UnicodeEncodeError as error:
        raise InvalidIdentifierError(f"{what} {id[:100]!r} is no Unicode text: {error}") from error
    if size > _LONGEST_ID:
        raise InvalidIdentifierError(f"{what} {id[:100]!r}... has {size} bytes; {_LONGEST_ID} are allowed")
    if _CONTROL(id):
        raise InvalidIdentifierError(f"{what} {id!r} holds a control character")


def check_name(text: str, what: str) -> None:
    """Refuse a name or version of a configuration that cannot stand in a key or a URL.

    Raises:
        InvalidIdentifierError: it is not made of 1 to 255 unreserved characters of RFC 3986.
    """
    if _NAME(text) is None or len(text) > _LONGEST_NAME:
        raise InvalidIdentifierError(
            f"{what} {text[:100]!r} of a configuration is not made of 1 to {_LONGEST_NAME} letters, digits,"
            " dots, hyphens, underscores and tildes"
        )


def final_states(configuration: Configuration) -> frozenset[str]:
    """The states that no transition leaves: a machine there is through."""
    return frozenset(configuration.states) - {source_of(each) for each in configuration.transitions}


def reachable_states(configuration: Configuration) -> frozenset[str]:
    """The states that a machine can come to, the starting state among them."""
    next_states: dict[str, list[str]] = {}
    for transition in configuration.transitions:
        next_states.setdefault(source_of(transition), []).append(transition.to)
    return _closure(configuration.starting_state, next_states)


def source_of(transition: Transition) -> str:
    """The field `from` of a transition, whose name is a word of Python."""
    source: str = getattr(transition, "from")
    return source


def new_transition(source: str, destination: str, event: str) -> Transition:
    """A transition; its field `from` cannot be named in a call."""
    return Transition(**{"from": source}, to=destination, event=event)


def _closure(start: str, next_states: Mapping[str, Sequence[str]]) -> frozenset[str]:
    found = {start}
    waiting = [start]
    while waiting:
        for state in next_states.get(waiting.pop(), ()):
            if state not in found:
                found.add(state)
                waiting.append(state)
    return frozenset(found)


def _check_states(configuration: Configuration) -> None:
    seen: set[str] = set()
    what = f"state of configuration {configuration.name!r}"
    for state in configuration.states:
        check_id(state, what)
        if state in seen:
            raise DuplicateStateError(f"state {state!r} is declared twice in {configuration.name!r}")
        seen.add(state)


def _check_transitions(configuration: Configuration) -> None:
    declared = set(configuration.states)
    seen: dict[tuple[str, str], str] = {}
    events: set[str] = set()
    for transition in configuration.transitions:
        source = source_of(transition)
        for state in (source, transition.to):
            if state not in declared:
                raise UndeclaredStateError(
                    f"transition from {source!r} to {transition.to!r} on {transition.event!r} of"
                    f" {configuration.name!r} names state {state!r}, which is not declared"
                )
        if not transition.event:
            raise MissingEventNameError(
                f"transition from {source!r} to {transition.to!r} of {configuration.name!r} names no event"
            )
        if transition.event not in events:
            check_id(transition.event, f"event of configuration {configuration.name!r}")
            events.add(transition.event)
        other = seen.get((source, transition.event))
        if other is not None:
            raise DuplicateTransitionError(
                f"two transitions of {configuration.name!r} leave {source!r} on {transition.event!r}:"
                f" to {other!r} and to {transition.to!r}"
            )
        seen[source, transition.event] = transition.to


def _check_use(configuration: Configuration) -> None:
    used = {state for each in configuration.transitions for state in (source_of(each), each.to)}
    for state in configuration.states:
        if state not in used:
            raise UnusedStateError(f"state {state} is not used in any of the transitions")


def _warnings(configuration: Configuration) -> Iterable[ConfigurationWarning]:
    reachable = reachable_states(configuration)
    for state in configuration.states:
        if state not in reachable:
            yield ConfigurationWarning(
                WarningKind.UNREACHABLE_STATE,
                f"state {state!r} cannot be reached from {configuration.starting_state!r}",
                state,
            )


def _listed(states: Sequence[str]) -> str:
    more = len(states) - _MOST_LISTED
    listed = ", ".join(map(repr, states[:_MOST_LISTED]))
    return f"{listed} and {more} more" if more > 0 else listed
