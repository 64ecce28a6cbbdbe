"""Behaviors: what an aggregate is, what it can be told, and what its events come to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Generic, Protocol, Self, TypeVar, runtime_checkable
from uuid import UUID

import attrs

from persistence.journal import EPOCH, EventId
from persistence.proto.nogevents_pb2 import Event as Message

__all__ = [
    "Advancer",
    "Behavior",
    "Command",
    "CommandT",
    "Event",
    "FactT",
    "FunctionAdvancer",
    "HasHistoryType",
    "Repeatable",
    "Snapshotting",
    "State",
    "StateT",
]


class Command:
    """What an aggregate can be told: the base of frozen attrs classes."""

    __slots__ = ()


@attrs.frozen
class State:
    """What an aggregate's history has come to: the base of frozen attrs classes.

    States are shared with everybody who asks, and never changed: an advancer makes new ones.

    Attributes:
        id: of the aggregate, and of its history.
        vid: the version: id of the last event; `EPOCH` before the first.
    """

    id: UUID
    vid: EventId = EPOCH

    def with_vid(self, vid: EventId) -> Self:
        """The same at another version."""
        return attrs.evolve(self, vid=vid)


StateT = TypeVar("StateT", bound=State)
FactT = TypeVar("FactT")
FactT_co = TypeVar("FactT_co", covariant=True)
FactT_contra = TypeVar("FactT_contra", contravariant=True)
StateT_contra = TypeVar("StateT_contra", bound=State, contravariant=True)
CommandT = TypeVar("CommandT", bound=Command)
CommandT_contra = TypeVar("CommandT_contra", bound=Command, contravariant=True)


@attrs.frozen
class Event(Generic[FactT_co]):
    """A fact that stands in a history.

    Attributes:
        id: of the event.
        data: the fact.
    """

    id: EventId
    data: FactT_co

    @property
    def time(self) -> datetime:
        """When it was written, to the millisecond, by the clock of whoever wrote it."""
        return self.id.time


class Advancer(Protocol[StateT, FactT_contra]):
    """Moves a state on, event by event. One advancer serves one batch of events.

    So it may copy what it changes once, and change its own copy from then on: nobody sees the states in
    the middle of a batch. What it was first given it must leave as it is.
    """

    def advance(self, state: StateT, event: Event[FactT_contra], /) -> StateT:
        """The state after the event. Its version is none of the advancer's business."""
        ...


class FunctionAdvancer(Generic[StateT, FactT]):
    """An advancer that keeps nothing between events."""

    def __init__(self, function: Callable[[StateT, Event[FactT]], StateT]) -> None:
        """Advance by calling `function`."""
        self._function = function

    def advance(self, state: StateT, event: Event[FactT], /) -> StateT:
        """See `Advancer`."""
        return self._function(state, event)


class Behavior(Protocol[StateT, CommandT_contra, FactT]):
    """What an engine needs to know of a kind of aggregate. It holds nothing and does no I/O.

    Semantics: nog `events.Behavior` (2019).
    """

    def new_event(self, message: Message, /) -> FactT:
        """The fact that an event of the journal tells; an `EventCodec` does it.

        Raises:
            UnknownEventTypeError: the type of the event is not known; see `AggregateOptions.unknown_events`.
            InvalidEventTypeError: the event cannot belong to this kind of aggregate.
        """
        ...

    def new_message(self, fact: FactT, /) -> Message:
        """A fact as an event for the journal, which fills in the ids; an `EventCodec` does it."""
        ...

    def new_state(self, id_: UUID, /) -> StateT:
        """An aggregate without history."""
        ...

    def new_advancer(self) -> Advancer[StateT, FactT]:
        """An advancer for one batch of events."""
        ...

    def tell(self, state: StateT, command: CommandT_contra, /) -> Sequence[FactT]:
        """What a command comes to in a state.

        The facts become visible together. None at all is success: the command was carried out before. An
        error refuses the command. This runs again when somebody else has committed first.
        """
        ...


@runtime_checkable
class Repeatable(Protocol[StateT_contra, CommandT_contra]):
    """A behavior that recognises a command which was carried out already, whatever has happened since.

    Such a command is a success without events, also where it names a version that was replaced since: a
    caller who has not heard the answer can ask again.
    """

    def is_repeat(self, state: StateT_contra, command: CommandT_contra, /) -> bool:
        """Whether this very command was carried out. May raise to say that its arguments were others."""
        ...


@runtime_checkable
class Snapshotting(Protocol[StateT]):
    """A behavior whose states can be written down, so that long histories need not be read each time.

    Whoever has had to read `snapshot_interval` events saves a snapshot, in the journal's place for them. One
    of another version, or that does not fit the history any more, is passed over.
    """

    @property
    def snapshot_version(self) -> int:
        """Of what `store_state` writes. Count it up whenever that, or what states hold, has changed."""
        ...

    @property
    def snapshot_interval(self) -> int:
        """Events that are worth a snapshot."""
        ...

    def store_state(self, state: StateT, /) -> bytes:
        """The state as bytes; its version is kept beside them."""
        ...

    def restore_state(self, id_: UUID, data: bytes, /) -> StateT:
        """The state that `store_state` was given. Its version is none of the behavior's business."""
        ...


@runtime_checkable
class HasHistoryType(Protocol):
    """A behavior whose histories have a type, by which `persistence.journal.Retention` trims them."""

    @property
    def history_type(self) -> str:
        """The type, written with the first event of each history."""
        ...
