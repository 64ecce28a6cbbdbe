"""Cursors: how far the rows of each queue were read, so that a poll need not read them all again."""

from __future__ import annotations

from typing import Final

__all__ = ["ROWS_BEFORE_A_JUMP", "Cursors"]

_NANOS_PER_MILLISECOND: Final = 1_000_000
_TIME_DIGITS: Final = 12
ROWS_BEFORE_A_JUMP: Final = 32
"""Jumping ahead costs a query, which pays for more than a few rows."""

# A row may be committed later than its id was made, by a clock that is not quite ours.
_OVERLAP_MILLISECONDS: Final = 10_000
# Who is later than that waits for the next reading of everything.
_NANOS_BETWEEN_FULL_READINGS: Final = 30 * 10**9


class Cursors:
    """How far each queue of one shard was read, of those that hold more rows than are worth reading again.

    Ids begin with the time at which they were made, so new rows are at the end of their queue, or near it.
    """

    __slots__ = ("_current", "_horizon", "_next_full_reading", "_reached")

    def __init__(self) -> None:
        self._reached: dict[str, str] = {}
        self._current: dict[str, str] = {}
        self._next_full_reading = 0
        self._horizon = ""

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
        recent = max(now_nanos // _NANOS_PER_MILLISECOND - _OVERLAP_MILLISECONDS, 0)
        self._horizon = f"{recent:0{_TIME_DIGITS}x}"

    def passed(self, prefix: str, task_id: str) -> str | None:
        """Note a row that is in memory now, not one of the first of its queue.

        Where to go on if what follows was read before; None to read on.
        """
        reached = min(self._reached.get(prefix, ""), self._horizon)
        if reached > task_id:
            self._current[prefix] = reached
            return prefix + reached
        self._current[prefix] = task_id
        return None

    def end(self) -> None:
        """Note that the shard was read to its end."""
        self._reached = self._current
