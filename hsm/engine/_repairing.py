"""Repairing: when lost queue rows are looked for, and by whom."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Final

from hsm.engine._commit import tasks_of
from hsm.engine._execution import Execution
from hsm.engine._executions import Executions
from hsm.engine._lookup import have_rows
from hsm.engine._queues import Dispatcher
from hsm.engine._repair import executions_to_repair, repair
from hsm.engine._shards import Shards
from hsm.engine._translation import translated
from hsm.engine.options import EngineOptions
from hsm.errors import ExecutionNotFoundError
from hsm.ref import ExecutionKey
from hsm.registry import Registry
from persistence import errors as storage
from persistence.proto.hsm_pb2 import StateMachineTask
from persistence.store import EngineStore

__all__ = ["Repairs"]

_REMEMBERED: Final = 10_000


class Repairs:
    """The part of an engine that finds tasks without rows."""

    _store: EngineStore
    _options: EngineOptions
    _executions: Executions
    _registry: Registry
    _shards: Shards
    _dispatcher: Dispatcher

    def __init__(self) -> None:
        # Executions that this process has looked at.
        self._examined: OrderedDict[ExecutionKey, None] = OrderedDict()
        # Two who repair one execution would only make one another begin again.
        self._one_by_one = asyncio.Lock()

    async def repair(self, key: ExecutionKey | None = None) -> int:
        """Write anew the queue rows that pending tasks have lost; how many there were.

        Commits lose none. They may be lost in a database that was changed by hand, damaged, or restored in
        part: what the machines wait for is the truth, and is written into the queues again, with its attempts
        forgotten. See also `EngineOptions.repair_loaded`.

        Args:
            key: the execution to look at; None for all of them, which reads the whole database.

        Raises:
            ExecutionNotFoundError: there is no such execution.
        """
        if key is not None:
            return await self._repair(await self._executions.resolve(key))
        try:
            return sum([await self._repair_all(partition) for partition in self._shards.partitions])
        except storage.PersistenceError as error:
            raise translated(error) from error

    async def _repair_shard(self, partition: str) -> None:
        await self._repair_all(partition)

    async def _repair_all(self, partition: str) -> int:
        count = 0
        async for suspect in executions_to_repair(self._store, partition):
            # Deleted since.
            with contextlib.suppress(ExecutionNotFoundError):
                count += await self._repair(suspect)
        return count

    async def _repair(self, key: ExecutionKey) -> int:
        partition = self._executions.partition(key)
        now = self._options.clock.time_ns()
        async with self._one_by_one:
            try:
                tasks = await repair(
                    self._store,
                    self._registry,
                    key,
                    partition,
                    now,
                    self._dispatcher.get,
                    self._options.cluster,
                )
            except storage.PersistenceError as error:
                raise translated(error) from error
            if tasks:
                # It has another etag.
                self._executions.forget(key)
            for task in tasks:
                # What it knew of its row is out of date.
                self._dispatcher.discard(task.id)
            self._shards.queued(partition, tasks)
        return len(tasks)

    def _loaded(self, execution: Execution) -> None:
        """Look in the background whether an execution that was just read waits for tasks without rows; once.

        What is in memory has its row. The row of a task that waits for its next try may be anywhere among the
        timers: only if all of them are in memory, it is known what is not there.
        """
        key = execution.key
        if execution.held or key in self._examined:
            return
        if not self._shards.loader.has_all_timers(execution.partition):
            return
        self._examined[key] = None
        if len(self._examined) > _REMEMBERED:
            self._examined.popitem(last=False)
        in_memory = self._dispatcher.tasks
        tasks = [
            task
            for task in (*execution.root._tasks, *tasks_of(execution.table.values))
            if not task.dead and task.id not in in_memory
        ]
        if tasks:
            self._shards.spawn(partial(self._examine, key, execution.partition, tasks))

    async def _examine(self, key: ExecutionKey, partition: str, tasks: Sequence[StateMachineTask]) -> None:
        try:
            if not await have_rows(self._store, partition, key, tasks):
                await self._repair(key)
        except ExecutionNotFoundError:
            return
        except BaseException:
            self._examined.pop(key, None)
            raise
