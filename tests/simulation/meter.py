"""A meter: whether the queues of one engine keep to their rates, and leave alone what their breakers have closed.

A queue is watched until its breaker opens for the first time: whose turn it is after that, only the engine knows.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Final

from hsm.engine import Breaker, CommitInfo, Gauges, Outcome, Rate, RunObserver, TaskRun, TraceContext
from hsm.engine.clock import nanos_of
from tests.simulation.loop import Process

__all__ = ["Meter"]

_NANOS: Final = 10**9
_TRIFLE: Final = 10**6
Queue = tuple[str, str]


class Meter:
    """A `Telemetry` that finds fault. One for each engine, whose buckets are new.

    A process that was stopped starts what it had admitted when it goes on: from then on, nothing is measured.
    """

    def __init__(
        self,
        process: Process,
        now: Callable[[], int],
        rate: Rate | None,
        breaker: Breaker,
        wrong: Callable[[str], None],
    ) -> None:
        self._process = process
        self._now = now
        self._rate = rate
        self._breaker = breaker
        self._wrong = wrong
        self._stops = process.stops
        self._full_at: dict[Queue, float] = {}
        self._failures: dict[Queue, int] = {}
        self._opened: dict[Queue, int] = {}

    def answered(self, queue: Queue, *, well: bool) -> None:
        """An executor says how its destination is."""
        if queue in self._opened:
            return
        failures = self._failures[queue] = 0 if well else self._failures.get(queue, 0) + 1
        if self._breaker.failures is not None and failures >= self._breaker.failures:
            self._opened[queue] = self._now()

    def run(self, run: TaskRun) -> AbstractContextManager[RunObserver]:
        """See `Telemetry`."""
        if self._process.stops == self._stops:
            queue = run.task_type, run.destination or ""
            self._check_rate(queue)
            self._check_breaker(queue, run)
        return nullcontext(self)

    def _check_rate(self, queue: Queue) -> None:
        if self._rate is None:
            return
        now, interval = self._now(), _NANOS / self._rate.per_second
        full_at = max(self._full_at.get(queue, 0), now) + interval
        self._full_at[queue] = full_at
        if full_at - now > interval * self._rate.burst + _TRIFLE:
            self._wrong(f"the queue {queue} of {self._process} starts more than {self._rate}")

    def _check_breaker(self, queue: Queue, run: TaskRun) -> None:
        opened = self._opened.get(queue)
        # What was let through at that very moment is on its way.
        if opened is None or run.destination is None:
            return
        if opened < self._now() < opened + nanos_of(self._breaker.open_time):
            self._wrong(f"{run.task_id} was started in {queue} of {self._process}, whose breaker is open")

    def ended(self, outcome: Outcome, error: BaseException | None) -> None:
        """See `RunObserver`."""

    def opened(self, gauges: Gauges) -> None:
        """See `Telemetry`."""

    def closed(self, gauges: Gauges) -> None:
        """See `Telemetry`."""

    def commit(self, info: CommitInfo) -> AbstractContextManager[TraceContext | None]:
        """See `Telemetry`."""
        return nullcontext()

    def trace(self) -> TraceContext | None:
        """See `Telemetry`."""
        return None
