"""Circuit breakers: a destination that is down is left alone for a while."""

from __future__ import annotations

import enum
from datetime import timedelta
from typing import Final

import attrs

__all__ = ["Breaker", "BreakerState"]

_FAILURES: Final[int | None] = 6


class BreakerState(enum.Enum):
    """What a circuit breaker lets through."""

    CLOSED = "closed"
    """Everything: the destination answers."""
    OPEN = "open"
    """Nothing, until its time is over."""
    HALF_OPEN = "half-open"
    """One task, whose outcome decides."""


@attrs.frozen(kw_only=True)
class Breaker:
    """When the circuit breaker of a destination opens, and for how long.

    What counts is the executor's word, `DestinationDownError`, and with `timeouts` also a `TimeoutError`; a
    run that ends well begins the count anew. While the breaker is open no task of the queue is started:
    nothing is read or written for them, and no attempt is counted. Then one task is let through: its success
    closes the breaker, its failure opens it again.

    Attributes:
        failures: how many in a row open it; None: it never opens.
        open_time: how long it stays open; longer if the error asks for that with `retry_after`.
        timeouts: whether an executor that takes too long counts as a failure.

    Semantics: Temporal's outbound queue (v1.24), where a task is started and then refused.
    """

    failures: int | None = attrs.field(
        default=_FAILURES, validator=attrs.validators.optional(attrs.validators.ge(1))
    )
    open_time: timedelta = attrs.field(
        default=timedelta(minutes=1), validator=attrs.validators.ge(timedelta())
    )
    timeouts: bool = True
