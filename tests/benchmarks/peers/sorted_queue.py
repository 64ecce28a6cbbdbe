"""A deadline queue as one would write it with sortedcontainers."""

from __future__ import annotations

import itertools

from sortedcontainers import SortedList

__all__ = ["SortedQueue"]


class SortedQueue:
    """Items by deadline, then by order of arrival."""

    def __init__(self) -> None:
        self._sorted: SortedList[tuple[int, int, str]] = SortedList()
        self._entries: dict[str, tuple[int, int, str]] = {}
        self._order = itertools.count()

    def put(self, item: str, deadline: int) -> None:
        old = self._entries.get(item)
        if old is not None:
            self._sorted.remove(old)
        entry = self._entries[item] = (deadline, next(self._order), item)
        self._sorted.add(entry)

    def pop_due(self, now: int) -> str | None:
        if not self._sorted or self._sorted[0][0] > now:
            return None
        _, _, item = self._sorted.pop(0)
        del self._entries[item]
        return item
