"""Keys of the Redis layout, and errors told by type."""

from __future__ import annotations

import pytest

from hsm.fsm import (
    AlreadyExistsError,
    ConfigurationNotFoundError,
    EventNotAllowedError,
    GenericStoreError,
    InvalidDataError,
    MissingDestinationError,
    NotFoundError,
    OutcomePendingError,
    RevisionMismatchError,
    StoreTimeoutError,
    TooManyAttemptsError,
    TransitionNotAllowedError,
    code_of,
    is_already_exists_err,
    is_not_found_err,
    outcome_of,
)
from hsm.fsm.keys import (
    config_name_of,
    new_key_for_config,
    new_key_for_event,
    new_key_for_machine,
    new_key_for_machines_by_state,
    new_key_for_outcome,
    new_key_for_versions,
)
from persistence.proto.statemachine_pb2 import EventOutcome


def test_keys_are_those_of_the_layout() -> None:
    assert new_key_for_versions("orders") == "configs#orders"
    assert new_key_for_config("orders:v1") == "configs#orders:v1"
    assert new_key_for_machine("7", "orders") == "fsm:orders#7"
    assert new_key_for_machines_by_state("orders", "start") == "fsm:orders:state#start"
    assert new_key_for_event("e", "orders") == "events:orders#e"
    assert new_key_for_outcome("e", "orders") == "events:orders:outcome#e"


def test_name_is_what_stands_before_the_first_colon() -> None:
    assert config_name_of("orders:v1") == "orders"
    assert config_name_of("orders:v1:2") == "orders"


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (NotFoundError("fsm:orders#with blanks"), True),
        (ConfigurationNotFoundError("orders:v1"), True),
        (OutcomePendingError("e"), True),
        (AlreadyExistsError("orders:v1"), False),
        (GenericStoreError("key x not found"), False),
        (None, False),
    ],
)
def test_not_found_is_told_by_type(error: Exception | None, found: bool) -> None:
    assert is_not_found_err(error) is found


def test_already_exists_is_told_by_type() -> None:
    assert is_already_exists_err(AlreadyExistsError("x"))
    assert not is_already_exists_err(NotFoundError("x already exists"))


def test_errors_name_the_key() -> None:
    assert str(NotFoundError("x")) == "key x not found"
    assert str(AlreadyExistsError("x")) == "key x already exists"
    assert "pending" in str(OutcomePendingError("x"))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MissingDestinationError("x"), EventOutcome.MissingDestination),
        (EventNotAllowedError("x"), EventOutcome.EventNotAllowed),
        (TransitionNotAllowedError("x"), EventOutcome.TransitionNotAllowed),
        (NotFoundError("x"), EventOutcome.FsmNotFound),
        (ConfigurationNotFoundError("x"), EventOutcome.ConfigurationNotFound),
        (RevisionMismatchError("x", expected=1, actual=2), EventOutcome.RevisionMismatch),
        (InvalidDataError("x"), EventOutcome.GenericError),
        (StoreTimeoutError("x"), EventOutcome.InternalError),
        (TooManyAttemptsError("x"), EventOutcome.InternalError),
        (RuntimeError("x"), EventOutcome.InternalError),
    ],
)
def test_every_error_has_a_code(error: Exception, code: EventOutcome.StatusCode.ValueType) -> None:
    assert code_of(error) == code
    assert outcome_of(error, id="7", config="orders").code == code


def test_details_of_an_outcome_name_no_key_of_the_store() -> None:
    outcome = outcome_of(NotFoundError("fsm:orders#7"), id="7", config="orders")

    assert outcome == EventOutcome(
        code=EventOutcome.FsmNotFound, details="there is no machine '7' of 'orders'", id="7", config="orders"
    )
