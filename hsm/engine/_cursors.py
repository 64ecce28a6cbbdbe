"""Cursors: how far the rows of each queue were read, so that a poll need not read them all again."""

from __future__ import annotations

from typing import Final

__all__ = ["Cursors"]

_NANOS_PER_MILLISECOND: Final = 1_000_000
_TIME_DIGITS: Final = 12
# Jumping ahead costs a query, which pays for more than a few rows.
_ROWS_BEFORE_A_JUMP: Final = 32
# A row may be committed later than its id was made, by a clock that is not quite ours.
_OVERLAP_MILLISECONDS: Final = 10_000
# Who is later than that waits for the next reading of everything.
_NANOS_BETWEEN_FULL_READINGS: Final = 30 * 10**9


class Cursors:
    """How far each queue of one shard was read, of those that hold more rows than are worth reading again.

    Ids begin with the time at which they were made, so new rows are at the end of their queue, or near it.
    """

    __slots__ = ("_count", "_current", "_horizon", "_next_full_reading", "_prefix", "_reached")

    def __init__(self) -> None:
        self._reached: dict[str, str] = {}
        self._current: dict[str, str] = {}
        self._next_full_reading = 0
        self._horizon = ""
        self._prefix = ""
        self._count = 0

    def clear(self) -> None:
        """Read everything next time."""
        self._next_full_reading = 0

    def begin(self, now_nanos: int) -> None:
        """Begin to read the shard."""
        # Not in the far future, either: clocks are put back.
        if not 0 < self._next_full_reading - now_nanos <= _NANOS_BETWEEN_FULL_READINGS:
            self._next_full_reading = now_nanos + _NANOS_BETWEEN_FULL_READINGS
            self._reached = {}
        self._current = {}
        self._prefix = ""
        recent = max(now_nanos // _NANOS_PER_MILLISECOND - _OVERLAP_MILLISECONDS, 0)
        self._horizon = f"{recent:0{_TIME_DIGITS}x}"

    def passed(self, prefix: str, task_id: str) -> str | None:
        """Note a row that is in memory now; where to go on if what follows was read before, else None."""
        if prefix != self._prefix:
            self._prefix = prefix
            self._count = 0
        self._count += 1
        if self._count < _ROWS_BEFORE_A_JUMP:
            return None
        self._current[prefix] = task_id
        reached = min(self._reached.get(prefix, ""), self._horizon)
        return prefix + reached if reached > task_id else None

    def end(self) -> None:
        """Note that the shard was read to its end."""
        self._reached = self._current
