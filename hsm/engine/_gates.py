"""Gates: whether a queue may start a task now, as its circuit breaker and its rate limit say."""

from __future__ import annotations

from typing import Final

from hsm.engine.breaker import Breaker, BreakerState
from hsm.engine.clock import nanos_of
from hsm.engine.rates import Rate
from hsm.errors import (
    DestinationDownError,
    IncompatibleTypeError,
    InvalidTaskKindError,
    NotRegisteredError,
    SerializationError,
    TerminalError,
)

__all__ = ["LONGEST_PAUSE_NANOS", "Circuit", "Gate"]

_NANOS: Final = 10**9
LONGEST_PAUSE_NANOS: Final = 36_525 * 86_400 * _NANOS
"""A century: an int64 and a datetime hold the sum with any present time, whatever somebody asks for."""

# A destination that nobody has called for so long is as good as unknown.
_FORGOTTEN_AFTER: Final = 600 * _NANOS
# The task itself is at fault, and its destination was not asked.
_OWN_FAULT: Final = (NotRegisteredError, SerializationError, InvalidTaskKindError, IncompatibleTypeError)


def verdict(error: BaseException | None, breaker: Breaker) -> bool | None:
    """Whether a run says that its destination is well; None if it says nothing."""
    if error is None:
        return True
    if isinstance(error, DestinationDownError) or (breaker.timeouts and isinstance(error, TimeoutError)):
        return False
    # An answer that no other try can change is an answer.
    return True if isinstance(error, TerminalError) and not isinstance(error, _OWN_FAULT) else None


class Circuit:
    """The state of one circuit breaker.

    Attributes:
        state: what it lets through.
        failures: in a row.
        until: when it will let a task through, in nanoseconds, if it is open.
    """

    __slots__ = ("_changed", "_probe", "failures", "state", "until")

    def __init__(self) -> None:
        self.state = BreakerState.CLOSED
        self.failures = 0
        self.until = 0
        self._probe = ""
        self._changed = 0

    def closed_until(self, now: int) -> int | None:
        """None if a task may go; else when to ask again, 0 being the end of the one that has gone."""
        if self.state is BreakerState.OPEN:
            # A clock that was put back must not keep it open for as long as that.
            return self.until if self._changed <= now < self.until else None
        return 0 if self._probe else None

    def let_through(self, task_id: str) -> None:
        """Note that a task goes."""
        if self.state is not BreakerState.CLOSED:
            self.state = BreakerState.HALF_OPEN
            self._probe = task_id

    def judge(self, task_id: str, well: bool | None, now: int, breaker: Breaker, pause: int) -> None:
        """Note how a run has ended; `pause` is what the destination has asked for, in nanoseconds."""
        if self.state is BreakerState.HALF_OPEN:
            # Whoever was on its way since before it opened has nothing new to tell.
            if task_id != self._probe:
                return
            self._probe = ""
        if well is None:
            return
        if well:
            if self.state is not BreakerState.OPEN:
                self.close()
            return
        self.failures += 1
        self._changed = now
        if self.state is BreakerState.OPEN:
            self.until = max(self.until, now + pause)
        elif breaker.failures is not None and (
            self.state is BreakerState.HALF_OPEN or self.failures >= breaker.failures
        ):
            self.state = BreakerState.OPEN
            self.until = now + max(nanos_of(breaker.open_time), pause)

    def close(self) -> None:
        """Let everything through."""
        self.state = BreakerState.CLOSED
        self.failures = 0
        self._probe = ""

    def at_rest(self, now: int) -> bool:
        """Whether it may be forgotten."""
        return not self.failures or now > max(self._changed, self.until) + _FORGOTTEN_AFTER


class _Bucket:
    """A token bucket, kept as the time at which it would be full."""

    __slots__ = ("_full_at", "_interval", "_slack", "rate")

    def __init__(self, rate: Rate) -> None:
        self._full_at = 0
        self.change(rate, 0)

    def change(self, rate: Rate, now: int) -> None:
        self.rate = rate
        self._interval = round(_NANOS / rate.per_second)
        self._slack = self._interval * (rate.burst - 1)
        # A debt made under the old rate is paid at the new one.
        self._full_at = min(self._full_at, now + self._slack + self._interval)

    def empty_until(self, now: int) -> int | None:
        # More is owed only if the clock was put back.
        self._full_at = min(self._full_at, now + self._slack + self._interval)
        there_is_one_at = self._full_at - self._slack
        return there_is_one_at if there_is_one_at > now else None

    def take(self, now: int) -> None:
        self._full_at = max(self._full_at, now) + self._interval

    def at_rest(self, now: int) -> bool:
        return self._full_at <= now


class Gate:
    """What a task of a queue has to pass before it is started.

    Attributes:
        circuit: None until the first failure.
    """

    __slots__ = ("_bucket", "circuit")

    def __init__(self, rate: Rate | None = None) -> None:
        self.circuit: Circuit | None = None
        self._bucket = None if rate is None else _Bucket(rate)

    def set_rate(self, rate: Rate | None, now: int) -> None:
        """Go on with another limit."""
        if rate is None:
            self._bucket = None
        elif self._bucket is None:
            self._bucket = _Bucket(rate)
        elif self._bucket.rate != rate:
            self._bucket.change(rate, now)

    def admit(self, task_id: str, now: int) -> int | None:
        """Let a task through, and return None; else when to ask again, 0 being when another one has ended."""
        circuit, bucket = self.circuit, self._bucket
        if circuit is not None and (closed := circuit.closed_until(now)) is not None:
            return closed
        if bucket is not None:
            if (empty := bucket.empty_until(now)) is not None:
                return empty
            bucket.take(now)
        if circuit is not None:
            circuit.let_through(task_id)
        return None

    def at_rest(self, now: int) -> bool:
        """Whether a new gate would do as well."""
        return (self.circuit is None or self.circuit.at_rest(now)) and (
            self._bucket is None or self._bucket.at_rest(now)
        )
