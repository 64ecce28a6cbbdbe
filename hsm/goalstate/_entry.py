"""Entries: what an engine notes about an entity besides the entity itself."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from hsm.engine.clock import nanos_of, to_nanos
from hsm.goalstate.entity import AnyEntity

__all__ = ["Entry", "due_after", "due_at"]

# In the year 2262: an int64 of nanoseconds holds no later time. Whoever says `datetime.max` means never.
_LATEST: Final = 2**63 - 1


class Entry:
    """An entity in an engine. A new one of the same id is another entry, so nothing old is taken for it.

    Attributes:
        id: of the entity.
        entity: None until it is loaded.
        low: it only has to be looked after; see `Priority`.
        busy: actions of it run, or have not ended though their time is up.
        due: when it was due that is run, in nanoseconds.
        again: when it is to be run once more, after the present run; None if nobody has asked.
        tries: runs without success, one after the other.
        failures: those of them that count.
        deleted: it is to be forgotten after the present run.
    """

    __slots__ = (
        "again",
        "busy",
        "deleted",
        "due",
        "entity",
        "failures",
        "id",
        "low",
        "tries",
    )

    def __init__(self, id_: str, entity: AnyEntity | None = None) -> None:
        self.id = id_
        self.entity = entity
        self.low = False
        self.busy = False
        self.due = 0
        self.again: int | None = None
        self.tries = 0
        self.failures = 0
        self.deleted = False

    def ask_again(self, deadline: int) -> None:
        """Note that another run is wanted after the present one."""
        self.again = deadline if self.again is None else min(self.again, deadline)


def due_at(deadline: datetime) -> int:
    """An aware datetime as the queue holds it.

    Raises:
        TypeError: it has no time zone.
    """
    if deadline.tzinfo is None:
        raise TypeError(f"the deadline {deadline.isoformat()} has no time zone")
    return min(to_nanos(deadline), _LATEST)


def due_after(now: int, pause: timedelta) -> int:
    """The end of a pause that begins now, as the queue holds it."""
    return min(now + nanos_of(pause), _LATEST)
