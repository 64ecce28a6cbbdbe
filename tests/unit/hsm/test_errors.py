"""What becomes of a task that met an error: the table, row by row."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

import hsm
from hsm import (
    BusyError,
    CommitConflictError,
    CommitOutcomeUnknownError,
    DestinationDownError,
    Disposition,
    DuplicateRegistrationError,
    ExecutionClosedError,
    ExecutionNotFoundError,
    HSMError,
    IncompatibleTypeError,
    InvalidTaskKindError,
    InvalidTransitionError,
    Key,
    NotRegisteredError,
    PausedError,
    RateLimitError,
    ReentrantTransitionError,
    SerializationError,
    StaleReferenceError,
    StaleStateError,
    StateMachineAlreadyExistsError,
    StateMachineDeletedError,
    StateMachineNotFoundError,
    StorageUnavailableError,
    TerminalError,
    TransactionTooLargeError,
    disposition,
)

OWN = (Key(1, "above"), Key(1, "own"))


class OwnTerminalError(TerminalError):
    """An executor's own."""


TABLE = [
    (StaleReferenceError("x"), Disposition.DROP),
    (ExecutionClosedError("x"), Disposition.DROP),
    (ExecutionNotFoundError("x"), Disposition.DROP),
    (StateMachineNotFoundError("x", path=OWN), Disposition.DROP),
    (StateMachineNotFoundError("x", path=OWN[:1]), Disposition.DROP),
    (StateMachineNotFoundError("x", path=(Key(1, "other"),)), Disposition.RETRY),
    (StateMachineNotFoundError("x", path=(*OWN, Key(1, "below"))), Disposition.RETRY),
    (StateMachineNotFoundError("x"), Disposition.RETRY),
    (StaleStateError("x"), Disposition.RETRY_UNCOUNTED),
    (CommitConflictError("x"), Disposition.RETRY_UNCOUNTED),
    (CommitOutcomeUnknownError("x"), Disposition.RETRY_UNCOUNTED),
    (StorageUnavailableError("x"), Disposition.RETRY_UNCOUNTED),
    (BusyError("x"), Disposition.RETRY_UNCOUNTED),
    (RateLimitError("x"), Disposition.RETRY_UNCOUNTED),
    (PausedError("x"), Disposition.RETRY_UNCOUNTED),
    (NotRegisteredError("x"), Disposition.DEAD_LETTER),
    (SerializationError("x"), Disposition.DEAD_LETTER),
    (IncompatibleTypeError("x"), Disposition.DEAD_LETTER),
    (InvalidTaskKindError("x"), Disposition.DEAD_LETTER),
    (TransactionTooLargeError("x"), Disposition.DEAD_LETTER),
    (TerminalError("x"), Disposition.DEAD_LETTER),
    (OwnTerminalError("x"), Disposition.DEAD_LETTER),
    (InvalidTransitionError("x"), Disposition.RETRY),
    (ReentrantTransitionError("x"), Disposition.RETRY),
    (StateMachineDeletedError("x"), Disposition.RETRY),
    (StateMachineAlreadyExistsError("x"), Disposition.RETRY),
    (DuplicateRegistrationError("x"), Disposition.RETRY),
    (ValueError("x"), Disposition.RETRY),
    (TimeoutError(), Disposition.RETRY),
    (asyncio.CancelledError(), Disposition.RETRY),
    (ExceptionGroup("x", [StaleReferenceError("y")]), Disposition.RETRY),
]


def name(value: object) -> str:
    return value.name if isinstance(value, Disposition) else type(value).__name__


@pytest.mark.parametrize(("error", "expected"), TABLE, ids=name)
def test_error_decides_about_its_task(error: BaseException, expected: Disposition) -> None:
    assert disposition(error, OWN) is expected


@pytest.mark.parametrize(("error", "expected"), TABLE, ids=name)
def test_destination_down_is_treated_as_what_it_holds(error: BaseException, expected: Disposition) -> None:
    assert disposition(DestinationDownError(error), OWN) is expected
    assert disposition(DestinationDownError(DestinationDownError(error)), OWN) is expected


def test_destination_down_alone_acknowledges_the_task() -> None:
    error = DestinationDownError(retry_after=timedelta(seconds=5))

    assert disposition(error, OWN) is Disposition.ACKNOWLEDGE
    assert (error.inner, error.retry_after) == (None, timedelta(seconds=5))
    assert str(error) == "destination is down"
    assert str(DestinationDownError(ValueError("no route"))) == "destination is down: no route"


def test_retry_after_is_kept() -> None:
    assert BusyError("full", retry_after=timedelta(seconds=2)).retry_after == timedelta(seconds=2)
    assert BusyError("full").retry_after is None


def test_everything_raised_on_purpose_has_one_base() -> None:
    errors = [
        value
        for name in hsm.__all__
        if isinstance(value := getattr(hsm, name), type) and issubclass(value, BaseException)
    ]

    assert len(errors) > 20
    assert [error for error in errors if not issubclass(error, HSMError)] == []
