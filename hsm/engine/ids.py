"""Ids: sortable by time, unique by chance."""

from __future__ import annotations

import random
from typing import Final

__all__ = ["IdSource", "made_at"]

_NANOS_PER_MILLISECOND: Final = 1_000_000
_RANDOM_BITS: Final = 80
_TIME_DIGITS: Final = 12


class IdSource:
    """Makes ids of 32 hexadecimal digits: 12 of the time in milliseconds, then 80 random bits.

    Ids of one source always grow, so that tasks in one queue come out in the order they went in.
    """

    __slots__ = ("_last", "_random", "_steps")

    def __init__(self, chance: random.Random) -> None:
        self._random = chance
        # Within a millisecond chance need not come from the operating system, which takes its time.
        self._steps = random.Random() if isinstance(chance, random.SystemRandom) else chance
        self._last = 0

    def new(self, now_nanos: int) -> str:
        """The next id."""
        millisecond = now_nanos // _NANOS_PER_MILLISECOND
        if millisecond > self._last >> _RANDOM_BITS:
            # The top bit stays free: an id is never the last of its millisecond.
            self._last = millisecond << _RANDOM_BITS | self._random.getrandbits(_RANDOM_BITS - 1)
        else:
            self._last += 1 + self._steps.getrandbits(32)
        return f"{self._last:032x}"


def made_at(id_: str) -> int | None:
    """When an id was made, in nanoseconds, to the millisecond; None if it is no id of ours."""
    try:
        return int(id_[:_TIME_DIGITS], 16) * _NANOS_PER_MILLISECOND
    except ValueError:
        return None
