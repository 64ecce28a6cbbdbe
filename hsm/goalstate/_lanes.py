"""The lanes of the queue: what is due runs by priority first, then by deadline."""

from __future__ import annotations

from typing import Final

from hsm.engine.deadlines import DeadlineQueue
from hsm.goalstate._entry import Entry

__all__ = ["Lanes"]

_KEPT_FOR_LOW: Final = 8


class Lanes:
    """Entries by deadline, in two lanes. Every eighth place is kept for the lower one, if it has any due."""

    __slots__ = ("_low", "_normal", "_since_low")

    def __init__(self) -> None:
        self._normal: DeadlineQueue[Entry] = DeadlineQueue()
        self._low: DeadlineQueue[Entry] = DeadlineQueue()
        self._since_low = 0

    def __len__(self) -> int:
        return len(self._normal) + len(self._low)

    def __contains__(self, entry: Entry) -> bool:
        return entry in self._normal or entry in self._low

    def put_earlier(self, entry: Entry, deadline: int) -> None:
        """Add an entry or move it forward; into the lane that it says, unless it is in the upper one."""
        if entry.low:
            if entry not in self._normal:
                self._low.put_earlier(entry, deadline)
                return
        elif self._low:
            present = self._low.deadline(entry)
            if present is not None:
                self._low.discard(entry)
                deadline = min(deadline, present)
        self._normal.put_earlier(entry, deadline)

    def discard(self, entry: Entry) -> bool:
        """Remove an entry; whether it was there."""
        return self._normal.discard(entry) or self._low.discard(entry)

    def deadline(self, entry: Entry) -> int | None:
        """The deadline of an entry; None if it is not there."""
        deadline = self._normal.deadline(entry)
        return self._low.deadline(entry) if deadline is None else deadline

    def next_deadline(self) -> int | None:
        """The earliest deadline in both lanes."""
        normal, low = self._normal.next_deadline(), self._low.next_deadline()
        return normal if low is None else low if normal is None else min(normal, low)

    def pop_due(self, now: int) -> Entry | None:
        """Take out what runs next, if its deadline has come; its deadline is noted in `due`."""
        if not self._low:
            return _pop(self._normal, now)
        first, second = self._normal, self._low
        if self._since_low >= _KEPT_FOR_LOW - 1:
            first, second = second, first
        entry = _pop(first, now) or _pop(second, now)
        if entry is not None:
            self._since_low = 0 if entry.low else self._since_low + 1
        return entry


def _pop(queue: DeadlineQueue[Entry], now: int) -> Entry | None:
    deadline = queue.next_deadline()
    if deadline is None or deadline > now:
        return None
    entry = queue.pop_due(now)
    if entry is not None:
        entry.due = deadline
    return entry
