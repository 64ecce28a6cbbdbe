"""One queue: its tasks in memory, and what bounds them."""

from __future__ import annotations

from collections import deque

from hsm.engine._gates import Gate
from hsm.engine._rows import QueuedTask, QueueKey
from hsm.engine.breaker import BreakerState
from hsm.engine.clock import from_nanos
from hsm.engine.info import QueueInfo

__all__ = ["TaskQueue"]


class TaskQueue:
    """The tasks of one destination.

    Attributes:
        key: namespace, group and destination.
        concurrency: tasks that may run at once.
        ready: tasks that could run now, in order of arrival.
        running: tasks that run now.
        waiting: tasks that wait for their time, those counted in `paused` among them.
        paused: those of them that have no place among the timers that are read ahead.
        overflow: the store holds tasks of this queue that could run and are not in memory.
        gate: what a task has to pass; None if nothing is in its way.
        error: what the last run that failed met, and when.
    """

    __slots__ = (
        "concurrency",
        "error",
        "gate",
        "key",
        "overflow",
        "paused",
        "ready",
        "running",
        "waiting",
    )

    def __init__(self, key: QueueKey, concurrency: int, gate: Gate | None) -> None:
        self.key = key
        self.concurrency = concurrency
        self.ready: deque[QueuedTask] = deque()
        self.running = 0
        self.waiting = 0
        self.paused = 0
        self.overflow = False
        self.gate = gate
        self.error: tuple[str, int] | None = None

    @property
    def held(self) -> int:
        """Tasks in memory that run or could run."""
        return len(self.ready) + self.running

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do now nor later."""
        return not (self.ready or self.running or self.waiting or self.overflow)

    def info(self) -> QueueInfo:
        """What is told of it."""
        circuit = None if self.gate is None else self.gate.circuit
        error, error_time = self.error or ("", None)
        namespace, group, destination = self.key
        return QueueInfo(
            namespace,
            group,
            destination,
            running=self.running,
            ready=len(self.ready),
            waiting=self.waiting,
            overflow=self.overflow,
            concurrency=self.concurrency,
            breaker=BreakerState.CLOSED if circuit is None else circuit.state,
            failures=0 if circuit is None else circuit.failures,
            open_until=from_nanos(circuit.until)
            if circuit is not None and circuit.state is BreakerState.OPEN
            else None,
            last_error=error,
            last_error_time=None if error_time is None else from_nanos(error_time),
        )
