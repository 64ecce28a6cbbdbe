"""Errors, and what each of them does to the task that meets it.

Everything raised on purpose is an `HSMError`. `disposition` is the one place that decides whether a task
that failed is dropped, retried or dead-lettered.
"""

from __future__ import annotations

import enum
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hsm.machine import Key, VersionedTransition

__all__ = [
    "AccessClosedError",
    "BusyError",
    "CommitConflictError",
    "CommitOutcomeUnknownError",
    "DestinationDownError",
    "Disposition",
    "DuplicateRegistrationError",
    "DuplicateRequestError",
    "ExecutionAlreadyStartedError",
    "ExecutionClosedError",
    "ExecutionNotFoundError",
    "ExecutionRunningError",
    "HSMError",
    "IncompatibleTypeError",
    "InitialVersionMismatchError",
    "InvalidSearchAttributeError",
    "InvalidTaskKindError",
    "InvalidTransitionError",
    "NoHistoryError",
    "NotActiveError",
    "NotCancellableError",
    "NotRegisteredError",
    "PausedError",
    "RateLimitError",
    "ReentrantTransitionError",
    "ResendError",
    "RetryLaterError",
    "SerializationError",
    "StaleReferenceError",
    "StaleStateError",
    "StateMachineAlreadyExistsError",
    "StateMachineDeletedError",
    "StateMachineNotFoundError",
    "StorageUnavailableError",
    "TerminalError",
    "TransactionTooLargeError",
    "UntrackedChangeError",
    "disposition",
]


class HSMError(Exception):
    """Base of every error of this package."""


class TerminalError(HSMError):
    """Trying again cannot help: the task is dead-lettered at once. Executors may raise it themselves."""


class RetryLaterError(HSMError):
    """Nothing is wrong with the task; it is tried again later and never dead-lettered for this.

    Attributes:
        retry_after: the shortest pause before the next try, if it is known.
    """

    def __init__(self, message: str, *, retry_after: timedelta | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DuplicateRegistrationError(HSMError):
    """A name or id is registered already."""


class NotRegisteredError(TerminalError):
    """A machine type, task type or executor is not known to the registry."""


class SerializationError(TerminalError):
    """Data cannot be turned into bytes, or bytes not back into data."""


class IncompatibleTypeError(TerminalError):
    """A machine's data, or a task, is not of the class that was asked for."""


class InvalidSearchAttributeError(TerminalError):
    """A value cannot be a search attribute; nothing was written."""


class InvalidTaskKindError(TerminalError):
    """A task is of another kind than its serializer accepts."""


class TransactionTooLargeError(TerminalError):
    """A commit is over the limits of the store; nothing was written."""


class InvalidTransitionError(HSMError):
    """The machine is in no source state of the transition; nothing was changed."""


class ReentrantTransitionError(HSMError):
    """A machine is transitioned, or an execution accessed, from inside itself."""


class UntrackedChangeError(HSMError):
    """A tree was changed while it was read, or (debug mode) a machine's data outside a transition."""


class StateMachineNotFoundError(HSMError):
    """There is no machine at this path.

    Attributes:
        path: the path that was looked for.
    """

    def __init__(self, message: str, *, path: tuple[Key, ...] = ()) -> None:
        super().__init__(message)
        self.path = path


class StateMachineAlreadyExistsError(HSMError):
    """There is a machine with this key already."""


class StateMachineDeletedError(HSMError):
    """The node was deleted; the handle is of no use any more."""


class AccessClosedError(HSMError):
    """The node was used after the access that handed it out had ended."""


class InitialVersionMismatchError(HSMError):
    """Two nodes of the same path were not created by the same transition; they cannot be synced."""


class StaleReferenceError(HSMError):
    """What a reference or task points to has moved on; there is nothing left to do."""


class StaleStateError(RetryLaterError):
    """The reference knows of a later state than the store does."""


class ExecutionNotFoundError(HSMError):
    """There is no execution with this key."""


class ExecutionAlreadyStartedError(HSMError):
    """There is an execution with this id, started by another request.

    Attributes:
        run_id: of the execution that there is.
        closed: whether it is closed, and starting another run is what was refused.
    """

    def __init__(self, message: str, *, run_id: str = "", closed: bool = False) -> None:
        super().__init__(message)
        self.run_id = run_id
        self.closed = closed


class ExecutionClosedError(HSMError):
    """The execution is closed; its tasks are dropped."""


class ExecutionRunningError(HSMError):
    """The execution is not closed yet; what was asked for is for closed ones."""


class DuplicateRequestError(HSMError):
    """A request with this id was carried out already; nothing was done now.

    Attributes:
        run_id: of the execution that it was carried out on.
    """

    def __init__(self, message: str, *, run_id: str = "") -> None:
        super().__init__(message)
        self.run_id = run_id


class NoHistoryError(HSMError):
    """The history of the execution is not kept, or does not know what was asked for."""


class NotCancellableError(HSMError):
    """The root of the execution cannot be asked to end: its data is not `Cancellable`."""


class CommitConflictError(RetryLaterError):
    """The execution was changed by somebody else first; nothing was written."""


class CommitOutcomeUnknownError(RetryLaterError):
    """The store could not tell whether the commit took place."""


class StorageUnavailableError(RetryLaterError):
    """The store did not answer, or was locked for too long."""


class BusyError(RetryLaterError):
    """A bounded resource is taken."""


class RateLimitError(RetryLaterError):
    """A rate limit was reached."""


class PausedError(RetryLaterError):
    """The execution is paused."""


class NotActiveError(RetryLaterError):
    """The execution is written to by another cluster, of which this database is told."""


class ResendError(HSMError):
    """What a replica was told does not begin where what it has ends; nothing was changed.

    Attributes:
        since: what it has: the version since which it wants to know everything; (0, 0) for a snapshot.
    """

    def __init__(self, message: str, *, since: VersionedTransition) -> None:
        super().__init__(message)
        self.since = since


class DestinationDownError(HSMError):
    """An executor's word that the destination is at fault, which counts for its circuit breaker.

    With `inner` None the task is acknowledged, because the machine has noted the failure and tries again
    by itself; otherwise the task is treated as `inner` says.

    Attributes:
        inner: what decides about the task.
        retry_after: the shortest pause before the destination should be asked again, if it is known.
    """

    def __init__(self, inner: BaseException | None = None, retry_after: timedelta | None = None) -> None:
        super().__init__("destination is down" if inner is None else f"destination is down: {inner}")
        self.inner = inner
        self.retry_after = retry_after


class Disposition(enum.Enum):
    """What becomes of a task that failed."""

    ACKNOWLEDGE = "acknowledge"
    DROP = "drop"
    RETRY_UNCOUNTED = "retry, never dead-lettered"
    RETRY = "retry with backoff, dead-lettered after the maximum of attempts"
    DEAD_LETTER = "dead-lettered at once"


_DISPOSITIONS: tuple[tuple[type[BaseException], Disposition], ...] = (
    (StaleReferenceError, Disposition.DROP),
    (ExecutionClosedError, Disposition.DROP),
    (ExecutionNotFoundError, Disposition.DROP),
    (RetryLaterError, Disposition.RETRY_UNCOUNTED),
    (TerminalError, Disposition.DEAD_LETTER),
    (BaseException, Disposition.RETRY),
)


def disposition(error: BaseException, path: tuple[Key, ...] | None = None) -> Disposition:
    """What becomes of a task that met `error`.

    Args:
        error: what the executor, or the engine on its behalf, raised.
        path: the task's own node: only a missing own node, or one above it, makes the task pointless.
    """
    if isinstance(error, DestinationDownError):
        return Disposition.ACKNOWLEDGE if error.inner is None else disposition(error.inner, path)
    if isinstance(error, StateMachineNotFoundError) and path is not None:
        missing = error.path
        if missing == path or (missing and missing == path[: len(missing)]):
            return Disposition.DROP
    return next(answer for kind, answer in _DISPOSITIONS if isinstance(error, kind))
