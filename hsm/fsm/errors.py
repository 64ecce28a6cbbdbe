"""Errors of machines that come from configuration: of the configuration, of an event, of the store."""

from __future__ import annotations

from hsm.errors import HSMError, InvalidTransitionError, RetryLaterError

__all__ = [
    "AlreadyExistsError",
    "ConfigurationNotFoundError",
    "DuplicateStateError",
    "DuplicateTransitionError",
    "EmptyStartingStateError",
    "EventError",
    "EventNotAllowedError",
    "FSMStoreError",
    "GenericStoreError",
    "InvalidDataError",
    "InvalidIdentifierError",
    "MalformedConfigurationError",
    "MalformedMachineError",
    "MismatchStartingStateError",
    "MissingConfigurationNameError",
    "MissingDestinationError",
    "MissingEventNameError",
    "MissingNameError",
    "MissingStatesError",
    "MissingVersionError",
    "NotFoundError",
    "OutcomePendingError",
    "RevisionMismatchError",
    "StoreTimeoutError",
    "TooManyAttemptsError",
    "TransitionNotAllowedError",
    "UndeclaredStateError",
    "UnexpectedTransitionError",
    "UnusedStateError",
    "is_already_exists_err",
    "is_not_found_err",
]


class MalformedConfigurationError(HSMError, ValueError):
    """A configuration does not describe machines; the base of all that validation refuses."""


class MissingNameError(MalformedConfigurationError):
    """A configuration has no name."""


class MissingVersionError(MalformedConfigurationError):
    """A configuration has no version."""


class MissingStatesError(MalformedConfigurationError):
    """A configuration declares no state."""


class EmptyStartingStateError(MalformedConfigurationError):
    """A configuration does not say where its machines begin."""


class MismatchStartingStateError(MalformedConfigurationError):
    """The starting state is not one of the declared states."""


class DuplicateStateError(MalformedConfigurationError):
    """A state is declared twice."""


class UndeclaredStateError(MalformedConfigurationError):
    """A transition leads from or to a state that is not declared."""


class DuplicateTransitionError(MalformedConfigurationError):
    """Two transitions leave one state on one event, so that the second could never happen."""


class UnusedStateError(MalformedConfigurationError):
    """No transition leads from or to a declared state."""


class InvalidIdentifierError(MalformedConfigurationError):
    """A name, version, state, event or id cannot be told apart from others in a key or an address."""


class MalformedMachineError(HSMError, ValueError):
    """A machine does not belong to the configuration that it is used with, or is in none of its states."""


class EventError(HSMError, ValueError):
    """A request for an event cannot be accepted, because it says too little; nothing was stored."""


class MissingDestinationError(EventError):
    """A request does not name the machine."""


class MissingConfigurationNameError(EventError):
    """A request does not name the configuration."""


class MissingEventNameError(EventError, MalformedConfigurationError):
    """An event, or a transition of a configuration, has no name."""


class UnexpectedTransitionError(InvalidTransitionError):
    """The machine cannot do what the event asks for; it was left as it was."""


class EventNotAllowedError(UnexpectedTransitionError):
    """The configuration knows no event of this name."""


class TransitionNotAllowedError(UnexpectedTransitionError):
    """No transition leaves the machine's state on this event."""


class FSMStoreError(HSMError):
    """Base of what a store of configurations, machines and events raises."""


class AlreadyExistsError(FSMStoreError):
    """There is a configuration, event or outcome of this identity with another content; it was not replaced.

    Attributes:
        key: identity of what there is.
    """

    def __init__(self, key: str) -> None:
        super().__init__(f"key {key} already exists")
        self.key = key


class NotFoundError(FSMStoreError):
    """There is nothing of this identity.

    Attributes:
        key: identity of what was looked for.
    """

    def __init__(self, key: str, message: str = "") -> None:
        super().__init__(message or f"key {key} not found")
        self.key = key


class ConfigurationNotFoundError(NotFoundError):
    """There is no configuration of this `name:version`."""


class OutcomePendingError(NotFoundError):
    """The event is known, and has no outcome yet; an event that is not known is a plain `NotFoundError`."""

    def __init__(self, key: str) -> None:
        super().__init__(key, f"event {key} is pending: it has no outcome yet")


class InvalidDataError(FSMStoreError, ValueError):
    """What was to be stored, or was found in the store, is not what it should be; nothing was written."""


class RevisionMismatchError(FSMStoreError):
    """The machine is not at the expected revision; nothing was written.

    Attributes:
        expected: the revision that the caller expected; 0 for no machine at all.
        actual: the revision that there is; 0 if there is no machine.
    """

    def __init__(self, key: str, *, expected: int, actual: int) -> None:
        super().__init__(f"machine {key} is at revision {actual}, not {expected}")
        self.expected = expected
        self.actual = actual


class GenericStoreError(FSMStoreError):
    """The database failed; `__cause__` is what it said. Whether something was written is not known."""


class StoreTimeoutError(FSMStoreError, RetryLaterError, TimeoutError):
    """The database did not answer in time. Whether something was written is not known."""


class TooManyAttemptsError(FSMStoreError, RetryLaterError):
    """Others were faster each time, or the database slower; nothing was written in the last attempt."""


def is_not_found_err(error: BaseException | None) -> bool:
    """Whether `error` says that there is nothing of an identity; told by its type, not by its text."""
    return isinstance(error, NotFoundError)


def is_already_exists_err(error: BaseException | None) -> bool:
    """Whether `error` says that an identity is taken; told by its type, not by its text."""
    return isinstance(error, AlreadyExistsError)
