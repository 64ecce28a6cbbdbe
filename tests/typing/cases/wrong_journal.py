"""A version that is none, an event that is none, and a projection whose handler cannot wait."""

from __future__ import annotations

from uuid import UUID

from persistence.journal import EPOCH, FeedItem, Journal, NewEvent, Output, Projection


def note(item: FeedItem, output: Output) -> None:
    output.set(str(item.position), b"")


async def keep_history(journal: Journal, history: UUID) -> None:
    # mypy-error: "bytes"; expected "EventId
    # pyright-error: is not assignable to type "Expectation"
    await journal.commit(history, [NewEvent(b"")], bytes(16))
    # mypy-error: "str"; expected "EventId
    # pyright-error: is not assignable to type "Expectation"
    await journal.commit(history, [NewEvent(b"")], "no-vc")
    # mypy-error: expected "NewEvent"
    # pyright-error: "list\[bytes\]" cannot be assigned
    await journal.commit(history, [b""], EPOCH)
    # mypy-error: expected "UUID"
    # pyright-error: to parameter "history" of type "UUID"
    await journal.head("history")
    # mypy-error: expected "Callable
    # pyright-error: to parameter "handler" of type "Handler"
    Projection(journal, "notes", note)
