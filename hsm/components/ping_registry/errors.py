"""Errors of the ping-registry package. All have one base class."""

from __future__ import annotations

from uuid import UUID

from hsm.errors import HSMError

__all__ = [
    "ArgumentNotIdempotentError",
    "EventTypeError",
    "InvalidCommandError",
    "InvalidNameError",
    "JournalError",
    "NewEventsError",
    "PingRegistryError",
    "SmallStorageReductionError",
    "StateConflictError",
    "TooManyWorkflowsError",
    "UninitializedError",
    "UnknownWorkflowError",
    "WorkflowAbortedError",
]


class PingRegistryError(HSMError):
    """Base of every error of the package."""


class UninitializedError(PingRegistryError):
    """There is no workflow with this id."""

    def __init__(self, id_: UUID | None = None) -> None:
        super().__init__("uninitialized" if id_ is None else f"workflow {id_} is uninitialized")


class InvalidCommandError(PingRegistryError):
    """The aggregate does not know this command."""


class StateConflictError(PingRegistryError):
    """The command does not fit the state; nothing was written."""

    def __init__(self, detail: str = "") -> None:
        super().__init__("command conflicts with aggregate state" + (f": {detail}" if detail else ""))


class ArgumentNotIdempotentError(PingRegistryError):
    """The command was carried out before, with another argument; nothing was written.

    Attributes:
        argument: its name.
    """

    def __init__(self, argument: str) -> None:
        super().__init__(f"command argument `{argument}` not idempotent")
        self.argument = argument


class EventTypeError(PingRegistryError):
    """A history holds an event that this aggregate cannot have written: the id is that of something else."""


class NewEventsError(PingRegistryError):
    """The events of a command cannot be made; the cause is `__cause__`."""


class JournalError(PingRegistryError):
    """The journal has failed, or the version was another one than expected; the cause is `__cause__`."""


class InvalidNameError(PingRegistryError, ValueError):
    """The name of a registry or of a server is not one."""


class UnknownWorkflowError(PingRegistryError):
    """The index does not list the workflow in the state that the command needs."""

    def __init__(self, id_: UUID) -> None:
        super().__init__(f"unknown workflow {id_}")


class TooManyWorkflowsError(PingRegistryError):
    """The index lists more workflows than a snapshot may hold."""


class SmallStorageReductionError(PingRegistryError):
    """A snapshot of the index would not save much storage."""


class WorkflowAbortedError(PingRegistryError):
    """The workflow was aborted, and cannot be committed any more.

    Attributes:
        code: of the abort.
        message: of the abort.
    """

    def __init__(self, id_: UUID, code: int, message: str) -> None:
        super().__init__(f"workflow {id_} was aborted: {code} {message}")
        self.code = code
        self.message = message
