"""The journal of a machine on a cluster: decisions whose consequences lie in other slots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import attrs

from hsm.fsm.redis._changes import Change
from hsm.fsm.redis._replies import as_bytes, as_list

__all__ = ["Decision", "Journal", "Move", "arguments_of", "journal_of", "read_journal"]

_TURN: Final = b"turn"
_EVENT: Final = b"event "
_MOVE: Final = b"move "


@attrs.frozen
class Decision:
    """What became of an event.

    Attributes:
        event_id: of the event.
        outcome: of the event.
        milliseconds: how long the outcome is kept; 0 for ever.
        notification: what somebody is to be told; empty for nothing.
    """

    event_id: str
    outcome: bytes
    milliseconds: int
    notification: bytes

    @property
    def field(self) -> bytes:
        """Where it stands in the journal."""
        return _EVENT + self.event_id.encode()


@attrs.frozen
class Move:
    """A machine has left a state.

    Attributes:
        turn: in which turn of the machine.
        leave: the state.
    """

    turn: int
    leave: str

    @property
    def field(self) -> bytes:
        """Where it stands in the journal."""
        return _MOVE + b"%d" % self.turn


@attrs.frozen
class Journal:
    """What a journal holds.

    Attributes:
        turn: how often the machine was decided upon.
        decisions: on events, not yet followed by everything.
        moves: likewise.
    """

    turn: int
    decisions: Sequence[Decision] = ()
    moves: Sequence[Move] = ()

    @property
    def open(self) -> bool:
        """Whether anything is still to follow."""
        return bool(self.decisions or self.moves)


def journal_of(change: Change, milliseconds: int) -> Journal:
    """What the journal has to hold about a change until everything has followed."""
    turn = change.seen.turn + 1
    decisions = [
        Decision(each.event_id, each.outcome, milliseconds, each.notification) for each in change.events
    ]
    moves = [Move(turn, change.leave)] if change.leave and change.leave != change.enter else []
    return Journal(turn, decisions, moves)


def arguments_of(journal: Journal) -> list[bytes]:
    """Fields and values for the script that decides."""
    arguments: list[bytes] = []
    for decision in journal.decisions:
        head = b"%d %d " % (decision.milliseconds, len(decision.outcome))
        arguments += (decision.field, head + decision.outcome + decision.notification)
    for move in journal.moves:
        arguments += (move.field, move.leave.encode())
    return arguments


def read_journal(reply: object) -> Journal:
    """A journal from the answer to HGETALL."""
    entries = [as_bytes(each) for each in as_list(reply)]
    turn = 0
    decisions: list[Decision] = []
    moves: list[Move] = []
    for field, value in zip(entries[::2], entries[1::2], strict=True):
        if field == _TURN:
            turn = int(value)
        elif field.startswith(_EVENT):
            milliseconds, size, rest = value.split(b" ", 2)
            event_id = field[len(_EVENT) :].decode()
            end = int(size)
            decisions.append(Decision(event_id, rest[:end], int(milliseconds), rest[end:]))
        elif field.startswith(_MOVE):
            moves.append(Move(int(field[len(_MOVE) :]), value.decode()))
    return Journal(turn, decisions, moves)
