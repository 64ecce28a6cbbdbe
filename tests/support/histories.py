"""Journals for tests: what they are made of, and what is found in them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import UUID

from persistence.journal import EPOCH, Event, EventId, Journal, NewEvent
from persistence.proto.nogevents_pb2 import Event as EventMessage
from persistence.store import EngineStore, Item

__all__ = ["codes", "drain", "numbered", "rows"]


def numbered(*codes: int) -> list[NewEvent]:
    """New events that can be told apart by their status codes."""
    return [NewEvent.of(EventMessage(status_code=code)) for code in codes]


async def drain(events: AsyncIterator[Event]) -> list[Event]:
    """All of them."""
    return [event async for event in events]


async def codes(journal: Journal, history: UUID, after: EventId = EPOCH) -> list[int]:
    """The status codes of a history."""
    return [event.message().status_code async for event in journal.find(history, after)]


async def rows(store: EngineStore, journal: Journal, prefix: str = "") -> list[Item]:
    """The rows of a journal."""
    items = store.scan(journal.partition, "", "")
    return [item async for item in items if item.key.startswith(prefix)]
