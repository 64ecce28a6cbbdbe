"""Errors of aggregates; those of the journal pass through as they are."""

from __future__ import annotations

from hsm.errors import DuplicateRegistrationError, HSMError, TerminalError

__all__ = [
    "AggregateError",
    "EventRegistrationError",
    "InvalidDeleteBehaviorError",
    "InvalidEventTypeError",
    "MissingUpcasterError",
    "NotCherryPickableError",
    "SagaConflictError",
    "UnknownEventTypeError",
]


class AggregateError(HSMError):
    """Base of what aggregates raise by themselves."""


class EventRegistrationError(AggregateError, DuplicateRegistrationError):
    """A name or class of an event is registered already."""


class UnknownEventTypeError(AggregateError, TerminalError):
    """A history holds an event of a type that this program does not know.

    Attributes:
        type_name: of the event.
    """

    def __init__(self, type_name: str, message: str = "") -> None:
        super().__init__(message or f"events of type {type_name!r} are not known")
        self.type_name = type_name


class InvalidEventTypeError(AggregateError, TerminalError):
    """A history holds an event that its aggregate cannot have written: the id is that of something else."""


class MissingUpcasterError(AggregateError, TerminalError):
    """An event has a version that nothing leads from to the present one.

    Attributes:
        type_name: of the event.
        version: of its schema.
    """

    def __init__(self, type_name: str, version: int, known: int) -> None:
        super().__init__(f"no upcaster leads from version {version} of event {type_name!r} to {known}")
        self.type_name = type_name
        self.version = version


class InvalidDeleteBehaviorError(AggregateError):
    """A command that asks for leave to delete came to events; nothing was written."""


class SagaConflictError(AggregateError):
    """There is a pending saga with this id, for another command."""


class NotCherryPickableError(AggregateError):
    """An event cannot be applied to another branch; it is skipped."""
