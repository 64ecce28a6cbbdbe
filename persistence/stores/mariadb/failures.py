"""What the server's errors mean to a caller."""

from __future__ import annotations

from typing import Final

from persistence.errors import (
    InvalidRequestError,
    PersistenceError,
    StoreBusyError,
    StoreCorruptError,
    StoreUnavailableError,
    TransactionTooLargeError,
)
from persistence.stores.mariadb.driver import ConnectionLostError, ServerError

__all__ = ["is_conflict", "is_data_error", "is_too_late", "translate"]

# Deadlock, and record changed since it was read.
_CONFLICTS: Final = frozenset({1213, 1020})
_LOCK_TIMEOUTS: Final = frozenset({1205, 3572})
_TOO_LONG: Final = frozenset({1969, 3024})
_TOO_LARGE: Final = frozenset({1118, 1153, 1197})
_DATA: Final = _TOO_LARGE | {1264, 1366, 1406}
_CORRUPT: Final = frozenset({126, 127, 1034, 1035, 1054, 1146, 1194, 1195, 1712, 1877})
# The server has become a replica, or is under maintenance.
_READ_ONLY: Final = frozenset({1290, 1792, 1836})


def is_conflict(error: ServerError) -> bool:
    """Whether somebody else was in the way, and trying again at once may help."""
    return error.code in _CONFLICTS


def is_data_error(error: ServerError) -> bool:
    """Whether a value was refused, as opposed to the statement."""
    return error.code in _DATA


def is_too_late(error: ServerError) -> bool:
    """Whether the server is no longer one to write to: the next connection may lead to another one."""
    return error.code in _READ_ONLY


def translate(error: Exception, where: str) -> PersistenceError:
    """The error of ours that says what happened, and where."""
    if isinstance(error, TimeoutError):
        return StoreUnavailableError(f"{where} did not answer in time")
    if isinstance(error, ConnectionLostError):
        return StoreUnavailableError(f"no connection to {where}: {error}")
    if not isinstance(error, ServerError):
        return StoreUnavailableError(f"cannot use {where}: {error}")
    if error.code in _CONFLICTS | _LOCK_TIMEOUTS:
        return StoreBusyError(f"{where} is locked by somebody else: {error}")
    if error.code in _TOO_LONG:
        return StoreUnavailableError(f"{where} took too long: {error}")
    if error.code in _TOO_LARGE:
        return TransactionTooLargeError(f"{where} cannot take so much at once: {error}")
    if error.code in _DATA:
        return InvalidRequestError(f"{where} cannot keep a value: {error}")
    if error.code in _CORRUPT:
        return StoreCorruptError(f"the tables in {where} are damaged or gone: {error}")
    return StoreUnavailableError(f"cannot use {where}: {error}")
