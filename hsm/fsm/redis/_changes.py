"""What happens to a machine: what is known before, and what is to be written, on a server or a cluster."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Protocol

import attrs

__all__ = ["Action", "Change", "Decided", "Pending", "Seen", "Writer"]


class Action(enum.Enum):
    """What becomes of a machine's key."""

    KEEP = b"keep"
    SET = b"set"
    DELETE = b"delete"


@attrs.frozen
class Seen:
    """A machine as it was found, and the outcomes of some events.

    Attributes:
        machine: the value of its key; None if there is none.
        outcomes: by event id, of those that have one.
        turn: on a cluster, how often the machine was decided upon.
    """

    machine: bytes | None
    outcomes: Mapping[str, bytes]
    turn: int = 0


@attrs.frozen
class Decided:
    """An event and what becomes of it.

    Attributes:
        event_id: of the event.
        event: as it was sent.
        outcome: of the event.
        notification: what somebody is to be told; empty for nothing.
    """

    event_id: str
    event: bytes
    outcome: bytes
    notification: bytes


@attrs.frozen
class Pending:
    """An event that waits.

    Attributes:
        machine: id of the one that it waits for.
        place: in its line.
        request: the first one for it.
    """

    machine: str
    place: str
    request: bytes


@attrs.frozen
class Change:
    """What is to be written, if the machine is still as it was seen.

    Attributes:
        id: of the machine.
        name: of its configuration.
        seen: from which all this was worked out.
        action: what becomes of the machine.
        machine: its new value, if it gets one.
        leave: the state whose set it leaves; "" for none.
        enter: the state whose set it is in afterwards; "" for none.
        events: those that brought this about, and those that were refused.
    """

    id: str
    name: str
    seen: Seen
    action: Action
    machine: bytes = b""
    leave: str = ""
    enter: str = ""
    events: Sequence[Decided] = ()


class Writer(Protocol):
    """Carries changes out. Everything may be called again after it has failed."""

    async def look(self, id: str, name: str, event_ids: Sequence[str]) -> Seen:  # noqa: A002  the field's word
        """A machine and the outcomes of events, as they are now."""
        ...

    async def write(self, change: Change) -> Seen | None:
        """Write a change; None if that is done, else what stood against it, and nothing was written."""
        ...

    async def configure(self, config_id: str, name: str, configuration: bytes) -> bytes | None:
        """Write a configuration unless there is one; that one, or None."""
        ...

    async def accept(
        self,
        id: str,  # noqa: A002  the field's word
        name: str,
        event_id: str,
        event: bytes,
        request: bytes,
    ) -> Pending | bytes:
        """Let an event wait, if it does not already; or the outcome that it has."""
        ...

    async def settle(
        self,
        event_id: str,
        name: str,
        outcome: bytes,
        milliseconds: int,
        notification: bytes,
    ) -> bytes | None:
        """Give an event an outcome, and take it off those that wait; the one that it has already, or None."""
        ...

    async def forget(self, event_ids: Sequence[str], name: str) -> None:
        """Take events that have outcomes off those that wait."""
        ...

    async def outcome(self, event_id: str, name: str) -> bytes | None:
        """The outcome of an event, if it has one."""
        ...

    async def waiting(self, name: str) -> Sequence[str]:
        """Ids of the machines that events wait for."""
        ...

    async def in_state(self, name: str, state: str, ids: Sequence[str]) -> Sequence[str]:
        """Those of the members of a state set that count."""
        ...

    async def align(self, id: str, name: str, states: Sequence[str]) -> int:  # noqa: A002  the field's word
        """Bring the state sets into line with a machine; the number of sets that were wrong."""
        ...
