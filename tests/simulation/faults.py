"""What goes wrong with a call of the store: decided by chance, for one call in so many, or for one call alone."""

from __future__ import annotations

import enum
import random

import attrs

__all__ = ["Fault", "Faults"]


class Fault(enum.Enum):
    """What happens to a call."""

    REFUSED = "not carried out, and said so"
    LOST = "not carried out, and nobody knows"
    DONE = "carried out, and nobody knows"
    LATE = "nobody knows, and carried out later"
    SLOW = "carried out after a long while"
    SLOW_ANSWER = "carried out, and answered after a long while"
    CONFLICT = "somebody else writes first"
    KILL = "the process is killed before it is carried out"
    KILL_AFTER = "the process is killed when it is carried out"
    STOP = "the process is stopped before the answer arrives"


# A read has no outcome that could be unknown.
OF_READS = (Fault.REFUSED, Fault.SLOW, Fault.SLOW_ANSWER, Fault.KILL, Fault.STOP)
OF_WRITES = tuple(Fault)


@attrs.define
class Faults:
    """Decides for each call.

    Attributes:
        chance: of everything here.
        rate: the part of all calls that something happens to.
        target: the number of the one call that something happens to, whatever the rate; 0 is none.
        hard: whether processes are killed and stopped.
        calls: how many there were.
        over: nothing happens any more.
    """

    chance: random.Random
    rate: float
    target: int
    hard: bool
    calls: int = 0
    over: bool = False

    def next(self, *, writes: bool) -> Fault | None:
        """What happens to the call that is made now."""
        self.calls += 1
        if self.over or (self.calls != self.target and (not self.rate or self.chance.random() >= self.rate)):
            return None
        fault = self.chance.choice(OF_WRITES if writes else OF_READS)
        if not self.hard and fault in {Fault.KILL, Fault.KILL_AFTER, Fault.STOP}:
            return Fault.REFUSED
        return fault
