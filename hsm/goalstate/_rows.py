"""Entities in the store: rows are read, and changed by compare-and-set with all that follows from them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Final, NamedTuple, TypeVar

from hsm.engine._execution import decode_row
from hsm.goalstate._life import index_rows
from persistence.errors import ETagMismatchError
from persistence.executions import AFTER_SLASH, shard_of
from persistence.goals import entity_key, goal_partition
from persistence.proto.goal_pb2 import GoalRow
from persistence.store import (
    ABSENT,
    CheckRequest,
    Concurrency,
    DeleteRequest,
    EngineStore,
    GetRequest,
    Item,
    Operation,
    SetOptions,
    SetRequest,
)

__all__ = ["EntityKey", "GoalRows", "uninterrupted"]

ResultT = TypeVar("ResultT")

_FIRST_WRITE: Final = SetOptions(concurrency=Concurrency.FIRST_WRITE)


class EntityKey(NamedTuple):
    """The name of an entity in the store."""

    kind: str
    id: str


class GoalRows:
    """The rows of all shards of one database."""

    def __init__(self, store: EngineStore, shards: int) -> None:
        self._store = store
        self._shards = shards
        self.partitions: list[str] = [goal_partition(shard) for shard in range(shards)]

    def shard(self, key: EntityKey) -> int:
        """The shard of an entity."""
        return shard_of(key.kind, key.id, self._shards)

    def partition(self, key: EntityKey) -> str:
        """The partition of an entity."""
        return self.partitions[self.shard(key)]

    async def load(self, key: EntityKey) -> tuple[GoalRow | None, str | None]:
        """The row of an entity and its etag; None if there is none.

        Raises:
            SerializationError: the row cannot be read.
        """
        row_key = entity_key(*key)
        request = GetRequest(partition=self.partition(key), key=row_key)
        found = await self._store.get(request)
        if found.data is None:
            return None, None
        return decode_row(GoalRow, row_key, found.data), found.etag

    async def change(
        self, key: EntityKey, change: Callable[[GoalRow | None], GoalRow | None]
    ) -> tuple[GoalRow | None, bool]:
        """Change the row of an entity; the row as it is then, and whether it was changed.

        `change` makes a new row out of the present one, or None to delete it. It is asked again when somebody
        else was faster, and must not change what it is given.
        """
        while True:
            before, etag = await self.load(key)
            after = change(before)
            if after == before:
                return before, False
            try:
                await self._store.multi(self._operations(key, before, after, etag))
            except ETagMismatchError:
                continue
            return after, True

    def _operations(
        self, key: EntityKey, before: GoalRow | None, after: GoalRow | None, etag: str | None
    ) -> list[Operation]:
        partition, row_key = self.partition(key), entity_key(*key)
        operations: list[Operation] = []
        if after is None:
            operations.append(DeleteRequest(partition=partition, key=row_key, etag=etag))
        else:
            operations.append(
                SetRequest(
                    partition=partition,
                    key=row_key,
                    value=after.SerializeToString(),
                    etag=etag,
                    options=SetOptions() if etag else _FIRST_WRITE,
                )
            )
        old, new = index_rows(*key, before), index_rows(*key, after)
        operations += [DeleteRequest(partition=partition, key=index) for index in old.keys() - new.keys()]
        operations += [
            SetRequest(partition=partition, key=index, value=value)
            for index, value in new.items()
            if old.get(index) != value
        ]
        return operations

    async def remove_stray(self, key: EntityKey, index: str) -> None:
        """Delete an index row that does not follow from the row of its entity."""
        row, etag = await self.load(key)
        if index in index_rows(*key, row):
            return
        partition = self.partition(key)
        with contextlib.suppress(ETagMismatchError):  # it may follow from the row by now
            await self._store.multi(
                [
                    CheckRequest(partition, entity_key(*key), ABSENT if etag is None else etag),
                    DeleteRequest(partition=partition, key=index),
                ]
            )

    def scan(self, partition: str, start: str, end: str, limit: int | None = None) -> AsyncIterator[Item]:
        """Rows of one shard."""
        return self._store.scan(partition, start, end, limit=limit)

    async def all(self, prefix: str) -> AsyncIterator[Item]:
        """Rows of all shards whose key begins with a letter and a slash."""
        for partition in self.partitions:
            async for item in self._store.scan(partition, prefix, prefix[:-1] + AFTER_SLASH):
                yield item


async def uninterrupted(work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Do something to its end, also if this task is cancelled meanwhile, which is told of afterwards."""
    task = asyncio.get_running_loop().create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if not task.done():
            await asyncio.wait((task,))
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error from None
        raise
