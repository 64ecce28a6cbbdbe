"""What SQLite's errors mean to a caller."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from persistence.errors import (
    InvalidRequestError,
    PersistenceError,
    StoreBusyError,
    StoreCorruptError,
    StoreUnavailableError,
)

__all__ = ["is_busy", "is_data_error", "is_full", "translate"]

_PRIMARY: Final = 0xFF
_BUSY: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_CORRUPT: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_FORMAT})
_DATA: Final = frozenset({sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_RANGE})


def _code(error: sqlite3.Error) -> int | None:
    # Errors of the Python module itself, such as a value it cannot bind, carry no code.
    code = getattr(error, "sqlite_errorcode", None)
    return code & _PRIMARY if isinstance(code, int) else None


def is_busy(error: sqlite3.Error) -> bool:
    """Whether somebody else holds a lock."""
    return _code(error) in _BUSY


def is_full(error: sqlite3.Error) -> bool:
    """Whether there is no space left to write."""
    return _code(error) == sqlite3.SQLITE_FULL


def is_data_error(error: Exception) -> bool:
    """Whether a value was refused, as opposed to the statement or the file."""
    if isinstance(error, sqlite3.Error):
        code = _code(error)
        return code in _DATA or (
            code is None and isinstance(error, sqlite3.InterfaceError | sqlite3.DataError)
        )
    return isinstance(error, OverflowError | UnicodeError)


def translate(error: Exception, path: Path) -> PersistenceError:
    """The error of ours that says what happened, and names the file."""
    if is_data_error(error):
        return InvalidRequestError(f"SQLite cannot keep a value: {error}")
    code = _code(error) if isinstance(error, sqlite3.Error) else None
    if code in _BUSY:
        return StoreBusyError(f"{path} is locked by somebody else: {error}")
    if code == sqlite3.SQLITE_NOTADB:
        return StoreCorruptError(f"{path} is not a SQLite database, or its first page is damaged")
    if code in _CORRUPT:
        return StoreCorruptError(f"{path} is damaged: {error}")
    if code == sqlite3.SQLITE_FULL:
        return StoreUnavailableError(f"no space is left to write {path}: {error}")
    return StoreUnavailableError(f"cannot use {path}: {error}")
