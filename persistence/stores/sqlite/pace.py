"""Pace: whether commits have been so quick lately that one of them may be waited for in place."""

from __future__ import annotations

from typing import Final

__all__ = ["Pace"]

_QUICK_SECONDS: Final = 0.001
_FEWEST: Final = 16
_MOST: Final = 1 << 14
_FORGIVEN_AFTER: Final = 8


class Pace:
    """Looks at the duration of each commit.

    On a disk that takes 0.2 ms to sync, a thread costs a lone transaction half as much again. Where a commit
    takes longer than a millisecond, or does so now and then, the event loop should do something else
    meanwhile: so it takes some quick ones in a row before one is waited for in place, twice as many after
    each that turned out slow, and half as many again after eight times that many that did not.
    """

    def __init__(self) -> None:
        self._needed = _FEWEST
        self._in_a_row = 0

    @property
    def quick(self) -> bool:
        """Whether the next commit is likely to be quick."""
        return self._in_a_row >= self._needed

    def took(self, seconds: float) -> None:
        """A commit has taken so long."""
        if seconds >= _QUICK_SECONDS:
            if self.quick:
                self._needed = min(2 * self._needed, _MOST)
            self._in_a_row = 0
            return
        self._in_a_row += 1
        if self._in_a_row >= _FORGIVEN_AFTER * self._needed:
            self._in_a_row = self._needed = max(self._needed // 2, _FEWEST)
