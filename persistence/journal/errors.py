"""Errors of the journal: each names the history, and the events it is about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from uuid import UUID

from persistence.errors import CommitOutcomeUnknownError, ConflictError, InvalidRequestError, PersistenceError

if TYPE_CHECKING:
    from persistence.journal.events import Event
    from persistence.journal.ids import EventId

__all__ = [
    "CorruptHistoryError",
    "EventCommitUnknownError",
    "EventMismatchError",
    "HistoryError",
    "InvalidEventError",
    "JournalError",
    "ParentMismatchError",
    "PositionTrimmedError",
    "RetryNoVCError",
    "StaleCursorError",
    "TranscodingError",
    "TrimmedError",
    "UnknownEventError",
    "UnknownHistoryError",
    "VersionConflictError",
]


class JournalError(PersistenceError):
    """Base of what the journal raises; errors of the store pass through it as they are."""


class InvalidEventError(JournalError, InvalidRequestError):
    """What was given is no event, no id of one, or stands in the wrong order; nothing was written."""


class HistoryError(JournalError):
    """An error about a history.

    Attributes:
        history: its id.
    """

    def __init__(self, history: UUID, message: str) -> None:
        super().__init__(f"history {history}: {message}")
        self.history = history


class StaleCursorError(HistoryError):
    """The history does not hold the event after which reading should begin: begin again at the epoch."""


class UnknownHistoryError(StaleCursorError):
    """The history does not exist, or was deleted, and the request names an event of it.

    Attributes:
        expected: the event.
    """

    def __init__(self, history: UUID, expected: EventId) -> None:
        super().__init__(history, f"does not exist, or was deleted; version {expected} was expected")
        self.expected = expected


class VersionConflictError(HistoryError, ConflictError):
    """The history has another version than was expected; nothing was written. Read it and decide again.

    Attributes:
        stored: the version it has.
        expected: the version it should have.
    """

    def __init__(self, history: UUID, stored: EventId, expected: EventId) -> None:
        super().__init__(history, f"has version {stored}, expected {expected}")
        self.stored = stored
        self.expected = expected
        self.partition: str = ""
        self.key: str = ""


class RetryNoVCError(HistoryError):
    """Others committed first each time; `error` and `__cause__` tell what the last try met.

    Attributes:
        tries: how many there were.
        error: what the last one met.
    """

    def __init__(self, history: UUID, tries: int, error: Exception) -> None:
        super().__init__(history, f"gave up after {tries} tries: {error}")
        self.tries = tries
        self.error = error
        self.__cause__: BaseException | None = error


class EventMismatchError(HistoryError):
    """An event of this id is in the history already, with other content.

    Attributes:
        event_id: the id.
    """

    def __init__(self, history: UUID, event_id: EventId) -> None:
        super().__init__(history, f"event {event_id} is there already, with other content")
        self.event_id = event_id


class EventCommitUnknownError(HistoryError, CommitOutcomeUnknownError):
    """The store cannot tell whether the events were committed. Committing `events` again does no harm.

    Attributes:
        events: the events, with their ids.
    """

    def __init__(self, history: UUID, events: Sequence[Event], error: Exception) -> None:
        super().__init__(history, f"it is unknown whether {len(events)} events were committed: {error}")
        self.events: tuple[Event, ...] = tuple(events)
        self.__cause__: BaseException | None = error


class UnknownEventError(StaleCursorError):
    """An event of this id was never in the history.

    Attributes:
        event_id: the id.
    """

    def __init__(self, history: UUID, event_id: EventId) -> None:
        super().__init__(history, f"there is no event {event_id}")
        self.event_id = event_id


class TrimmedError(StaleCursorError):
    """The history no longer reaches back to the event; begin again at the epoch.

    Attributes:
        event_id: the event.
        epoch: where reading begins now.
    """

    def __init__(self, history: UUID, event_id: EventId, epoch: EventId) -> None:
        super().__init__(history, f"was trimmed; event {event_id} is gone, and reading begins after {epoch}")
        self.event_id = event_id
        self.epoch = epoch


class CorruptHistoryError(HistoryError):
    """Rows of the history are missing or damaged.

    Attributes:
        event_id: the event where that was seen.
    """

    def __init__(self, history: UUID, event_id: EventId, message: str) -> None:
        super().__init__(history, f"event {event_id}: {message}")
        self.event_id = event_id


class ParentMismatchError(CorruptHistoryError):
    """An event does not follow the one before it: one of them is missing, or was changed.

    Attributes:
        parent: the event that it names as its parent.
        previous: the event that was read before it.
    """

    def __init__(self, history: UUID, event_id: EventId, parent: EventId, previous: EventId) -> None:
        super().__init__(history, event_id, f"its parent is {parent}, and it stands behind {previous}")
        self.parent = parent
        self.previous = previous


class TranscodingError(HistoryError):
    """An event cannot be brought into its stored form, or back.

    Attributes:
        event_id: the event.
        codec: the codec, by name, or the type that has no codec.
    """

    def __init__(self, history: UUID, event_id: EventId, codec: str, message: str) -> None:
        super().__init__(history, f"event {event_id}, codec {codec!r}: {message}")
        self.event_id = event_id
        self.codec = codec


class PositionTrimmedError(JournalError):
    """The feed no longer reaches back to this position; rebuild what was made from it.

    Attributes:
        position: the position asked for.
        trimmed: positions up to this one are gone.
    """

    def __init__(self, namespace: str, position: int, trimmed: int) -> None:
        super().__init__(
            f"the feed of namespace {namespace!r} was trimmed up to {trimmed}; position {position} is gone"
        )
        self.position = position
        self.trimmed = trimmed
