"""The durable goal-state engine: deadlines, attempts and goals are in a store that processes share."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from datetime import datetime, timedelta
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import attrs

from hsm.engine._bell import Bell
from hsm.engine._execution import decode_row
from hsm.engine._settings import shard_count
from hsm.engine.clock import from_nanos
from hsm.goalstate import _life
from hsm.goalstate._entry import due_at
from hsm.goalstate._rows import EntityKey, GoalRows
from hsm.goalstate._runner import Runner
from hsm.goalstate.engine import DeadEntity
from hsm.goalstate.kinds import EntityKind
from hsm.goalstate.options import DurableOptions
from persistence.goals import GOAL_SETTINGS_PARTITION, parse_entity_key
from persistence.proto.goal_pb2 import GoalRow
from persistence.store import EngineStore

__all__ = ["DurableEngine", "EntityInfo"]

GoalT = TypeVar("GoalT", bound=enum.Enum)

_NOTHING: Final = timedelta()


@attrs.frozen
class EntityInfo:
    """What the store knows of an entity.

    Attributes:
        kind: its kind.
        id: its id.
        deadline: when it is evaluated next; None if it is not scheduled.
        running: a process runs it, or has not said that it does not.
        failures: evaluations that have failed one after the other.
        last_error: what the last evaluation has met; "" if nothing.
        goal: the name of its goal, if that is kept here.
        dead: it was given up.
    """

    kind: str
    id: str
    deadline: datetime | None
    running: bool
    failures: int
    last_error: str
    goal: str | None
    dead: bool


class DurableEngine:
    """An `Engine` whose entities survive: `async with DurableEngine(store, kinds) as engine`.

    Entities are named by kind and id; before each run the kind's `load` brings the entity back. Deadlines,
    attempts and, for kinds that say what their goals are, goals are rows of the store, written before
    `enqueue` returns, the goal together with the deadline.

    Processes divide the shards among them by leases. A run claims its entity by compare-and-set, until later
    than it may take; nobody else runs the entity before that, unless the process is known to have ended. So
    one entity is run once at a time. A process that stands still for longer than its claim lasts, and then
    wakes up, may overlap with another one: `Run.fence` tells which run is the later one.

    After a restart, what was overdue becomes due bit by bit, and after what is new.

    Rules and errors are those of `Engine`. To be used in the thread of its event loop.
    """

    def __init__(
        self,
        store: EngineStore,
        kinds: Iterable[EntityKind[Any]] = (),
        options: DurableOptions | None = None,
        *,
        run_entities: bool = True,
    ) -> None:
        """Make an engine.

        Args:
            store: open, and left open.
            kinds: of the entities; those of other kinds are left alone.
            options: the defaults if they are left out.
            run_entities: whether this process evaluates entities, too; else it only enqueues and looks.
        """
        self._store = store
        self._kinds = {kind.name: kind for kind in kinds}
        self._options = options or DurableOptions()
        self._run_entities = run_entities
        self._clock = self._options.clock
        self._rows: GoalRows | None = None
        self._runner: Runner | None = None
        self._bell: Bell | None = None
        self._rings: set[asyncio.Task[None]] = set()

    @property
    def name(self) -> str:
        """As the options say."""
        return self._options.name

    @property
    def total(self) -> int:
        """Entities in memory: those that run, and those that are due soon."""
        return 0 if self._runner is None else len(self._runner)

    @property
    def queue_length(self) -> int:
        """Entities in memory that are scheduled."""
        return 0 if self._runner is None else self._runner.dispatcher.queue_length

    @property
    def in_flight(self) -> int:
        """Entities that are run now, but for those whose time is up and that have not ended."""
        return 0 if self._runner is None else self._runner.dispatcher.in_flight

    def now(self) -> datetime:
        """The time, by the engine's clock."""
        return from_nanos(self._clock.time_ns())

    # Life

    async def start(self) -> None:
        """Take shards, and begin to evaluate what is due; nothing if that is so already.

        Raises:
            StoreUnavailableError: the store does not answer.
        """
        if self._rows is None:
            count = await shard_count(
                self._store, self._options.shard_count, partition=GOAL_SETTINGS_PARTITION
            )
            self._rows = GoalRows(self._store, count)
        if not self._run_entities:
            self._bell = self._bell or Bell(self._store, self._ring, partition=GOAL_SETTINGS_PARTITION)
        elif self._runner is None:
            self._runner = Runner(self._store, self._rows, self._kinds, self._options)
            if self._options.metrics is not None:
                self._options.metrics.opened(self)
            await self._runner.start()

    async def stop(self, *, drain: bool = True) -> None:
        """Begin no evaluation any more, wait for the end of those that run, and give the shards back.

        With `drain` they have as long as the options say, without it they are cancelled at once. What was
        cancelled is due again at once, for whoever is there.
        """
        if self._rings:
            await asyncio.wait(self._rings)
        runner, self._runner = self._runner, None
        if runner is not None:
            if self._options.metrics is not None:
                self._options.metrics.closed(self)
            await runner.stop(self._options.drain_timeout if drain else _NOTHING)

    async def drain(self) -> None:
        """Wait until no entity of this process's shards runs and none is due.

        What was recovered is due bit by bit, and not waited for before.
        """
        if self._runner is not None:
            await self._runner.drain()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop(drain=error is None)

    # Entities

    async def enqueue(
        self,
        kind: EntityKind[GoalT],
        id_: str,
        deadline: datetime | None = None,
        *,
        goal: GoalT | None = None,
        replace: bool = False,
    ) -> None:
        """Let an entity be evaluated at `deadline`, or now; a dead one lives again.

        Args:
            kind: of the entity.
            id_: of the entity.
            deadline: aware; one that has passed is now.
            goal: what it should become from now on; None leaves its goal as it is.
            replace: whether a later deadline than the present one counts.

        Raises:
            TypeError: the deadline has no time zone, or the goal is none of the kind's.
            PersistenceError: the store has not done it.
        """
        now = self._clock.time_ns()
        due = now if deadline is None else max(due_at(deadline), now)
        if goal is not None and (kind.goals is None or not isinstance(goal, kind.goals)):
            raise TypeError(f"{goal!r} is no goal of the kind {kind.name!r}")
        name = None if goal is None else goal.name
        key = EntityKey(kind.name, id_)
        change = partial(_life.enqueued, due=due, goal=name, replace=replace)
        row, _ = await self._opened().change(key, change)
        if row is None or row.HasField("claim"):
            return
        if self._runner is not None:
            self._runner.scheduled(key, row.due_nanos)
        elif self._bell is not None:
            self._bell.ring(self._opened().shard(key))

    async def goal(self, kind: EntityKind[GoalT], id_: str) -> GoalT | None:
        """The goal that is kept for an entity; None if there is none.

        Raises:
            SerializationError: it is none of the kind's.
            PersistenceError: the store does not tell.
        """
        row, _ = await self._opened().load(EntityKey(kind.name, id_))
        if row is None or row.deleted or not row.HasField("goal"):
            return None
        return kind.decode(row.goal)

    async def unschedule(self, kind: EntityKind[Any], id_: str) -> bool:
        """Do not evaluate an entity before it is enqueued again; whether it was scheduled.

        Raises:
            PersistenceError: the store has not done it.
        """
        key = EntityKey(kind.name, id_)
        _, changed = await self._opened().change(
            key, lambda row: row if row is None else _life.unscheduled(row)
        )
        if self._runner is not None:
            self._runner.drop_waiting(key)
        return changed

    async def delete(self, kind: EntityKind[Any], id_: str) -> None:
        """Forget an entity and its goal. Actions of it that run go on; nothing follows them.

        Raises:
            PersistenceError: the store has not done it.
        """
        key = EntityKey(kind.name, id_)
        now = self._clock.time_ns()
        await self._opened().change(key, lambda row: row if row is None else _life.deleted(row, now))
        if self._runner is not None:
            self._runner.drop_waiting(key)

    async def is_scheduled(self, kind: EntityKind[Any], id_: str) -> bool:
        """Whether an entity will be evaluated, not counting a run that is under way.

        Raises:
            PersistenceError: the store does not tell.
        """
        info = await self.describe(kind, id_)
        return info is not None and info.deadline is not None

    async def describe(self, kind: EntityKind[Any], id_: str) -> EntityInfo | None:
        """What the store knows of an entity; None if that is nothing.

        Raises:
            PersistenceError: the store does not tell.
        """
        key = EntityKey(kind.name, id_)
        row, _ = await self._opened().load(key)
        return None if row is None or row.deleted else _info(key, row)

    async def list(self) -> AsyncIterator[EntityInfo]:
        """All entities that the store knows, in no particular order.

        Raises:
            PersistenceError: the store does not tell.
        """
        async for item in self._opened().all("g/"):
            row = decode_row(GoalRow, item.key, item.value)
            if not row.deleted:
                yield _info(EntityKey(*parse_entity_key(item.key)), row)

    async def dead(self) -> AsyncIterator[DeadEntity]:
        """The entities that were given up.

        Raises:
            PersistenceError: the store does not tell.
        """
        async for item in self._opened().all("d/"):
            key = EntityKey(*parse_entity_key(item.key))
            row, _ = await self._opened().load(key)
            if row is not None and row.HasField("death"):
                death = row.death
                yield DeadEntity(key.id, death.error, death.failures, from_nanos(death.time_nanos), key.kind)

    def _opened(self) -> GoalRows:
        if self._rows is None:
            raise RuntimeError("the engine was not started")
        return self._rows

    def _ring(self, work: Callable[[], Coroutine[None, None, None]]) -> None:
        task = asyncio.get_running_loop().create_task(work())
        self._rings.add(task)
        task.add_done_callback(self._rings.discard)


def _info(key: EntityKey, row: GoalRow) -> EntityInfo:
    return EntityInfo(
        kind=key.kind,
        id=key.id,
        deadline=from_nanos(row.due_nanos) if row.due_nanos else None,
        running=row.HasField("claim"),
        failures=row.failures,
        last_error=row.last_error,
        goal=row.goal if row.HasField("goal") else None,
        dead=row.HasField("death"),
    )
