"""A clock that moves only when it is told to, so that tests wait for nothing."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Final

from hsm.engine.clock import TimerHandle, from_nanos, to_nanos

__all__ = ["FakeClock"]

_START: Final = datetime(2030, 1, 1, tzinfo=UTC)
_TURNS: Final = 50


async def _settle() -> None:
    """Let everything run that waits for nothing but its turn."""
    for _ in range(_TURNS):
        await asyncio.sleep(0)


class FakeClock:
    """A `Clock` for tests. Whatever waits for a time wakes up when a test moves the clock there, in order.

    `advance` and `advance_to` only call what is due. `skip` and `skip_to` also let the event loop work at
    each time on the way, so that what is scheduled for a time on the way happens at that time.
    """

    def __init__(self, start: datetime = _START) -> None:
        """Stand at `start`, an aware datetime."""
        self._now = to_nanos(start)
        self._calls: list[_Call] = []
        self._order = itertools.count()

    def __repr__(self) -> str:
        return f"<FakeClock at {self.now().isoformat()}>"

    def time_ns(self) -> int:
        """See `Clock`."""
        return self._now

    def now(self) -> datetime:
        """The time that it shows."""
        return from_nanos(self._now)

    def call_at(self, when_ns: int, callback: Callable[[], None]) -> TimerHandle:
        """See `Clock`."""
        if when_ns <= self._now:
            return asyncio.get_running_loop().call_soon(callback)
        call = _Call(when_ns, next(self._order), callback)
        heapq.heappush(self._calls, call)
        return call

    def call_later(self, delay_ns: int, callback: Callable[[], None]) -> TimerHandle:
        """See `Clock`."""
        return self.call_at(self._now + delay_ns, callback)

    def next_call(self) -> datetime | None:
        """When somebody wants to be called next; None if nobody does."""
        while self._calls and self._calls[0].callback is None:
            heapq.heappop(self._calls)
        # Whole microseconds, and not before the call.
        return from_nanos(self._calls[0].when_ns + 999) if self._calls else None

    def advance(self, duration: timedelta) -> None:
        """Move on, and call what is due, in order; each call sees its own time."""
        self.advance_to(self.now() + duration)

    def advance_to(self, moment: datetime) -> None:
        """Move to a time; one that has passed changes nothing."""
        target = to_nanos(moment)
        while self._calls and self._calls[0].when_ns <= target:
            self._call_next()
        self._now = max(self._now, target)

    async def skip(self, duration: timedelta, *, settle: Callable[[], Awaitable[None]] = _settle) -> None:
        """Move on, and let the event loop do at each time on the way what there is to do."""
        await self.skip_to(self.now() + duration, settle=settle)

    async def skip_to(self, moment: datetime, *, settle: Callable[[], Awaitable[None]] = _settle) -> None:
        """Move to a time, step by step.

        Args:
            moment: the time; one that has passed changes nothing.
            settle: returns when there is nothing left to do at one time. Unless given, the event loop is
                given some turns, which is enough for what runs in it alone.
        """
        await settle()
        while (following := self.next_call()) is not None and following <= moment:
            self.advance_to(following)
            await settle()
        self.advance_to(moment)
        await settle()

    def _call_next(self) -> None:
        call = heapq.heappop(self._calls)
        if call.callback is not None:
            self._now = max(self._now, call.when_ns)
            call.callback()


class _Call:
    __slots__ = ("callback", "order", "when_ns")

    def __init__(self, when_ns: int, order: int, callback: Callable[[], None]) -> None:
        self.when_ns = when_ns
        self.order = order
        self.callback: Callable[[], None] | None = callback

    def __lt__(self, other: _Call) -> bool:
        return (self.when_ns, self.order) < (other.when_ns, other.order)

    def cancel(self) -> None:
        """Do not call."""
        self.callback = None
