"""The dispatcher: hands entities to their runs as they come due, a bounded number of them at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any, Final

from hsm.engine._alarm import Alarm
from hsm.engine._limits import TimeLimits
from hsm.engine._stopping import PATIENCE_SECONDS, end_runs
from hsm.goalstate._entry import Entry
from hsm.goalstate._evaluation import Evaluator
from hsm.goalstate._lanes import Lanes
from hsm.goalstate._logs import logger
from hsm.goalstate.options import Options

__all__ = ["Dispatcher"]

_NANOS: Final = 10**9


class Dispatcher:
    """Calls `perform` for each entry that is due, as long as there is room for another run.

    An entry stays in the queue until its run begins: there is no moment at which it is neither scheduled nor
    running. A run that does not end though its time is up loses its place, so that others can go on; its
    entity is not run again before it has ended.

    Attributes:
        lock: guards the entries: threads may schedule, too.
        evaluator: evaluates entities under the dispatcher's time limits.
    """

    def __init__(
        self,
        options: Options,
        perform: Callable[[Entry], Coroutine[Any, Any, None]],
        *,
        allowed: Callable[[], bool] = lambda: True,
        left_behind: Callable[[Entry], None] = lambda _entry: None,
    ) -> None:
        self._options = options
        self._clock = options.clock
        self._perform = perform
        self._allowed = allowed
        self._left_behind = left_behind
        self.lock: threading.RLock = threading.RLock()
        self._lanes = Lanes()
        self._limits = TimeLimits(options.clock, self._cancelled)
        self.evaluator: Evaluator = Evaluator(options, self._limits)
        self._runs: dict[asyncio.Task[None], Entry] = {}
        # Runs that have a place: an entity may begin its next one before the place of the last is free.
        self._placed: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._alarm = Alarm(options.clock, self._pump)
        self._started = False
        self._idle: list[asyncio.Future[None]] = []
        self._outlasting = 0

    @property
    def started(self) -> bool:
        """Whether runs are begun: not before `start`, nor after `stop`."""
        return self._started

    @property
    def queue_length(self) -> int:
        """Entries that are scheduled."""
        return len(self._lanes)

    @property
    def in_flight(self) -> int:
        """Runs that have a place."""
        return len(self._placed)

    @property
    def busy(self) -> bool:
        """Whether something runs or could run now."""
        if self._runs or self._outlasting:
            return True
        deadline = self._lanes.next_deadline()
        return deadline is not None and deadline <= self._clock.time_ns()

    def schedule(self, entry: Entry, deadline: int) -> None:
        """Let an entry be run at a time, or earlier if that was said before. From any thread."""
        with self.lock:
            self._lanes.put_earlier(entry, deadline)
        if self._started and not self._alarm.is_set_by(deadline):
            self._wake_up()

    def unschedule(self, entry: Entry) -> bool:
        """Take an entry out of the queue; whether it was there. From any thread."""
        with self.lock:
            return self._lanes.discard(entry)

    def deadline(self, entry: Entry) -> int | None:
        """When an entry is due; None if it is not scheduled."""
        with self.lock:
            return self._lanes.deadline(entry)

    def start(self) -> None:
        """Begin to run what is due."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._started = True
        self._arm()

    async def stop(self, grace: timedelta) -> None:
        """Begin no run any more; wait for those that run, and cancel them after a while."""
        self._started = False
        self._alarm.stop()
        await end_runs(self._runs.keys(), grace)
        for run, entry in self._runs.items():
            # It does not heed its cancellation, and must not take a place after another start.
            self._placed.discard(run)
            self._left_behind(entry)
        self._limits.close()
        self.evaluator.close()
        self._notify()

    async def drain(self) -> None:
        """Wait until nothing runs and nothing is due."""
        while self.busy:
            if not self._started:
                raise RuntimeError("the engine is not started, so nothing that is due will be run")
            waiter = asyncio.get_running_loop().create_future()
            self._idle.append(waiter)
            await waiter

    def resume(self) -> None:
        """Run what was held back while it was not allowed."""
        if self._started:
            self._pump()

    def _wake_up(self) -> None:
        if threading.get_ident() == self._thread:
            self._arm()
        elif self._loop is not None:
            self._loop.call_soon_threadsafe(self._arm)

    def _arm(self) -> None:
        if not self._started or len(self._placed) >= self._options.workers or not self._allowed():
            # Whoever allows it again calls `resume`.
            return
        with self.lock:
            deadline = self._lanes.next_deadline()
        if deadline is not None:
            self._alarm.set(deadline)

    def _pump(self) -> None:
        if not self._started:
            return
        workers, metrics = self._options.workers, self._options.metrics
        while len(self._placed) < workers and self._allowed():
            now = self._clock.time_ns()
            with self.lock:
                entry = self._lanes.pop_due(now)
                if entry is None:
                    break
                entry.busy = True
            if metrics is not None:
                metrics.popped(self._options.name, (now - entry.due) / _NANOS)
            run = asyncio.get_running_loop().create_task(self._perform(entry))
            self._runs[run] = entry
            self._placed.add(run)
            run.add_done_callback(self._ended)
        self._arm()
        if not self._runs and not self._outlasting:
            self._notify()

    def _ended(self, run: asyncio.Task[None]) -> None:
        entry = self._runs.pop(run)
        if not run.cancelled() and (error := run.exception()) is not None:
            logger.error("the run of entity %s has failed: %r", entry.id, error, exc_info=error)
        self._placed.discard(run)
        self._pump()

    def _notify(self) -> None:
        waiters, self._idle = self._idle, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    # Runs that are late

    def outlast(self, call: asyncio.Future[Any], settle: Callable[[], object]) -> None:
        """A call in a thread goes on after its run, which gives its place to others; `settle` at its end."""

        def ended(_: asyncio.Future[Any]) -> None:
            self._outlasting -= 1
            settle()
            self._pump()

        self._outlasting += 1
        call.add_done_callback(ended)

    def _cancelled(self, run: asyncio.Task[Any]) -> None:
        """The time of a run is up. One that does not heed that must not take the place of others."""
        self._clock.call_later(round(PATIENCE_SECONDS * _NANOS), lambda: self._leave_behind(run))

    def _leave_behind(self, run: asyncio.Task[Any]) -> None:
        entry = self._runs.get(run)
        if entry is not None and run in self._placed and self._limits.ignored(run):
            logger.error("the run of entity %s does not heed its cancellation, and is left behind", entry.id)
            self._placed.discard(run)
            self._left_behind(entry)
            self._pump()
