"""Time limits of running tasks: as `asyncio.timeout`, with one alarm for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

from hsm.engine._alarm import Alarm
from hsm.engine.clock import Clock

__all__ = ["TimeLimits"]

_MICROSECOND: Final = timedelta(microseconds=1)
_NANOS_PER_MICROSECOND: Final = 1000


class TimeLimits:
    """Cancels asyncio tasks that run for too long. An alarm for each would cost more than most tasks do.

    `cancelled` is told of each of them, which may not heed it.
    """

    __slots__ = ("_alarm", "_cancelled", "_clock", "_deadlines", "_expired")

    def __init__(
        self, clock: Clock, cancelled: Callable[[asyncio.Task[Any]], None] = lambda _run: None
    ) -> None:
        self._clock = clock
        self._cancelled = cancelled
        # No heap: few tasks run at once, and nearly all of them end long before anybody looks.
        self._deadlines: dict[asyncio.Task[Any], int] = {}
        self._expired: set[asyncio.Task[Any]] = set()
        self._alarm = Alarm(clock, self._wake)

    def begin(self, run: asyncio.Task[Any], duration: timedelta) -> None:
        """Cancel `run` after `duration`, unless `end` comes first."""
        nanos = duration // _MICROSECOND * _NANOS_PER_MICROSECOND
        deadline = self._clock.time_ns() + nanos
        self._deadlines[run] = deadline
        self._alarm.set(deadline)

    def end(self, run: asyncio.Task[Any]) -> bool:
        """Whether `run` was cancelled for the time it took, and by nobody else."""
        self._deadlines.pop(run, None)
        if run not in self._expired:
            return False
        self._expired.discard(run)
        return run.uncancel() == 0

    def ignored(self, run: asyncio.Task[Any]) -> bool:
        """Whether `run` was cancelled for the time it took and has not ended since."""
        return run in self._expired

    def close(self) -> None:
        """Cancel nothing any more, before the next `begin`."""
        self._alarm.stop()

    def _wake(self) -> None:
        now = self._clock.time_ns()
        for run in [run for run, deadline in self._deadlines.items() if deadline <= now]:
            del self._deadlines[run]
            self._expired.add(run)
            run.cancel()
            self._cancelled(run)
        if self._deadlines:
            self._alarm.set(min(self._deadlines.values()))
