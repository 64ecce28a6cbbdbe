"""Options of aggregates, with their defaults."""

from __future__ import annotations

import enum
import random
from datetime import timedelta

import attrs

from hsm.engine.clock import Clock, SystemClock
from persistence.journal import TRIES

__all__ = ["AggregateOptions", "UnknownEvents"]


class UnknownEvents(enum.Enum):
    """What to do about an event whose type the behavior does not know, as after an upgrade elsewhere."""

    REFUSE = "refuse"
    SKIP = "skip"


@attrs.frozen(kw_only=True)
class AggregateOptions:
    """How an engine of aggregates works.

    Attributes:
        cache_size: states kept in memory; the one that was used longest ago goes first. 0 keeps none.
        tries: of a command that is told with `RETRY_NO_VC`, the first one included.
        first_pause: the longest pause after the first conflict. Pauses are random.
        pause_growth: how much longer the longest pause is after each other conflict.
        batch: commands on one aggregate, told with `RETRY_NO_VC` while another one was under way, that are
            committed together.
        unknown_events: whether a history with unknown events can be read. If so, the behavior does not see
            them, and an engine that has met one saves no snapshots any more.
        clock: of the pauses.
        random: of the pauses.
    """

    cache_size: int = attrs.field(default=1024, validator=attrs.validators.ge(0))
    tries: int = attrs.field(default=TRIES, validator=attrs.validators.ge(1))
    first_pause: timedelta = timedelta(milliseconds=5)
    pause_growth: float = attrs.field(default=4.0, validator=attrs.validators.ge(1.0))
    batch: int = attrs.field(default=64, validator=attrs.validators.ge(1))
    unknown_events: UnknownEvents = UnknownEvents.REFUSE
    clock: Clock = attrs.field(factory=SystemClock)
    random: random.Random = attrs.field(factory=random.Random)
