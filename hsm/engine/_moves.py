"""Moves: the row of a task goes where it will be found in time, when memory has no room for the task.

A task that waits for its next try goes among the timers. A timer that is due goes into its queue, so that it
is not in the way of timers of other queues.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Final

from hsm.engine._rows import QueuedTask
from hsm.engine.clock import Clock
from persistence.errors import ETagMismatchError
from persistence.executions import group_prefix, timer_key
from persistence.proto.execution_pb2 import TaskRow
from persistence.store import DeleteRequest, EngineStore, Operation, SetRequest

__all__ = ["Moves"]

_ROWS_A_COMMIT: Final = 50


class Moves:
    """Rows on their way.

    `arrived` is called for each that is written, `lost_sight` for a shard of which some could not be: they
    are where they were, and nobody remembers them.
    """

    def __init__(
        self,
        store: EngineStore,
        clock: Clock,
        spawn: Callable[[Callable[[], Coroutine[None, None, None]]], None],
        arrived: Callable[[QueuedTask], None],
        lost_sight: Callable[[str], None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._spawn = spawn
        self._arrived = arrived
        self._lost_sight = lost_sight
        self._tasks: dict[str, QueuedTask] = {}
        self._lock = asyncio.Lock()

    @property
    def tasks(self) -> Mapping[str, QueuedTask]:
        """Those that are on their way, by id."""
        return self._tasks

    def add(self, task: QueuedTask) -> None:
        """Move the row of a task, soon."""
        if not self._tasks:
            self._spawn(self.flush)
        self._tasks[task.id] = task

    def forget(self, partition: str) -> None:
        """Leave the rows of a shard where they are: somebody else runs it."""
        for task in [task for task in self._tasks.values() if task.partition == partition]:
            del self._tasks[task.id]

    async def flush(self) -> None:
        """Return when what was added is written.

        Raises:
            PersistenceError: it could not be; the rows are where they were.
        """
        async with self._lock:
            while self._tasks:
                partition = next(iter(self._tasks.values())).partition
                batch = [task for task in self._tasks.values() if task.partition == partition]
                batch = batch[: min(_ROWS_A_COMMIT, self._store.limits.operations // 2)]
                try:
                    moved = await self._move_all(batch)
                except BaseException:
                    for task in self._tasks.values():
                        self._lost_sight(task.partition)
                    self._tasks.clear()
                    raise
                for task in batch:
                    self._tasks.pop(task.id, None)
                for task in moved:
                    self._arrived(task)

    async def _move_all(self, batch: Sequence[QueuedTask]) -> Sequence[QueuedTask]:
        """Move rows in one commit, or one by one if somebody has changed one of them; those that were."""
        now = self._clock.time_ns()
        moves = [(task, *_destination(task, now)) for task in batch]
        operations: list[Operation] = []
        for move in moves:
            operations += _operations(*move)
        try:
            etag = await self._store.multi(operations)
        except ETagMismatchError:
            if len(batch) == 1:
                return ()
            return [task for task in batch if await self._move_all([task])]
        for task, key, row in moves:
            task.replace(key, etag, row)
        return batch


def _destination(task: QueuedTask, now: int) -> tuple[str, TaskRow | None]:
    if task.row is None or task.due <= now:
        return group_prefix(*task.queue) + task.id, task.row
    row = TaskRow()
    row.CopyFrom(task.row)
    row.not_before_nanos = task.due
    return timer_key(task.due, task.id), row


def _operations(task: QueuedTask, key: str, row: TaskRow | None) -> list[Operation]:
    value = task.raw if row is None else row.SerializeToString()
    return [
        DeleteRequest(partition=task.partition, key=task.key, etag=task.etag),
        SetRequest(partition=task.partition, key=key, value=value),
    ]
