"""An alarm: one call of the clock's, for whoever has many deadlines."""

from __future__ import annotations

from collections.abc import Callable

from hsm.engine.clock import Clock, TimerHandle

__all__ = ["Alarm"]


class Alarm:
    """Rings once, at the earliest moment it was set to; who wants it again sets it again."""

    __slots__ = ("_clock", "_handle", "_ring", "_when_ns")

    def __init__(self, clock: Clock, ring: Callable[[], None]) -> None:
        self._clock = clock
        self._ring = ring
        self._handle: TimerHandle | None = None
        self._when_ns = 0

    def is_set_by(self, when_ns: int) -> bool:
        """Whether it is going to ring at this moment or earlier. From any thread."""
        return self._handle is not None and self._when_ns <= when_ns

    def set(self, when_ns: int) -> None:
        """Ring at this moment, unless it is going to ring earlier."""
        if self._handle is not None:
            if self._when_ns <= when_ns:
                return
            self._handle.cancel()
        self._when_ns = when_ns
        self._handle = self._clock.call_at(when_ns, self._rung)

    def stop(self) -> None:
        """Do not ring, before it is set again."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _rung(self) -> None:
        self._handle = None
        self._ring()
