"""The clock: the one place that time comes from, so that tests can skip it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Final, Protocol

__all__ = [
    "Clock",
    "SystemClock",
    "TimerHandle",
    "from_nanos",
    "nanos_of",
    "sleep_for",
    "time_limit",
    "to_nanos",
]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def to_nanos(moment: datetime) -> int:
    """Nanoseconds since 1970, UTC, of an aware datetime."""
    return (moment - _EPOCH) // _MICROSECOND * 1000


def from_nanos(nanos: int) -> datetime:
    """The aware datetime, in UTC, of nanoseconds since 1970; whole microseconds, rounded down."""
    return _EPOCH + timedelta(microseconds=nanos // 1000)


def nanos_of(duration: timedelta) -> int:
    """A duration in nanoseconds."""
    return duration // _MICROSECOND * 1000


class TimerHandle(Protocol):
    """A call that has not happened yet."""

    def cancel(self) -> None:
        """Do not call."""
        ...


class Clock(Protocol):
    """Time, and calls when it has come."""

    def time_ns(self) -> int:
        """Nanoseconds since 1970, UTC."""
        ...

    def call_at(self, when_ns: int, callback: Callable[[], None]) -> TimerHandle:
        """Call back on the event loop at `when_ns` or later; at once if that has passed."""
        ...

    def call_later(self, delay_ns: int, callback: Callable[[], None]) -> TimerHandle:
        """Call back on the event loop after a while, whatever time it is called meanwhile."""
        ...


async def sleep_for(clock: Clock, delay_ns: int, waker: asyncio.Future[None]) -> None:
    """Wait for a while, whatever time it is called meanwhile, or until `waker` is done."""
    alarm = clock.call_later(delay_ns, lambda: None if waker.done() else waker.set_result(None))
    try:
        await waker
    finally:
        alarm.cancel()


class time_limit:  # noqa: N801 - stands where `asyncio.timeout` would
    """As `asyncio.timeout`, by a clock of ours: cancel the block after a while, and raise `TimeoutError`."""

    __slots__ = ("_alarm", "_clock", "_duration", "_scope")

    def __init__(self, clock: Clock, duration: timedelta | None) -> None:
        self._clock = clock
        self._duration = duration
        self._scope = asyncio.timeout(None)
        self._alarm: TimerHandle | None = None

    async def __aenter__(self) -> None:
        await self._scope.__aenter__()
        if self._duration is not None:
            self._alarm = self._clock.call_later(nanos_of(self._duration), self._expire)

    def _expire(self) -> None:
        self._scope.reschedule(asyncio.get_running_loop().time())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        await self._scope.__aexit__(kind, error, trace)


class SystemClock:
    """The machine's clock. A jump of the wall clock moves deadlines with it, within a minute."""

    _LONGEST_SLEEP_NS: Final = 60 * 10**9

    def time_ns(self) -> int:
        """See `Clock`."""
        return time.time_ns()

    def call_at(self, when_ns: int, callback: Callable[[], None]) -> TimerHandle:
        """See `Clock`."""
        return _WallTimer(self, when_ns, callback)

    def call_later(self, delay_ns: int, callback: Callable[[], None]) -> TimerHandle:
        """See `Clock`."""
        return asyncio.get_running_loop().call_later(delay_ns / 1e9, callback)


class _WallTimer:
    """Waits in steps, because the event loop's clock knows nothing of jumps of the wall clock."""

    __slots__ = ("_callback", "_clock", "_handle", "_when_ns")

    def __init__(self, clock: SystemClock, when_ns: int, callback: Callable[[], None]) -> None:
        self._clock = clock
        self._when_ns = when_ns
        self._callback = callback
        self._handle = self._arm()

    def _arm(self) -> asyncio.TimerHandle:
        delay = min(self._when_ns - self._clock.time_ns(), SystemClock._LONGEST_SLEEP_NS)
        return asyncio.get_running_loop().call_later(max(delay, 0) / 1e9, self._wake)

    def _wake(self) -> None:
        if self._clock.time_ns() < self._when_ns:
            self._handle = self._arm()
        else:
            self._callback()

    def cancel(self) -> None:
        self._handle.cancel()
