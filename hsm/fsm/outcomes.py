"""Outcomes: what became of an event, as a message and as an error."""

from __future__ import annotations

from typing import Final

from hsm.fsm.errors import (
    ConfigurationNotFoundError,
    EventNotAllowedError,
    InvalidDataError,
    MissingConfigurationNameError,
    MissingDestinationError,
    MissingEventNameError,
    NotFoundError,
    RevisionMismatchError,
    TransitionNotAllowedError,
)
from persistence.proto.statemachine_pb2 import EventOutcome

__all__ = ["code_of", "outcome_of", "succeeded"]

_LONGEST_DETAILS: Final = 8192

_CODES: Final[tuple[tuple[type[BaseException], EventOutcome.StatusCode.ValueType], ...]] = (
    (MissingDestinationError, EventOutcome.MissingDestination),
    (MissingConfigurationNameError, EventOutcome.MissingDestination),
    (MissingEventNameError, EventOutcome.EventNotAllowed),
    (EventNotAllowedError, EventOutcome.EventNotAllowed),
    (TransitionNotAllowedError, EventOutcome.TransitionNotAllowed),
    (ConfigurationNotFoundError, EventOutcome.ConfigurationNotFound),
    (NotFoundError, EventOutcome.FsmNotFound),
    (RevisionMismatchError, EventOutcome.RevisionMismatch),
    (InvalidDataError, EventOutcome.GenericError),
)


def code_of(error: BaseException) -> EventOutcome.StatusCode.ValueType:
    """The code of an outcome that an error makes."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), EventOutcome.InternalError)


def outcome_of(error: BaseException, *, id: str, config: str) -> EventOutcome:  # noqa: A002  the field's word
    """The outcome of an event to machine `id` of `config` that met an error.

    Its details name no key, and are cut off where they would be too long to be sent about.
    """
    code = code_of(error)
    details = {
        EventOutcome.FsmNotFound: f"there is no machine {id!r} of {config!r}",
        EventOutcome.ConfigurationNotFound: f"there is no configuration for machine {id!r} of {config!r}",
    }.get(code, str(error))
    if len(details) > _LONGEST_DETAILS:
        details = details[:_LONGEST_DETAILS] + "..."
    return EventOutcome(code=code, details=details, id=id, config=config)


def succeeded(outcome: EventOutcome) -> bool:
    """Whether the event moved the machine."""
    return outcome.code == EventOutcome.Ok
