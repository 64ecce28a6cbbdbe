"""What PostgreSQL's errors mean to a caller."""

from __future__ import annotations

from typing import Final

import psycopg

from persistence.errors import (
    InvalidRequestError,
    PersistenceError,
    StoreBusyError,
    StoreCorruptError,
    StoreUnavailableError,
)

__all__ = ["is_data_error", "is_refusal", "is_stale", "is_transient", "translate"]

# Conflicts with other transactions, all of which end with a roll-back: trying again is the cure.
_TRANSIENT: Final = frozenset({"40001", "40P01"})
_BUSY: Final = _TRANSIENT | {"55P03", "57014"}
# The connection behind a pooler is another one than that which has the prepared statement, or a table has
# changed under it.
_STALE: Final = frozenset({"26000", "42P05", "0A000"})
_CORRUPT: Final = frozenset({"XX001", "XX002"})
_DATA_CLASSES: Final = ("22", "54")
_UNDEFINED: Final = frozenset({"42P01", "3F000", "42703"})


def is_transient(error: psycopg.Error) -> bool:
    """Whether another transaction got in the way; nothing was written."""
    return error.sqlstate in _TRANSIENT


def is_stale(error: psycopg.Error) -> bool:
    """Whether the connection has to be replaced, because its prepared statements do not fit any more."""
    return error.sqlstate in _STALE


def is_refusal(error: psycopg.Error) -> bool:
    """Whether the server has refused a statement, and rolled back; else the connection is broken."""
    # Whoever ends a connection does so by an error, too, which may come when the commit has taken place.
    return error.diag.severity_nonlocalized == "ERROR"


def is_data_error(error: psycopg.Error) -> bool:
    """Whether a value was refused, as opposed to the statement or the connection."""
    return error.sqlstate is not None and error.sqlstate.startswith(_DATA_CLASSES)


def translate(error: psycopg.Error, where: str) -> PersistenceError:
    """The error of ours that says what happened, and names the database."""
    state = error.sqlstate
    text = str(error).strip()
    if is_data_error(error):
        return InvalidRequestError(f"{where} cannot keep a value: {text}")
    if state in _BUSY:
        return StoreBusyError(f"{where} is locked by somebody else, or overloaded: {text}")
    if state in _CORRUPT:
        return StoreCorruptError(f"{where} is damaged: {text}")
    if state in _UNDEFINED:
        return StoreUnavailableError(f"{where} has lost a table of ours: {text}")
    if state in _STALE:
        return StoreUnavailableError(f"{where}: {text}; behind a pooler, use the option prepare=false")
    return StoreUnavailableError(f"{where} does not serve: {text}")
