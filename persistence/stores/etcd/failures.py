"""What the errors of gRPC and of etcd mean: to a request that was under way, and to the caller."""

from __future__ import annotations

from typing import Final

from grpc import StatusCode
from grpc.aio import AioRpcError

from persistence.errors import (
    InvalidRequestError,
    PersistenceError,
    StoreBusyError,
    StoreCorruptError,
    StoreUnavailableError,
)

__all__ = [
    "details_of",
    "is_answer_too_large",
    "is_lease_missing",
    "is_lease_present",
    "is_lost",
    "is_out_of_space",
    "is_overloaded",
    "is_refused",
    "is_too_large",
    "is_too_many_operations",
    "needs_token",
    "translate",
]

# Whatever was asked for was not done, and never will be.
_REFUSING_CODES: Final = frozenset(
    {
        StatusCode.INVALID_ARGUMENT,
        StatusCode.NOT_FOUND,
        StatusCode.FAILED_PRECONDITION,
        StatusCode.OUT_OF_RANGE,
        StatusCode.PERMISSION_DENIED,
        StatusCode.UNAUTHENTICATED,
        StatusCode.UNIMPLEMENTED,
        StatusCode.DATA_LOSS,
    }
)
# gRPC's own words for a connection that was never made, so that nothing was sent.
_NEVER_SENT: Final = ("failed to connect to all addresses", "DNS resolution failed")
_OVERLOADED: Final = "too many requests"
_NO_SPACE: Final = "database space exceeded"
_TOO_LARGE: Final = ("request is too large", "received message larger than max")
_TOKEN: Final = ("invalid auth token", "user name is empty", "revision of auth store is old")
_LOST_CODES: Final = frozenset({StatusCode.UNAVAILABLE, StatusCode.UNKNOWN, StatusCode.INTERNAL})


def details_of(error: AioRpcError) -> str:
    """What the server, or gRPC, says about it."""
    return error.details() or error.code().name


def is_refused(error: AioRpcError) -> bool:
    """Whether it is certain that a write was not carried out, and will not be.

    A server that has run out of space may say so after it has carried the write out.
    """
    return (
        error.code() in _REFUSING_CODES
        or is_overloaded(error)
        or is_too_large(error)
        or (error.code() is StatusCode.UNAVAILABLE and details_of(error).startswith(_NEVER_SENT))
    )


def is_lost(error: AioRpcError) -> bool:
    """Whether another connection, or another member of the cluster, may do better."""
    return error.code() in _LOST_CODES


def is_overloaded(error: AioRpcError) -> bool:
    """Whether the server refuses requests because there are too many."""
    return error.code() is StatusCode.RESOURCE_EXHAUSTED and _OVERLOADED in details_of(error)


def is_too_large(error: AioRpcError) -> bool:
    """Whether the request has too many bytes for the server."""
    return any(text in details_of(error) for text in _TOO_LARGE)


def is_answer_too_large(error: AioRpcError) -> bool:
    """Whether a question was answered with more bytes than we take."""
    return error.code() is StatusCode.RESOURCE_EXHAUSTED and "eceived message larger than" in details_of(
        error
    )


def is_too_many_operations(error: AioRpcError) -> bool:
    """Whether the transaction has too many operations for the server."""
    return "too many operations" in details_of(error)


def is_lease_missing(error: AioRpcError) -> bool:
    """Whether a lease expired before the row was written that should have it."""
    return error.code() is StatusCode.NOT_FOUND and "lease not found" in details_of(error)


def is_lease_present(error: AioRpcError) -> bool:
    """Whether there is a lease of that name already."""
    return error.code() is StatusCode.FAILED_PRECONDITION and "lease already exists" in details_of(error)


def is_out_of_space(error: AioRpcError) -> bool:
    """Whether the server has no space left for writes. Older ones refuse every transaction then."""
    return _NO_SPACE in details_of(error)


def needs_token(error: AioRpcError) -> bool:
    """Whether the server wants to know anew who asks."""
    return error.code() in {StatusCode.UNAUTHENTICATED, StatusCode.INVALID_ARGUMENT} and any(
        text in details_of(error) for text in _TOKEN
    )


def translate(error: AioRpcError, where: str) -> PersistenceError:
    """The error of ours that says what happened, and where; the cause is the original."""
    ours = _translate(error, where)
    ours.__cause__ = error
    return ours


def _translate(error: AioRpcError, where: str) -> PersistenceError:
    code, details = error.code(), details_of(error)
    if code is StatusCode.DEADLINE_EXCEEDED:
        return StoreUnavailableError(f"{where} did not answer in time")
    if is_overloaded(error):
        return StoreBusyError(f"{where} has too many requests to carry out: {details}")
    if is_out_of_space(error):
        return StoreUnavailableError(
            f"{where} has no space left for writes ({details}); compact it, defragment it, disarm the alarm"
        )
    if code is StatusCode.DATA_LOSS:
        return StoreCorruptError(f"{where} says that its data are damaged: {details}")
    if code is StatusCode.PERMISSION_DENIED:
        return StoreUnavailableError(f"{where} does not permit it: {details}")
    if code is StatusCode.UNAUTHENTICATED or "auth" in details or "user name" in details:
        return StoreUnavailableError(f"{where} refuses the credentials: {details}")
    if code in {StatusCode.INVALID_ARGUMENT, StatusCode.NOT_FOUND, StatusCode.OUT_OF_RANGE}:
        return InvalidRequestError(f"{where} refuses a request: {details}")
    if code is StatusCode.UNIMPLEMENTED:
        return StoreUnavailableError(f"{where} is no etcd of version 3.4 or newer: {details}")
    return StoreUnavailableError(f"cannot use {where}: {details}")
