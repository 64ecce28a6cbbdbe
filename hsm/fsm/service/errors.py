"""What can go wrong around the service, besides what goes wrong with machines."""

from __future__ import annotations

import enum
from pathlib import Path

from hsm.errors import HSMError

__all__ = [
    "CallRefusedError",
    "PoisonError",
    "QueueError",
    "Refusal",
    "ServiceAddressError",
    "ServiceError",
    "TLSFileError",
]


class ServiceError(HSMError):
    """The service cannot do what it was told to."""


class Refusal(enum.Enum):
    """Why a call is refused; the names are those of the codes of gRPC."""

    INVALID_ARGUMENT = "invalid argument"
    NOT_FOUND = "not found"
    FAILED_PRECONDITION = "failed precondition"


class CallRefusedError(ServiceError):
    """A call asks for what is not there, or says too little; nothing was changed.

    Attributes:
        refusal: the kind of it.
    """

    def __init__(self, refusal: Refusal, message: str) -> None:
        super().__init__(message)
        self.refusal = refusal


class ServiceAddressError(ServiceError):
    """The service cannot listen where it was told to."""


class TLSFileError(ServiceError):
    """A file that TLS needs cannot be used.

    Attributes:
        file: its path.
    """

    def __init__(self, file: Path, reason: str) -> None:
        super().__init__(f"the TLS file {file} cannot be used: {reason}")
        self.file = file


class QueueError(ServiceError):
    """A queue or stream of messages cannot be used as it was given."""


class PoisonError(ServiceError):
    """A message can never be processed, however often it is delivered."""
