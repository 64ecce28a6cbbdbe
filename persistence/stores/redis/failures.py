"""What the server's errors, and the lack of an answer, mean to a caller."""

from __future__ import annotations

import re
from typing import Final

from redis.exceptions import (
    AskError,
    AuthenticationError,
    ClusterDownError,
    MasterDownError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError as DriverTimeoutError,
    TryAgainError,
)

from persistence.errors import (
    PersistenceError,
    StoreBusyError,
    StoreCorruptError,
    StoreUnavailableError,
)

__all__ = ["describe", "is_moving", "is_of_another_kind", "surely_not_written", "translate"]

# A script in a slot that is moving away, which asks for a key that has gone already.
_GONE_KEY: Final = "non local key"
_REFUSED: Final = (
    AskError,  # and MovedError
    ClusterDownError,
    MasterDownError,
    NoPermissionError,  # to call a script; one that a script lacks is another error
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    TryAgainError,
)
# Redis 6 does not pass the code of an error on that ends a script, but quotes the whole.
_REFUSALS: Final = re.compile(
    r"BUSY |MISCONF |NOREPLICAS |.*-(OOM|MISCONF|READONLY|NOREPLICAS) ", re.DOTALL
).match


def describe(error: BaseException) -> str:
    """An error in a few words, also if it brings none itself."""
    if isinstance(error, TimeoutError | DriverTimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__


def is_moving(error: object) -> bool:
    """Whether the keys are on their way to another node, and a later try will find them together."""
    return isinstance(error, TryAgainError) or (isinstance(error, ResponseError) and _GONE_KEY in str(error))


def is_of_another_kind(error: RedisError) -> bool:
    """Whether a key is of a kind that we never make in its place."""
    return "WRONGTYPE" in str(error)


def surely_not_written(error: RedisError) -> bool:
    """Whether a call of a script that was answered by this error did not write anything.

    Our scripts ask for everything that can fail before they write, and a server refuses a script's first
    write, or none of them. What is not listed here would be news.
    """
    if not isinstance(error, ResponseError):
        return True
    text = str(error)
    return (
        isinstance(error, _REFUSED) or "WRONGTYPE" in text or _GONE_KEY in text or _REFUSALS(text) is not None
    )


def translate(error: BaseException, where: str, *, connecting: bool = False) -> PersistenceError:
    """The error of ours that says what happened, and names the server."""
    text = describe(error)
    if isinstance(error, AuthenticationError | NoPermissionError) or text.startswith("ACL failure"):
        return StoreUnavailableError(f"Redis at {where} refuses us: {text}")
    if text.startswith("FOREIGN "):
        return StoreCorruptError(f"key {text.removeprefix('FOREIGN ')!r} in Redis at {where} is not ours")
    if "WRONGTYPE" in text:
        return StoreCorruptError(f"a key of ours in Redis at {where} is of another kind: {text}")
    if text.startswith("BUSY ") or is_moving(error):
        return StoreBusyError(f"Redis at {where} is busy: {text}")
    if connecting:
        return StoreUnavailableError(f"cannot connect to Redis at {where}: {text}")
    return StoreUnavailableError(f"Redis at {where} does not serve us: {text}")
