"""The deadline queue: items by the time they are due, movable and removable."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from heapq import heapify, heappop, heappush
from typing import Final, Generic, TypeVar

__all__ = ["DeadlineQueue"]

ItemT = TypeVar("ItemT", bound=Hashable)

# More items than a process can put in; with a time in nanoseconds they still make an integer of four digits.
_ORDER_BITS: Final = 56
# A span of 17 seconds: wide enough that a million timers of a day share few, and narrow enough that the first
# one is a small heap.
_SPAN_BITS: Final = _ORDER_BITS + 34
_SLACK: Final = 16


class DeadlineQueue(Generic[ItemT]):
    """A set of items, each with a deadline; the earliest comes out first, and ties in order of arrival.

    Adding, moving and removing an item cost O(log n) amortised, looking at the earliest O(1) unless it has
    changed. Not waitable: the owner asks `next_deadline` and sleeps. Deadlines are integers, usually
    nanoseconds of a `Clock`.

    Items lie in spans of time, and only the first span is put in order, when it has become the first. So most
    items are never moved about before they are due, and what is moved or removed before leaves nothing
    behind. In one heap of a million, popping takes four times as long: each step down it is a cache miss.
    """

    __slots__ = ("_count", "_heaps", "_keys", "_order", "_spans")

    def __init__(self) -> None:
        # Deadline and order of arrival in one integer: it is compared in half the time that a pair takes.
        self._keys: dict[ItemT, int] = {}
        self._spans: dict[int, dict[int, ItemT]] = {}
        # A heap of the spans, and the heaps of those that have been first. Some of what is in them is gone.
        self._order: list[int] = []
        self._heaps: dict[int, list[int]] = {}
        self._count = 0

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, item: object) -> bool:
        return item in self._keys

    def put(self, item: ItemT, deadline: int) -> None:
        """Add an item, or move it to another deadline; moving puts it behind others of that deadline."""
        keys = self._keys
        old = keys.get(item)
        if old is not None:
            self._remove(old)
        self._count = count = self._count + 1
        keys[item] = key = deadline << _ORDER_BITS | count
        number = key >> _SPAN_BITS
        span = self._spans.get(number)
        if span is None:
            self._spans[number] = {key: item}
            heappush(self._order, number)
            return
        span[key] = item
        if number in self._heaps:
            heap = self._heaps[number]
            heappush(heap, key)
            if len(heap) > 2 * len(span) + _SLACK:
                self._heaps[number] = _heap(span)

    def put_earlier(self, item: ItemT, deadline: int) -> bool:
        """Add an item, or move it forward; False, and no change, if its deadline is as early already."""
        old = self._keys.get(item)
        if old is not None and old >> _ORDER_BITS <= deadline:
            return False
        self.put(item, deadline)
        return True

    def discard(self, item: ItemT) -> bool:
        """Remove an item; whether it was there."""
        key = self._keys.pop(item, None)
        if key is None:
            return False
        self._remove(key)
        return True

    def deadline(self, item: ItemT) -> int | None:
        """The deadline of an item; None if it is not there."""
        key = self._keys.get(item)
        return None if key is None else key >> _ORDER_BITS

    def next_deadline(self) -> int | None:
        """The earliest deadline; None if the queue is empty."""
        order = self._order
        while order:
            span = self._spans.get(order[0])
            if span is None:
                heappop(order)
                continue
            heap = self._heaps.get(order[0])
            if heap is None:
                heap = self._heaps[order[0]] = _heap(span)
            while heap[0] not in span:
                heappop(heap)
            return heap[0] >> _ORDER_BITS
        return None

    def pop_due(self, now: int) -> ItemT | None:
        """Take out the earliest item if its deadline has come."""
        deadline = self.next_deadline()
        if deadline is None or deadline > now:
            return None
        number = self._order[0]
        span = self._spans[number]
        item = span.pop(heappop(self._heaps[number]))
        del self._keys[item]
        if not span:
            del self._spans[number], self._heaps[number]
        return item

    def _remove(self, key: int) -> None:
        number = key >> _SPAN_BITS
        span = self._spans[number]
        del span[key]
        if not span:
            del self._spans[number]
            self._heaps.pop(number, None)
            if len(self._order) > 2 * len(self._spans) + _SLACK:
                self._order = _heap(self._spans)


def _heap(numbers: Iterable[int]) -> list[int]:
    heap = list(numbers)
    heapify(heap)
    return heap
