"""How often to do what costs a database time."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Final

__all__ = ["Cadence"]

_LARGEST_SHARE: Final = 1 / 50


class Cadence:
    """Something done not before an interval has passed, and for at most a fiftieth of the time."""

    def __init__(self, interval_seconds: float) -> None:
        self._interval = interval_seconds
        self._next = time.monotonic() + interval_seconds

    @property
    def due(self) -> bool:
        """Whether it is time."""
        return time.monotonic() >= self._next

    async def do(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do it now, whatever the time; if it fails, it stays due."""
        began = time.monotonic()
        await work()
        ended = time.monotonic()
        self._next = ended + max(self._interval, (ended - began) / _LARGEST_SHARE)
