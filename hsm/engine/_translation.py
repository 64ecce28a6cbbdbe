"""Translation: what errors from below mean for whoever has asked an engine, and for a task."""

from __future__ import annotations

from hsm.errors import (
    CommitOutcomeUnknownError,
    SerializationError,
    StorageUnavailableError,
    TransactionTooLargeError,
)
from persistence import errors as storage

__all__ = ["translated", "unkeepable"]


def translated(error: storage.PersistenceError) -> Exception:
    """The error of this package that tells what an error of the store means for a task."""
    if isinstance(error, storage.TransactionTooLargeError):
        return TransactionTooLargeError(str(error))
    if isinstance(error, storage.CommitOutcomeUnknownError):
        return CommitOutcomeUnknownError(str(error))
    if isinstance(error, storage.StoreUnavailableError):
        return StorageUnavailableError(str(error))
    return error


def unkeepable(error: UnicodeEncodeError) -> SerializationError:
    """The error for a text with lone surrogates, which neither messages nor stores take."""
    return SerializationError(f"{error.object[:80]!r} cannot be kept: {error}")
