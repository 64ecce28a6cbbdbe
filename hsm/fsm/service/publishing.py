"""Publishing: who is told of outcomes."""

from __future__ import annotations

from typing import Protocol

from persistence.proto.statemachine_pb2 import EventResponse

__all__ = ["OutcomePublisher"]


class OutcomePublisher(Protocol):
    """Tells others of outcomes, at least once each: of one machine in their order, of several at once."""

    async def publish(self, response: EventResponse) -> None:
        """Return when the outcome is where others find it; whatever is raised, it is told again later."""
        ...
