"""Telemetry: what the service tells of its work to whoever measures and traces it.

`hsm.fsm.service.otel.OpenTelemetry` passes it on to OpenTelemetry. Write your own for anything else.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

__all__ = ["CallObserver", "NoTelemetry", "ServiceTelemetry"]


class CallObserver(Protocol):
    """Is told how a call has ended."""

    def ended(self, code: str) -> None:
        """The call has ended with this code of gRPC: `OK`, `NOT_FOUND` ..."""
        ...


class ServiceTelemetry(Protocol):
    """Hears of the service's work, on the event loop and in the middle of that work: be quick."""

    def call(self, method: str, headers: Mapping[str, str]) -> AbstractContextManager[CallObserver]:
        """Entered before a call is served, in its context; left when it has ended."""
        ...

    def message(self, queue: str, result: str) -> None:
        """A message of a queue has left our hands: `acknowledged`, `dead_lettered`, `released` or `kept`."""
        ...

    def outcome(self, code: str, seconds: float) -> None:
        """The event of a message has its outcome, so long after the message was sent."""
        ...


class NoTelemetry:
    """Measures nothing."""

    def call(self, method: str, headers: Mapping[str, str]) -> AbstractContextManager[CallObserver]:  # noqa: ARG002
        """See `ServiceTelemetry`."""
        return _unobserved()

    def message(self, queue: str, result: str) -> None:
        """See `ServiceTelemetry`."""

    def outcome(self, code: str, seconds: float) -> None:
        """See `ServiceTelemetry`."""


class _Unobserved:
    def ended(self, code: str) -> None:
        pass


@contextmanager
def _unobserved() -> Generator[CallObserver, None, None]:
    yield _Unobserved()
