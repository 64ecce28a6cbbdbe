"""The reader: finds in the shards of this process what is due, and whose run has ended with its process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine
from typing import Any, Final, Protocol

from hsm.engine._bell import Bell
from hsm.engine._execution import decode_row
from hsm.engine._leases import Leases, keep
from hsm.engine._stopping import PATIENCE_SECONDS
from hsm.engine.clock import nanos_of, sleep_for
from hsm.engine.ids import IdSource
from hsm.errors import SerializationError
from hsm.goalstate._life import is_running
from hsm.goalstate._logs import logger
from hsm.goalstate._rows import EntityKey, GoalRows
from hsm.goalstate.options import DurableOptions
from persistence.errors import PersistenceError, StoreUnavailableError
from persistence.executions import AFTER_SLASH
from persistence.goals import GOAL_SETTINGS_PARTITION, parse_entity_key, scheduled_prefix
from persistence.proto.goal_pb2 import GoalClaim
from persistence.store import EngineStore

__all__ = ["Reader"]

_NANOS: Final = 10**9
_AHEAD: Final = 2  # polls
# A store that does not answer yet keeps nobody from going on.
_FIRST_LOOK_SECONDS: Final = 2.0


class Holder(Protocol):
    """Holds the entities of this process in memory."""

    def __contains__(self, key: object) -> bool: ...

    def knows(self, kind: str) -> bool:
        """Whether entities of a kind can be run here."""
        ...

    def is_own(self, claim: GoalClaim) -> bool:
        """Whether this process has made a claim."""
        ...

    def offer(self, key: EntityKey, index: str, due: int, *, recovered: bool = False) -> bool:
        """Take an entity that is due soon; whether it was not there."""
        ...

    def leave_alone(self, key: EntityKey, error: Exception) -> None:
        """A row of an entity cannot be read."""
        ...

    def forget_shard(self, partition: str) -> None:
        """A shard is somebody else's now."""
        ...

    def resume(self) -> None:
        """Go on: the lease was renewed."""
        ...


class Reader:
    """Reads the queues of the shards that this process runs, a window of each.

    What was overdue already when the shard was taken over is recovered: it becomes due bit by bit, and after
    what is new.
    """

    def __init__(
        self,
        store: EngineStore,
        rows: GoalRows,
        options: DurableOptions,
        holder: Holder,
    ) -> None:
        self._rows = rows
        self._options = options
        self._holder = holder
        self._poll = nanos_of(options.poll_interval)
        ids = IdSource(options.random)
        self._leases = Leases(
            store,
            len(rows.partitions),
            options.lease_seconds,
            lambda: ids.new(options.clock.time_ns()),
            self._take,
            self._leave,
            partition=GOAL_SETTINGS_PARTITION,
        )
        self._bell = Bell(store, self._spawn, partition=GOAL_SETTINGS_PARTITION)
        # The time before which what is due in a shard counts as recovered.
        self._taken: dict[str, int] = {}
        self._full: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._settled: asyncio.Future[None] | None = None
        self._waker: asyncio.Future[None] | None = None
        self._again = False
        self._next_slot = 0
        self._answers = True

    def valid(self) -> bool:
        """Whether what is ours is certainly nobody else's."""
        return self._leases.valid()

    def owns(self, partition: str) -> bool:
        """Whether this process runs a shard."""
        return partition in self._taken

    @property
    def horizon(self) -> int:
        """What is due later is left in the store for now."""
        return self._options.clock.time_ns() + _AHEAD * self._poll

    def notify(self, partition: str) -> None:
        """Tell whoever runs a shard to look at it."""
        if partition not in self._taken:
            self._bell.ring(self._rows.partitions.index(partition))

    def has_room(self, partition: str) -> None:
        """Much of what was read of a shard is done: read on, if there was more."""
        if partition in self._full:
            self._full.discard(partition)
            self._look_again()

    # Life

    async def start(self) -> None:
        """Take our shards, and begin to read."""
        self._settled = asyncio.get_running_loop().create_future()
        self._spawn(lambda: keep(self._leases, self._options.clock, self._renewed))
        await asyncio.wait((self._settled,), timeout=_FIRST_LOOK_SECONDS)
        self._spawn(self._keep_reading)
        if self._bell.audible:
            self._spawn(self._keep_listening)

    async def stop(self) -> None:
        """Read no more."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def release(self) -> None:
        """Give the shards back; if the store does not take them, time does."""
        self._taken.clear()
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self._leases.close()
        except (PersistenceError, TimeoutError) as error:
            logger.info("the leases of this process are left to run out: %r", error)

    def _spawn(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = asyncio.get_running_loop().create_task(self._guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await work()
        except Exception:  # noqa: BLE001 - it is logged, with its traceback
            logger.exception("something in the background has failed")

    # Shards

    def _renewed(self) -> None:
        if self._settled is not None and not self._settled.done():
            self._settled.set_result(None)
        if self._leases.valid():
            self._holder.resume()

    def _take(self, shard: int) -> None:
        self._taken[self._rows.partitions[shard]] = self._options.clock.time_ns()
        self._look_again()

    async def _leave(self, shards: Collection[int], patience: float) -> None:  # noqa: ARG002 - claims go on
        for shard in shards:
            partition = self._rows.partitions[shard]
            self._taken.pop(partition, None)
            self._holder.forget_shard(partition)

    # Reading

    async def look(self) -> bool:
        """Read the shards now; whether there was something new that is due."""
        found = False
        for partition in list(self._taken):
            found |= await self._look_at(partition)
        return found

    async def _look_at(self, partition: str) -> bool:
        taken = self._taken.get(partition)
        if taken is None:
            # It was lost while others were read.
            return False
        found = await self._running(partition)
        found |= await self._scheduled(partition, taken, self.horizon, recovered=False)
        return found | await self._scheduled(partition, 0, taken, recovered=True)

    async def _scheduled(self, partition: str, start: int, end: int, *, recovered: bool) -> bool:
        """Read a window of what is due in a time."""
        window, now = self._options.window, self._options.clock.time_ns()
        left, found = window, False
        first, last = scheduled_prefix(start), scheduled_prefix(end)
        while left > 0:
            count = 0
            async for item in self._rows.scan(partition, first, last, window):
                count += 1
                first = item.key + "\x01"
                key = EntityKey(*parse_entity_key(item.key))
                # What nobody here can run must not stand in the way of the others.
                if self._holder.knows(key.kind) and partition in self._taken:
                    left -= 1
                    due = int(item.key.split("/", 2)[1])
                    found |= self._holder.offer(key, item.key, due, recovered=recovered) and due <= now
            if count < window:
                return found
        self._full.add(partition)
        return found

    async def _running(self, partition: str) -> bool:
        """Claims that have ended, or nobody works under: their entities are due."""
        found, now = False, self._options.clock.time_ns()
        async for item in self._rows.scan(partition, "r/", "r" + AFTER_SLASH):
            key = EntityKey(*parse_entity_key(item.key))
            if key in self._holder or not self._holder.knows(key.kind) or partition not in self._taken:
                continue
            try:
                claim = decode_row(GoalClaim, item.key, item.value)
            except SerializationError as error:
                # One row must not hold up all others of the shard.
                self._holder.leave_alone(key, error)
                continue
            if not is_running(claim, now) or self._holder.is_own(claim):
                found |= self._holder.offer(key, item.key, now, recovered=True)
        return found

    def slot(self) -> int:
        """When the next of the recovered entities becomes due."""
        interval = _NANOS / self._options.recovery_rate
        now = self._options.clock.time_ns()
        slot = max(self._next_slot, now)
        self._next_slot = slot + round(interval * 2 * self._options.random.random())
        return slot

    async def _keep_reading(self) -> None:
        while True:
            self._again = False
            try:
                await self.look()
                if not self._answers:
                    self._answers = True
                    logger.warning("the store answers again")
            except StoreUnavailableError as error:
                level = logging.WARNING if self._answers else logging.DEBUG
                logger.log(level, "the store did not answer, and is asked again: %s", error)
                self._answers = False
            except Exception:  # noqa: BLE001 - it is logged, with its traceback
                logger.exception("the queues could not be read, which is tried again")
            if not self._again:
                self._waker = asyncio.get_running_loop().create_future()
                await sleep_for(self._options.clock, self._poll, self._waker)

    def _look_again(self) -> None:
        self._again = True
        if self._waker is not None and not self._waker.done():
            self._waker.set_result(None)

    async def _keep_listening(self) -> None:
        while True:
            try:
                await self._bell.listen(self._heard, self._leases.hurry)
            except Exception as error:  # noqa: BLE001 - without the bell there are the polls
                logger.info("the store cannot be watched, which is tried again: %r", error)
            await sleep_for(self._options.clock, self._poll, asyncio.get_running_loop().create_future())

    def _heard(self, shard: int | None) -> None:
        if shard is None or self._rows.partitions[shard] in self._taken:
            self._look_again()
