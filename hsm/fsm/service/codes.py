"""Codes: what a gRPC client is told when a call fails. It is never `UNKNOWN`."""

from __future__ import annotations

import logging
from typing import Final

from hsm.errors import BusyError, RetryLaterError
from hsm.fsm.errors import (
    AlreadyExistsError,
    ConfigurationNotFoundError,
    EventError,
    FSMStoreError,
    GenericStoreError,
    InvalidDataError,
    MalformedConfigurationError,
    MalformedMachineError,
    NotFoundError,
    RevisionMismatchError,
    TooManyAttemptsError,
)
from hsm.fsm.service.errors import CallRefusedError
from persistence.errors import (
    CommitOutcomeUnknownError,
    InvalidRequestError,
    PersistenceError,
    StoreUnavailableError,
)

try:
    from grpc import StatusCode
except ImportError as _error:
    raise ImportError(
        "the service of configured machines needs gRPC: pip install 'hsm-toolkit[fsm]'", name=_error.name
    ) from _error

__all__ = ["status_of"]

# Clients refuse headers of more than 8 KiB, in which each character may take twelve bytes.
_LONGEST_TEXT: Final = 500
_LOG: Final = logging.getLogger("hsm.fsm.service")

_CODES: Final[tuple[tuple[type[BaseException], StatusCode], ...]] = (
    (EventError, StatusCode.FAILED_PRECONDITION),
    (MalformedConfigurationError, StatusCode.INVALID_ARGUMENT),
    (MalformedMachineError, StatusCode.INVALID_ARGUMENT),
    (AlreadyExistsError, StatusCode.ALREADY_EXISTS),
    (ConfigurationNotFoundError, StatusCode.FAILED_PRECONDITION),
    (NotFoundError, StatusCode.NOT_FOUND),
    # The client may read, and try again with what it has read.
    (RevisionMismatchError, StatusCode.ABORTED),
    (TooManyAttemptsError, StatusCode.ABORTED),
    (InvalidDataError, StatusCode.DATA_LOSS),
    (RetryLaterError, StatusCode.UNAVAILABLE),
    # Whatever the first attempt did, the same call again does it no second time.
    (CommitOutcomeUnknownError, StatusCode.UNAVAILABLE),
    (StoreUnavailableError, StatusCode.UNAVAILABLE),
    (FSMStoreError, StatusCode.INTERNAL),
    (PersistenceError, StatusCode.INTERNAL),
)
_OURS: Final = frozenset(
    {
        StatusCode.FAILED_PRECONDITION,
        StatusCode.INVALID_ARGUMENT,
        StatusCode.ALREADY_EXISTS,
        StatusCode.NOT_FOUND,
        StatusCode.ABORTED,
    }
)


def status_of(error: BaseException) -> tuple[StatusCode, str]:
    """The code that an error makes, and what is said with it.

    What a database says goes to the log, and not to the client: it may name hosts, keys and users.
    """
    if isinstance(error, CallRefusedError):
        return StatusCode[error.refusal.name], _cut(str(error))
    code = _code_of(error)
    if code in _OURS or type(error) is BusyError:
        return code, _cut(str(error))
    match code:
        case StatusCode.UNAVAILABLE:
            _LOG.warning("a call failed, as the store does not answer: %s", error)
            return code, "the store does not answer at present"
        case StatusCode.DATA_LOSS:
            _LOG.error("the store holds what cannot be read: %s", error)
            return code, "the store holds what cannot be read"
        case _:
            _LOG.error("a call failed", exc_info=error)
            return code, "internal error"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + "..."


def _code_of(error: BaseException) -> StatusCode:
    cause = error.__cause__
    if isinstance(error, GenericStoreError) and isinstance(cause, PersistenceError):
        return _code_of(cause)
    if isinstance(error, InvalidDataError) and isinstance(cause, InvalidRequestError):
        return StatusCode.INVALID_ARGUMENT
    return next((code for kind, code in _CODES if isinstance(error, kind)), StatusCode.INTERNAL)
