"""The clock of a journal: what it needs of one, and the machine's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

__all__ = ["Clock", "SystemClock", "TimerHandle", "sleep"]


class TimerHandle(Protocol):
    """A call that has not happened yet."""

    def cancel(self) -> object:
        """Do not call."""
        ...


class Clock(Protocol):
    """Time, and calls when it has come; the clock of an engine is one."""

    def time_ns(self) -> int:
        """Nanoseconds since 1970, UTC."""
        ...

    def call_later(self, delay_ns: int, callback: Callable[[], None]) -> TimerHandle:
        """Call back on the event loop after a while."""
        ...


class SystemClock:
    """The machine's clock."""

    def time_ns(self) -> int:
        """See `Clock`."""
        return time.time_ns()

    def call_later(self, delay_ns: int, callback: Callable[[], None]) -> TimerHandle:
        """See `Clock`."""
        return asyncio.get_running_loop().call_later(delay_ns / 1e9, callback)


async def sleep(clock: Clock, delay_ns: int, until: asyncio.Event | None = None) -> None:
    """Wait for a while, or until something has happened."""
    event = until or asyncio.Event()
    timer = clock.call_later(delay_ns, event.set)
    try:
        await event.wait()
    finally:
        timer.cancel()
