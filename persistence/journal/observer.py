"""What a journal tells of itself: a hook for metrics, which costs nothing unless somebody listens."""

from __future__ import annotations

from uuid import UUID

__all__ = ["JournalObserver"]


class JournalObserver:
    """Told of what a journal does; override what is of interest. The methods must neither block nor raise."""

    def committed(self, history: UUID, events: int) -> None:
        """So many events were committed at once."""

    def conflicted(self, history: UUID) -> None:
        """Somebody else committed first."""

    def retried(self, history: UUID) -> None:
        """A commit is tried again."""

    def signal_dropped(self) -> None:
        """A subscriber has not yet looked at the last signal; the new one says nothing more."""

    def lagged(self, name: str, positions: int) -> None:
        """A reader of the feed is so many positions behind."""

    def collected(self, kind: str, rows: int) -> None:
        """Garbage collection has removed so many `events`, `histories`, or positions of the `feed`."""

    def collection_failed(self, history: UUID, error: Exception) -> None:
        """Trim or garbage collection has failed for a history, and goes on with the next."""
