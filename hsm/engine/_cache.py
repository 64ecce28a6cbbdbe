"""The cache: trees in memory, each with its lock, and whether they are still as they are in the store."""

from __future__ import annotations

import asyncio
import itertools
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from hsm.engine._execution import Execution, decode_row, load_execution, load_part
from hsm.engine._translation import translated
from hsm.engine.options import EngineOptions
from hsm.errors import ExecutionNotFoundError, ReentrantTransitionError
from hsm.ref import ExecutionKey
from hsm.registry import Registry
from hsm.tree import MissingPart
from persistence import errors as storage
from persistence.executions import current_run_key, execution_key, shard_of, shard_partition
from persistence.proto.execution_pb2 import CurrentRun, ExecutionRow
from persistence.store import EngineStore, GetRequest

__all__ = ["Cache"]

_EVICTED_AT_ONCE: Final = 2
_WHOLE_TREE: Final = MissingPart((), subtree=True)


class Cache:
    """The executions that this process has in memory. A tree here is only a guess: the store knows."""

    def __init__(
        self, store: EngineStore, registry: Registry, options: EngineOptions, shard_count: int
    ) -> None:
        self._store = store
        self._registry = registry
        self._options = options
        self._shard_count = shard_count
        self.loaded: Callable[[Execution], None] = _nothing_to_tell
        self.cluster = options.cluster
        self._cache: OrderedDict[ExecutionKey, Execution] = OrderedDict()

    def partition(self, key: ExecutionKey) -> str:
        """The partition of an execution."""
        return shard_partition(shard_of(key.namespace, key.id, self._shard_count))

    async def resolve(self, key: ExecutionKey) -> ExecutionKey:
        """The key with its run id.

        Raises:
            ExecutionNotFoundError: the id has no run.
        """
        if key.run_id:
            return key
        row = current_run_key(key.namespace, key.id)
        try:
            found = await self._store.get(GetRequest(partition=self.partition(key), key=row))
        except storage.PersistenceError as error:
            raise translated(error) from error
        if found.data is None:
            raise ExecutionNotFoundError(f"there is no execution {key.namespace}/{key.id}")
        return key._replace(run_id=decode_row(CurrentRun, row, found.data).run_id)

    async def stored_row(self, key: ExecutionKey) -> tuple[ExecutionRow, str | None]:
        """The row of a run as it is in the store now, and its etag.

        Raises:
            ExecutionNotFoundError: there is no such run.
        """
        row_key = execution_key(*key)
        try:
            found = await self._store.get(GetRequest(partition=self.partition(key), key=row_key))
        except storage.PersistenceError as error:
            raise translated(error) from error
        if found.data is None:
            raise ExecutionNotFoundError(
                f"there is no execution {key.namespace}/{key.id} (run {key.run_id!r})"
            )
        return decode_row(ExecutionRow, row_key, found.data), found.etag

    def cached(self, key: ExecutionKey) -> Execution | None:
        """An execution that is in memory."""
        return self._cache.get(key)

    def admit(self, execution: Execution) -> None:
        """Put an execution into the cache, and one or two that were used long ago out of it."""
        cache = self._cache
        cache[execution.key] = execution
        if len(cache) > self._options.cached_executions:
            for other in list(itertools.islice(cache.values(), _EVICTED_AT_ONCE)):
                if other is execution or other.lock.locked():
                    # In use; nor may it keep the others from being looked at.
                    cache.move_to_end(other.key)
                else:
                    self.evict(other)

    def retire(self, execution: Execution) -> None:
        """Let go of an execution that is closed and waits for nothing: it will hardly be asked for again."""
        if execution.row.close_nanos and not execution.decoded:
            self.evict(execution)

    def evict(self, execution: Execution) -> None:
        """Take an execution out of the cache; whoever waits for it loads it anew."""
        execution.stale = True
        if self._cache.get(execution.key) is execution:
            del self._cache[execution.key]

    def forget(self, key: ExecutionKey) -> None:
        """Read an execution anew when it is needed next."""
        execution = self._cache.get(key)
        if execution is not None:
            self.evict(execution)

    async def acquire(self, key: ExecutionKey, *, fresh: bool) -> Execution:
        """The execution, locked; if `fresh`, as it is in the store now.

        Raises:
            ReentrantTransitionError: this asyncio task holds it already.
        """
        while True:
            execution = self._cache.get(key)
            loaded = False
            if execution is None:
                execution, loaded = await self._load(key)
            else:
                self._cache.move_to_end(key)
            if execution.owner is not None and execution.owner is asyncio.current_task():
                raise ReentrantTransitionError(
                    f"execution {key.namespace}/{key.id} is held by this task already"
                )
            await execution.lock.acquire()
            try:
                usable = not execution.stale and (loaded or not fresh or await self._is_current(execution))
            except BaseException:
                execution.lock.release()
                raise
            if usable:
                return execution
            self.evict(execution)
            execution.lock.release()

    async def _load(self, key: ExecutionKey) -> tuple[Execution, bool]:
        """The execution, and whether it was read just now: somebody may have loaded it meanwhile."""
        try:
            execution = await load_execution(
                self._store, self._registry, key, self.partition(key), self._options.loaded_nodes
            )
        except storage.PersistenceError as error:
            raise translated(error) from error
        other = self._cache.get(key)
        if other is not None:
            return other, False
        execution.join(self.cluster)
        self.admit(execution)
        self.loaded(execution)
        return execution, True

    async def _is_current(self, execution: Execution) -> bool:
        try:
            found = await self._store.get(GetRequest(partition=execution.partition, key=execution.row_key))
        except storage.PersistenceError as error:
            raise translated(error) from error
        return found.etag == execution.etag

    async def load_part(self, execution: Execution, part: MissingPart) -> bool:
        """Load a part that is missing; False if the execution has moved on meanwhile."""
        try:
            return await load_part(self._store, execution, part)
        except storage.PersistenceError as error:
            raise translated(error) from error

    async def load_whole(self, execution: Execution) -> bool:
        """Load all that is not loaded; False if the execution has moved on meanwhile."""
        return execution.table.complete or await self.load_part(execution, _WHOLE_TREE)


def _nothing_to_tell(_: Execution) -> None:
    """For those who do not care which executions are read."""
