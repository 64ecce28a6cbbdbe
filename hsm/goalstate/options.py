"""Options of the goal-state engine, with their defaults."""

from __future__ import annotations

import enum
import random
from collections.abc import Callable
from datetime import timedelta

import attrs

from hsm.engine.clock import Clock, SystemClock
from hsm.engine.options import Backoff
from hsm.goalstate.metrics import Metrics

__all__ = ["DurableOptions", "Growth", "Options", "Priority"]

_ZERO = timedelta()


class Growth(enum.Enum):
    """How pauses grow from failure to failure."""

    EXPONENTIAL = "exponential"
    """Twice as long each time."""
    ADDITIVE = "additive"
    """Longer by the first pause each time, as Peloton does it."""


class Priority(enum.Enum):
    """Which of two entities that are due is run first."""

    NORMAL = "normal"
    """Something has happened."""
    LOW = "low"
    """It is only looked after, as after a restart. Every eighth run is kept for these, so they get on."""


@attrs.frozen(kw_only=True)
class Options:
    """How a goal-state engine works. Every value can be left as it is.

    Attributes:
        name: tells the metrics and logs of several engines apart.
        workers: entities that are run at once.
        failure_retry_delay: the pause after the first failure.
        maximum_retry_delay: the longest pause.
        growth: how pauses grow between the two.
        jitter: the part of a pause that chance may take away, 0 to 1.
        backoff_of: the pauses after an error, over the four above; None is to do as they say.
        maximum_attempts: evaluations that fail one after the other, before the entity is given up as dead;
            None is never. `RetryLaterError` does not count.
        run_timeout: how long one evaluation may take, unless its list of actions says otherwise; None is for
            ever.
        drain_timeout: how long running actions may take to end when the engine is stopped.
        clock: where time comes from.
        random: makes jitter; a seeded one makes a run repeatable.
        metrics: hears of the engine's work; None costs nothing.
    """

    name: str = "goalstate"
    workers: int = attrs.field(default=100, validator=attrs.validators.ge(1))
    failure_retry_delay: timedelta = attrs.field(
        default=timedelta(seconds=10), validator=attrs.validators.ge(_ZERO)
    )
    maximum_retry_delay: timedelta = attrs.field(
        default=timedelta(minutes=60), validator=attrs.validators.ge(_ZERO)
    )
    growth: Growth = Growth.EXPONENTIAL
    jitter: float = attrs.field(default=0.2, validator=[attrs.validators.ge(0), attrs.validators.le(1)])
    backoff_of: Callable[[Exception], Backoff | None] = lambda _error: None
    maximum_attempts: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.ge(1))
    )
    run_timeout: timedelta | None = timedelta(minutes=5)
    drain_timeout: timedelta = timedelta(seconds=30)
    clock: Clock = attrs.field(factory=SystemClock)
    random: random.Random = attrs.field(factory=random.SystemRandom)
    metrics: Metrics | None = None


@attrs.frozen(kw_only=True)
class DurableOptions(Options):
    """How a durable goal-state engine works.

    Attributes:
        run_timeout: as in `Options`, but never None: a claim has to end some time.
        claim_margin: how much longer a claim lasts than the run may take. Longer than the clocks of the
            processes differ, and than a process may stand still unnoticed.
        shard_count: partitions that a new database is divided into; an existing one keeps its own.
        lease_seconds: how long a process keeps its shards without a sign of life, at least 2.
        poll_interval: how soon is seen what another process has written, where the store cannot be watched.
        window: entities of one shard, new and recovered ones each, that are read ahead.
        recovery_rate: entities a second, of those that were overdue when this process took over their shard,
            that become due, so that a restart does not start everything at once.
    """

    run_timeout: timedelta = attrs.field(
        default=timedelta(minutes=5), validator=attrs.validators.instance_of(timedelta)
    )
    claim_margin: timedelta = attrs.field(default=timedelta(seconds=30), validator=attrs.validators.gt(_ZERO))
    shard_count: int = attrs.field(default=4, validator=attrs.validators.ge(1))
    lease_seconds: int = attrs.field(default=6, validator=attrs.validators.ge(2))
    poll_interval: timedelta = timedelta(milliseconds=500)
    window: int = attrs.field(default=1000, validator=attrs.validators.ge(1))
    recovery_rate: float = attrs.field(default=1000.0, validator=attrs.validators.gt(0))
