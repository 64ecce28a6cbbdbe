"""Time limits of running tasks: as `asyncio.timeout`, with one alarm for all of them."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any, Final

from hsm.engine.clock import Clock, TimerHandle
from hsm.engine.deadlines import DeadlineQueue

__all__ = ["TimeLimits"]

_MICROSECOND: Final = timedelta(microseconds=1)
_NANOS_PER_MICROSECOND: Final = 1000


class TimeLimits:
    """Cancels asyncio tasks that run for too long. An alarm for each would cost more than most tasks do."""

    __slots__ = ("_alarm", "_alarm_at", "_clock", "_deadlines", "_expired")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._deadlines: DeadlineQueue[asyncio.Task[Any]] = DeadlineQueue()
        self._expired: set[asyncio.Task[Any]] = set()
        self._alarm: TimerHandle | None = None
        self._alarm_at = 0

    def begin(self, run: asyncio.Task[Any], duration: timedelta) -> None:
        """Cancel `run` after `duration`, unless `end` comes first."""
        nanos = duration // _MICROSECOND * _NANOS_PER_MICROSECOND
        deadline = self._clock.time_ns() + nanos
        self._deadlines.put(run, deadline)
        if self._alarm is None or deadline < self._alarm_at:
            self._arm(deadline)

    def end(self, run: asyncio.Task[Any]) -> bool:
        """Whether `run` was cancelled for the time it took, and by nobody else."""
        self._deadlines.discard(run)
        if run not in self._expired:
            return False
        self._expired.discard(run)
        return run.uncancel() == 0

    def close(self) -> None:
        """Cancel nothing any more."""
        if self._alarm is not None:
            self._alarm.cancel()

    def _arm(self, deadline: int) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = deadline
        self._alarm = self._clock.call_at(deadline, self._wake)

    def _wake(self) -> None:
        self._alarm = None
        now = self._clock.time_ns()
        while (run := self._deadlines.pop_due(now)) is not None:
            self._expired.add(run)
            run.cancel()
        deadline = self._deadlines.next_deadline()
        if deadline is not None:
            self._arm(deadline)
