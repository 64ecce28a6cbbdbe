"""Ids of events: they sort by time, and grow along every history."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final, Self

from persistence.journal.errors import InvalidEventError

__all__ = ["EPOCH", "EventId", "EventIdSource"]

_SIZE: Final = 16
_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_DIGITS: Final = {digit: value for value, digit in enumerate(_ALPHABET)}
_TEXT_DIGITS: Final = 26
_RANDOM_BITS: Final = 80
_NANOS_PER_MILLISECOND: Final = 1_000_000
_BEGINNING: Final = datetime(1970, 1, 1, tzinfo=UTC)
_END: Final = datetime.max.replace(tzinfo=UTC)
# An id from farther in the future is the work of a broken clock, which must not become that of everybody.
_MAX_SKEW_MILLISECONDS: Final = 60_000
_LAST: Final = (1 << 8 * _SIZE) - 1
# Within a millisecond chance need not come from the operating system, which costs as much as all the rest.
# It must not be that of another process, however: whoever is forked begins anew.
_STEPS: Final = random.Random()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_STEPS.seed)


class EventId(bytes):
    """The id of an event, and the version of a history whose last event it is: 16 bytes, a ULID.

    48 bits of milliseconds since 1970, then 80 bits of chance. Ids compare as they were made, and print in
    the 26 characters of a ULID.
    """

    __slots__ = ()

    def __new__(cls, value: bytes) -> Self:
        """Take 16 bytes.

        Raises:
            InvalidEventError: another number of them.
        """
        if len(value) != _SIZE:
            raise InvalidEventError(f"an event id has {_SIZE} bytes, not {len(value)}: {value!r}")
        return super().__new__(cls, value)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The id that prints like this, in upper or lower case.

        Raises:
            InvalidEventError: no id does.
        """
        try:
            # Other letters may have these as their capitals.
            if len(text) != _TEXT_DIGITS or not text.isascii():
                raise KeyError(text)
            number = 0
            for digit in text.upper():
                number = number << 5 | _DIGITS[digit]
            return cls(number.to_bytes(_SIZE))
        except (KeyError, OverflowError):
            raise InvalidEventError(f"{text!r} is no event id: a ULID has 26 characters") from None

    def __str__(self) -> str:
        number = int.from_bytes(self)
        return "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))

    def __repr__(self) -> str:
        return f"EventId({self})"

    @property
    def time(self) -> datetime:
        """When it was made, to the millisecond, by the clock of whoever made it.

        At the latest, the last moment of the year 9999.
        """
        try:
            return _BEGINNING + timedelta(milliseconds=int.from_bytes(self[:6]))
        except OverflowError:
            # Of a client, or damaged: whoever asks for the age of an event must not stumble over it.
            return _END


EPOCH: Final = EventId(bytes(_SIZE))
"""Before the first event: the parent of the first one, and the version of a history that has none."""


class EventIdSource:
    """Makes ids that are greater than all it has made or seen, however the clocks of others run.

    What one process commits after it has read what another one has committed thus has the greater id, within
    a minute of skew between their clocks (hybrid logical clocks, Kulkarni et al. 2014).
    """

    __slots__ = ("_clock", "_last", "_random", "_steps")

    def __init__(self, clock: Callable[[], int] = time.time_ns, chance: random.Random | None = None) -> None:
        """Take the time from `clock`, nanoseconds since 1970, and the rest from `chance`."""
        self._clock = clock
        self._random: random.Random = chance or random.SystemRandom()
        self._steps: random.Random = chance or _STEPS
        self._last = 0

    def new(self, after: EventId = EPOCH) -> EventId:
        """The next id, greater than `after` too.

        Raises:
            InvalidEventError: there is none.
        """
        millisecond = self._clock() // _NANOS_PER_MILLISECOND
        floor = max(self._last, int.from_bytes(after))
        if millisecond > floor >> _RANDOM_BITS:
            # The top bit stays free: an id is never the last of its millisecond.
            made = millisecond << _RANDOM_BITS | self._random.getrandbits(_RANDOM_BITS - 1)
        else:
            made = floor + 1 + self._steps.getrandbits(32)
            if made > _LAST:
                raise InvalidEventError(f"no id follows {after}")
        if made >> _RANDOM_BITS <= millisecond + _MAX_SKEW_MILLISECONDS:
            self._last = made
        return bytes.__new__(EventId, made.to_bytes(_SIZE))

    def observe(self, seen: bytes) -> None:
        """Take note of an id that somebody else has made."""
        number = int.from_bytes(seen)
        if number > self._last:
            millisecond = self._clock() // _NANOS_PER_MILLISECOND
            if number >> _RANDOM_BITS <= millisecond + _MAX_SKEW_MILLISECONDS:
                self._last = number
