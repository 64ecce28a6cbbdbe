"""The deadline queue: items by the time they are due, movable and removable."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Hashable
from typing import Generic, TypeVar

__all__ = ["DeadlineQueue"]

ItemT = TypeVar("ItemT", bound=Hashable)


class DeadlineQueue(Generic[ItemT]):
    """A set of items, each with a deadline; the earliest comes out first, and ties in order of arrival.

    Adding, moving and removing an item cost O(log n), looking at the earliest O(1) amortised. Not waitable:
    the owner asks `next_deadline` and sleeps.

    Removed and moved items leave a dead entry in the heap, which is dropped when it surfaces or when dead
    entries outnumber the live ones.
    """

    __slots__ = ("_counter", "_entries", "_heap")

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, ItemT]] = []
        self._entries: dict[ItemT, tuple[int, int]] = {}
        self._counter = itertools.count()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, item: object) -> bool:
        return item in self._entries

    def put(self, item: ItemT, deadline: int) -> None:
        """Add an item, or move it to another deadline; moving puts it behind others of that deadline."""
        order = next(self._counter)
        self._entries[item] = (deadline, order)
        heapq.heappush(self._heap, (deadline, order, item))
        if len(self._heap) > 2 * len(self._entries) + 16:
            self._heap = [(*entry, item) for item, entry in self._entries.items()]
            heapq.heapify(self._heap)

    def discard(self, item: ItemT) -> None:
        """Remove an item, if it is there."""
        self._entries.pop(item, None)

    def deadline(self, item: ItemT) -> int | None:
        """The deadline of an item; None if it is not there."""
        entry = self._entries.get(item)
        return None if entry is None else entry[0]

    def next_deadline(self) -> int | None:
        """The earliest deadline; None if the queue is empty."""
        heap = self._heap
        while heap:
            deadline, order, item = heap[0]
            if self._entries.get(item) == (deadline, order):
                return deadline
            heapq.heappop(heap)
        return None

    def pop_due(self, now: int) -> ItemT | None:
        """Take out the earliest item if its deadline has come."""
        deadline = self.next_deadline()
        if deadline is None or deadline > now:
            return None
        _, _, item = heapq.heappop(self._heap)
        del self._entries[item]
        return item
