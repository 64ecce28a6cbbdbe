"""The goal-state engine in memory: entities are evaluated when they are due, and acted upon."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self

import attrs

from hsm.engine.clock import from_nanos, nanos_of
from hsm.goalstate._dispatcher import Dispatcher
from hsm.goalstate._entry import Entry, due_after, due_at
from hsm.goalstate._evaluation import Evaluation
from hsm.goalstate._pauses import Pauses, Verdict, error_text
from hsm.goalstate.entity import AnyEntity, Run
from hsm.goalstate.options import Options, Priority

__all__ = ["DeadEntity", "Engine"]

_NOTHING = timedelta()


@attrs.frozen
class DeadEntity:
    """An entity that was given up: its last error was terminal, or there were too many.

    Attributes:
        id: of the entity.
        error: what its last run has met, as type and text.
        failures: runs that have failed one after the other.
        time: when it was given up.
        kind: of the entity, in durable mode.
    """

    id: str
    error: str
    failures: int
    time: datetime
    kind: str = ""


class Engine:
    """Brings entities to their goals: `async with Engine(options) as engine: engine.enqueue(entity)`.

    An entity that was enqueued is evaluated when its deadline comes: its state and goal are read, and the
    actions for the two run in order. If one fails, the list is given up, and the entity evaluated again after
    a pause. If all succeed, nothing follows until somebody enqueues it again; so do it whenever its goal is
    set or something has happened to it.

    * The earliest deadline wins; a later one is ignored, unless it is to `replace` the earlier.
    * Entities run side by side, each of them once at a time. Enqueued while it runs, it runs once more.
    * Pauses grow with each failure, and are forgotten when a whole list has succeeded.
    * `TerminalError` gives the entity up (`dead`), until it is enqueued again. `RetryLaterError` waits as
      long as it says, and does not count. Both are in `hsm.errors`; whatever else is raised is a failure.
      `EntityNotFoundError` forgets the entity.
    * What is due runs by deadline, and in order of arrival among equal ones; see also `Priority`.

    Everything is in memory: `DurableEngine` remembers. All methods but the coroutines may be called from any
    thread, also before `start` and after `stop`; what was enqueued waits for the next start.

    Semantics: Peloton goal-state engine (2019), with the flaws mended that its users met.
    """

    def __init__(self, options: Options | None = None) -> None:
        self._options = options or Options()
        self._dispatcher = Dispatcher(self._options, self._perform)
        self._pauses = Pauses(self._options)
        self._entries: dict[str, Entry] = {}
        self._dead: dict[str, DeadEntity] = {}
        self._leaving = 0

    @property
    def name(self) -> str:
        """As the options say."""
        return self._options.name

    @property
    def total(self) -> int:
        """Entities that the engine knows: enqueued once, and not deleted since."""
        return len(self._entries) - self._leaving

    @property
    def queue_length(self) -> int:
        """Entities that are scheduled."""
        return self._dispatcher.queue_length

    @property
    def in_flight(self) -> int:
        """Entities that are run now, but for those whose time is up and that have not ended."""
        return self._dispatcher.in_flight

    def now(self) -> datetime:
        """The time, by the engine's clock."""
        return from_nanos(self._options.clock.time_ns())

    # Life

    async def start(self) -> None:
        """Begin to evaluate what is due; nothing if that is so already."""
        if not self._dispatcher.started:
            if self._options.metrics is not None:
                self._options.metrics.opened(self)
            self._dispatcher.start()
        await asyncio.sleep(0)

    async def stop(self, *, drain: bool = True) -> None:
        """Begin no evaluation any more, and wait for the end of those that run.

        With `drain` they have as long as the options say, without it they are cancelled at once. Nothing is
        lost: what was cancelled is due again, and waits with all that was scheduled for the next `start`.
        """
        if self._dispatcher.started and self._options.metrics is not None:
            self._options.metrics.closed(self)
        await self._dispatcher.stop(self._options.drain_timeout if drain else _NOTHING)

    async def drain(self) -> None:
        """Wait until no entity runs and none is due."""
        await self._dispatcher.drain()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop(drain=error is None)

    # Entities

    def enqueue(
        self,
        entity: AnyEntity,
        deadline: datetime | None = None,
        *,
        replace: bool = False,
        priority: Priority = Priority.NORMAL,
    ) -> None:
        """Let an entity be evaluated at `deadline`, or now; a dead one lives again.

        Args:
            entity: a later object of the same id takes the place of an earlier one.
            deadline: aware; one that has passed is now.
            replace: whether a later deadline than the present one counts.
            priority: LOW for entities that were only found again after a restart.

        Raises:
            TypeError: the deadline has no time zone.
        """
        due = self._options.clock.time_ns() if deadline is None else due_at(deadline)
        self._enqueue(entity, due, replace=replace, low=priority is Priority.LOW)

    def recover(self, entities: Iterable[AnyEntity], *, spread: timedelta = timedelta(seconds=10)) -> None:
        """Enqueue many entities after a restart: at a low priority, and spread by chance over a while."""
        now, width = self._options.clock.time_ns(), nanos_of(spread)
        chance: random.Random = self._options.random
        for entity in entities:
            self._enqueue(entity, now + round(chance.random() * width), replace=False, low=True)

    def unschedule(self, id_: str) -> bool:
        """Do not evaluate an entity before it is enqueued again; whether it was scheduled."""
        with self._dispatcher.lock:
            entry = self._entries.get(id_)
            if entry is None:
                return False
            if entry.busy:
                asked, entry.again = entry.again, None
                return asked is not None
            return self._dispatcher.unschedule(entry)

    def delete(self, id_: str) -> None:
        """Forget an entity. Actions of it that run go on; nothing follows them."""
        with self._dispatcher.lock:
            entry = self._entries.get(id_)
            if entry is None or entry.deleted:
                return
            self._dead.pop(id_, None)
            if entry.busy:
                entry.deleted = True
                entry.again = None
                self._leaving += 1
            else:
                self._dispatcher.unschedule(entry)
                del self._entries[id_]

    def is_scheduled(self, id_: str) -> bool:
        """Whether an entity will be evaluated, not counting a run that is under way. Never waits."""
        return self.deadline(id_) is not None

    def deadline(self, id_: str) -> datetime | None:
        """When an entity will be evaluated next; None if it is not scheduled."""
        with self._dispatcher.lock:
            entry = self._entries.get(id_)
            if entry is None:
                return None
            due = entry.again if entry.busy else self._dispatcher.deadline(entry)
            return None if due is None else from_nanos(due)

    def is_running(self, id_: str) -> bool:
        """Whether actions of an entity run, or have not ended though their time is up."""
        entry = self._entries.get(id_)
        return entry is not None and entry.busy

    def failures(self, id_: str) -> int:
        """How many runs of an entity have failed one after the other."""
        entry = self._entries.get(id_)
        return 0 if entry is None else entry.failures

    def dead(self) -> list[DeadEntity]:
        """The entities that were given up."""
        with self._dispatcher.lock:
            return list(self._dead.values())

    # Runs

    def _enqueue(self, entity: AnyEntity, due: int, *, replace: bool, low: bool) -> None:
        id_ = entity.id
        with self._dispatcher.lock:
            entry = self._entries.get(id_)
            if entry is None:
                entry = self._entries[id_] = Entry(id_)
            elif entry.deleted:
                # Another entity, which must not run before the run of the old one has ended.
                entry.deleted = False
                entry.failures = entry.tries = 0
                self._leaving -= 1
            if self._dead and self._dead.pop(id_, None) is not None:
                entry.failures = entry.tries = 0
            entry.entity = entity
            if entry.busy:
                entry.low = entry.low and low
                if replace:
                    entry.again = due
                else:
                    entry.ask_again(due)
                return
            if replace:
                self._dispatcher.unschedule(entry)
            # What waits because something has happened does not lose its priority by being recovered, too.
            entry.low = low and (entry.low or self._dispatcher.deadline(entry) is None)
            self._dispatcher.schedule(entry, due)

    async def _perform(self, entry: Entry) -> None:
        entity = entry.entity
        assert entity is not None
        evaluation = Evaluation()
        run = Run(entry.id, self.now, entry.tries + 1)
        try:
            await self._dispatcher.evaluator.evaluate(lambda: entity, run, evaluation)
        finally:
            leftover = evaluation.leftover
            if leftover is None or leftover.done():
                self._settle(entry, run, evaluation)
            else:
                # Its place is free when this task has ended; the entity is not, before the thread has.
                self._dispatcher.outlast(leftover, lambda: self._settle(entry, run, evaluation))

    def _settle(self, entry: Entry, run: Run, evaluation: Evaluation) -> None:
        """Decide what follows a run."""
        now = self._options.clock.time_ns()
        with self._dispatcher.lock:
            entry.busy = False
            if entry.deleted:
                self._leaving -= 1
                del self._entries[entry.id]
                return
            asked, entry.again = entry.again, None
            if not evaluation.finished:
                # The engine was stopped: nothing is known of the entity, but that it has still to be run.
                self._dispatcher.schedule(entry, entry.due if asked is None else min(asked, entry.due))
                return
            verdict, pause = self._pauses.judge(entry, evaluation.error)
            wanted = run.wanted_again
            if wanted is not None:
                pause_asked = due_after(now, wanted)
                asked = pause_asked if asked is None else min(asked, pause_asked)
            if verdict is Verdict.GONE:
                if asked is None:
                    del self._entries[entry.id]
            elif verdict is Verdict.RETRY:
                asked = now + pause if asked is None else min(asked, now + pause)
            elif verdict is Verdict.DONE:
                entry.low = entry.low and asked is not None
            elif asked is None:
                self._bury(entry, evaluation.error, now)
            else:
                # It was enqueued while it ran: what it has died of may be over.
                entry.failures = entry.tries = 0
            if asked is not None:
                self._dispatcher.schedule(entry, asked)
        self._pauses.tell(entry, verdict, evaluation.error)

    def _bury(self, entry: Entry, error: Exception | None, now: int) -> None:
        text = "" if error is None else error_text(error)
        self._dead[entry.id] = DeadEntity(entry.id, text, entry.failures, from_nanos(now))
