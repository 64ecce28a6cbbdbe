"""Events: what is given to a history, and what it keeps."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import NamedTuple, Protocol, TypeVar
from uuid import UUID

import attrs
from google.protobuf.message import DecodeError

from persistence.journal._header import HEADER_SIZE
from persistence.journal.errors import TranscodingError
from persistence.journal.ids import EventId
from persistence.proto.nogevents_pb2 import Event as EventMessage

__all__ = ["Committed", "Event", "NewEvent", "Serializable"]

T = TypeVar("T")


class Serializable(Protocol):
    """A protobuf message, as far as it matters here."""

    def SerializeToString(self, *, deterministic: bool = ...) -> bytes:  # noqa: N802  protobuf's name
        """The message as bytes."""
        ...


@attrs.frozen
class NewEvent:
    """An event for a history to take.

    Attributes:
        payload: fields of `nogevents.Event`, serialized. The header's `id` and `parent` are the journal's:
            whatever the payload says of them is overruled.
        id: given to make a repetition safe: an event of this id is committed once. Ids have to grow along a
            history. None: the journal makes one.
    """

    payload: bytes
    id: EventId | None = None

    @classmethod
    def of(cls, message: Serializable, id: EventId | None = None) -> NewEvent:  # noqa: A002  the field's name
        """An event from a `nogevents.Event`, or from a message that shares field numbers with it."""
        return cls(message.SerializeToString(deterministic=True), id)


class Event(NamedTuple):
    """A committed event.

    Attributes:
        history: of which history.
        id: its id, and the version of the history up to here.
        parent: the event before it; `EPOCH` for the first one of a life.
        serial: its number in the history, from 1; it goes on counting if the history is deleted and created
            again.
        data: a `nogevents.Event`, serialized, header included.
        hash: of everything up to here, if the history has a hash chain; else empty.
    """

    history: UUID
    id: EventId
    parent: EventId
    serial: int
    data: bytes
    hash: bytes = b""

    def __repr__(self) -> str:
        return f"Event({self.id}, number {self.serial} of {self.history}, {len(self.data)} bytes)"

    @property
    def time(self) -> datetime:
        """When it was made, by the clock of its writer."""
        return self.id.time

    def message(self) -> EventMessage:
        """The event as protobuf.

        Raises:
            TranscodingError: it is none.
        """
        return self.decode(EventMessage.FromString, "nogevents.Event")

    def decode(self, parse: Callable[[bytes], T], name: str) -> T:
        """The event as `parse` reads it; `name` stands in the error.

        Raises:
            TranscodingError: it cannot be read.
        """
        try:
            return parse(self.data)
        except (DecodeError, ValueError) as error:
            raise TranscodingError(self.history, self.id, name, f"it cannot be read: {error}") from error

    def again(self) -> NewEvent:
        """The same event to be committed once more, which does no harm."""
        return NewEvent(self.data[:-HEADER_SIZE], self.id)


@attrs.frozen
class Committed:
    """What a commit has come to.

    Attributes:
        version: the history's version now: the id of the last event.
        events: the events as they are kept; empty if there were none.
    """

    version: EventId
    events: tuple[Event, ...] = ()
