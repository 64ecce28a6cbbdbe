"""Deciding: what events make of a machine, worked out in memory."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
from google.protobuf.message import DecodeError

from hsm.fsm._moves import Moves
from hsm.fsm.errors import (
    InvalidDataError,
    NotFoundError,
    RevisionMismatchError,
    UnexpectedTransitionError,
)
from hsm.fsm.keys import new_key_for_machine
from hsm.fsm.outcomes import outcome_of
from hsm.fsm.redis._changes import Action, Change, Decided, Seen
from persistence.proto.statemachine_pb2 import (
    Event,
    EventOutcome,
    EventResponse,
    FiniteStateMachine,
)

__all__ = ["Sent", "decide", "machine_of", "revision_of", "trim"]


@attrs.frozen
class Sent:
    """An event to a machine.

    Attributes:
        event: with id, name and time.
        expected_revision: the revision at which the machine has to be, if that matters.
        accepted: whether it waited for its turn, so that somebody may wait to be told of its outcome.
    """

    event: Event
    expected_revision: int | None = None
    accepted: bool = False


def machine_of(seen: Seen, key: str) -> FiniteStateMachine | None:
    """The machine that was found.

    Raises:
        InvalidDataError: its key holds something else.
    """
    if seen.machine is None:
        return None
    try:
        return FiniteStateMachine.FromString(seen.machine)
    except DecodeError as error:
        raise InvalidDataError(f"key {key} holds no machine: {error}") from error


def revision_of(machine: FiniteStateMachine | None) -> int:
    """How often a machine was written; 0 if there is none.

    Of one that was written by a program that does not count, as often as its history tells.
    """
    if machine is None:
        return 0
    return machine.revision or len(machine.history) + machine.history_dropped + 1


def trim(machine: FiniteStateMachine, cap: int | None) -> None:
    """Drop the oldest events of a history that is longer than it may be."""
    if cap is not None and len(machine.history) > cap:
        dropped = len(machine.history) - cap
        del machine.history[:dropped]
        machine.history_dropped += dropped


def decide(
    id: str,  # noqa: A002  the field's word
    name: str,
    seen: Seen,
    moves: Moves | NotFoundError,
    sent: Sequence[Sent],
    *,
    history_cap: int | None,
    notify: bool,
    notify_all: bool = False,
) -> tuple[Change, dict[str, EventOutcome]]:
    """The change that events bring about, one after the other, and the outcome of each.

    Raises:
        InvalidDataError: the key of the machine holds something else.
    """
    key = new_key_for_machine(id, name)
    machine = machine_of(seen, key)
    before = machine.state if machine is not None else ""
    revision = first_revision = revision_of(machine)
    outcomes: dict[str, EventOutcome] = {}
    decided: list[Decided] = []
    for each in sent:
        event_id = each.event.event_id
        if event_id in outcomes:
            continue
        try:
            _move(machine, moves, each, revision, id)
        except (NotFoundError, RevisionMismatchError, UnexpectedTransitionError) as error:
            outcome = outcome_of(error, id=id, config=name)
        else:
            revision += 1
            outcome = EventOutcome(code=EventOutcome.Ok, id=id, config=name, revision=revision)
        outcomes[event_id] = outcome
        told = each.accepted and (notify_all or (notify and outcome.code != EventOutcome.Ok))
        decided.append(
            Decided(
                event_id,
                each.event.SerializeToString(),
                outcome.SerializeToString(),
                EventResponse(event_id=event_id, outcome=outcome).SerializeToString() if told else b"",
            )
        )
    if machine is None or revision == first_revision:
        return Change(id, name, seen, Action.KEEP, events=decided), outcomes
    machine.revision = revision
    trim(machine, history_cap)
    value = machine.SerializeToString()
    change = Change(id, name, seen, Action.SET, value, leave=before, enter=machine.state, events=decided)
    return change, outcomes


def _move(
    machine: FiniteStateMachine | None,
    moves: Moves | NotFoundError,
    sent: Sent,
    revision: int,
    id: str,  # noqa: A002  the field's word
) -> None:
    if sent.expected_revision is not None and sent.expected_revision != revision:
        raise RevisionMismatchError(repr(id), expected=sent.expected_revision, actual=revision)
    if isinstance(moves, NotFoundError):
        raise moves
    if machine is None:
        raise NotFoundError(id)
    made = moves.made(machine.state, sent.event)
    machine.history.append(made)
    machine.state = made.transition.to
