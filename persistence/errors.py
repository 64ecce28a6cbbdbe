"""Errors of the storage layer: each names the partition and key, the URL or the file it is about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

__all__ = [
    "BulkError",
    "BulkItemError",
    "CommitOutcomeUnknownError",
    "ConflictError",
    "ETagError",
    "ETagInvalidError",
    "ETagMismatchError",
    "FeatureMissingError",
    "InvalidRequestError",
    "KeysLikeEmptyPatternError",
    "PersistenceError",
    "StoreBrokenError",
    "StoreBusyError",
    "StoreClosedError",
    "StoreCorruptError",
    "StoreUnavailableError",
    "TransactionTooLargeError",
    "UnknownSchemeError",
]

_ITEMS_TOLD: Final = 10


class PersistenceError(Exception):
    """Base of everything that `persistence` raises."""


class InvalidRequestError(PersistenceError, ValueError):
    """The request cannot be carried out by any store: bad key, option, TTL or size; nothing was written."""


class KeysLikeEmptyPatternError(InvalidRequestError):
    """A listing by pattern was asked for with an empty pattern."""


class FeatureMissingError(PersistenceError):
    """The store lacks a feature that the caller requires."""


class UnknownSchemeError(PersistenceError, ValueError):
    """No store is registered for the scheme of a URL, or its client library is not installed."""


class ConflictError(PersistenceError):
    """A condition of the request does not hold; nothing of the request was written.

    Attributes:
        partition: partition of the key whose condition failed.
        key: the key whose condition failed.
    """

    def __init__(self, message: str, *, partition: str = "", key: str = "") -> None:
        super().__init__(message)
        self.partition = partition
        self.key = key


class ETagError(ConflictError):
    """The etag of the request is not the etag of the row."""


class ETagMismatchError(ETagError):
    """The row has another etag than the request expects, or exists where it should not, or is absent."""


class ETagInvalidError(ETagError):
    """The etag of the request can never have come from this store."""


class BulkItemError(PersistenceError):
    """One item of a bulk request failed; the cause is `__cause__` and `error`."""

    def __init__(self, partition: str, key: str, error: BaseException) -> None:
        super().__init__(f"{key!r} in partition {partition!r}: {error}")
        self.partition = partition
        self.key = key
        self.error = error
        self.__cause__: BaseException | None = error


class BulkError(PersistenceError):
    """Some items of a bulk request failed; the others were carried out. The message tells of ten."""

    def __init__(self, errors: Sequence[BulkItemError]) -> None:
        told = "; ".join(str(error) for error in errors[:_ITEMS_TOLD])
        more = f"; and {len(errors) - _ITEMS_TOLD} more" if len(errors) > _ITEMS_TOLD else ""
        super().__init__(f"{len(errors)} items failed: {told}{more}")
        self.errors: tuple[BulkItemError, ...] = tuple(errors)


class TransactionTooLargeError(InvalidRequestError):
    """A request is over the limits of the store; nothing was written."""


class CommitOutcomeUnknownError(PersistenceError):
    """The store cannot tell whether a commit took place; read before writing again."""


class StoreUnavailableError(PersistenceError):
    """The database cannot be reached or opened; trying again may help."""


class StoreBusyError(StoreUnavailableError):
    """The database is locked by somebody else for longer than the time-out; trying again may help."""


class StoreBrokenError(StoreUnavailableError):
    """A commit died earlier, and the store refuses further writes; open it again. `__cause__` tells why."""


class StoreCorruptError(PersistenceError):
    """The database is damaged, or is not one of ours; it was left as it was."""


class StoreClosedError(PersistenceError):
    """The store has been closed, or was never initialised."""
