"""What can be done with an execution as a whole, whatever its machines are."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Final

from hsm.engine import _closing, _deletion, _history, _pausing, _refresh
from hsm.engine._children import ChildInfo
from hsm.engine._executions import Executions
from hsm.engine._family import children_of
from hsm.engine._logs import engine_logger
from hsm.engine._shards import Shards
from hsm.engine._translation import translated
from hsm.engine.info import HistoryEntry
from hsm.engine.options import EngineOptions
from hsm.errors import StorageUnavailableError
from hsm.machine import Key
from hsm.ref import ExecutionKey
from hsm.registry import Registry
from hsm.tree import Node
from persistence.errors import PersistenceError
from persistence.store import EngineStore

__all__ = ["Operations"]

_log: Final = engine_logger()


class Operations:
    """The part of an engine that is about executions as a whole."""

    _store: EngineStore
    _options: EngineOptions
    _executions: Executions
    _shards: Shards
    _registry: Registry

    async def terminate(self, key: ExecutionKey, reason: str = "", *, request_id: str = "") -> None:
        """Close an execution by force, whatever its machines say.

        Its pending tasks do not run any more, and all later writes are refused; it can still be read. What
        runs at this moment goes on, and is refused what it writes. Only how its children end is still noted.
        A request with an id that was carried out already does nothing.

        Raises:
            ExecutionClosedError: it is closed already.
            ExecutionNotFoundError: there is no such execution.
        """
        limit = self._options.delete_rows
        partition = self._executions.partition(key)
        notice = self._tells_others(partition)
        await _closing.terminate(self._executions, self._store, limit, key, reason, request_id, notice=notice)
        self._shards.notify(partition)

    async def cancel(self, key: ExecutionKey, reason: str = "", *, request_id: str = "") -> None:
        """Ask an execution to end: a transition of its root, whose data is `Cancellable`.

        A request with an id that was carried out already does nothing.

        Raises:
            NotCancellableError: the data of the root has no `request_cancel`.
            ExecutionClosedError: it is closed already.
            ExecutionNotFoundError: there is no such execution.
        """
        await _closing.cancel(self._executions, key, reason, request_id)

    async def pause(self, key: ExecutionKey, path: Sequence[Key] = ()) -> None:
        """Let no task of an execution run from now on, or of the machine at `path` and those below it.

        What runs at this moment goes on. Everything can be read and written as before, and transitions ask
        for tasks as ever; these are put aside when they come up, and no attempt is counted. Another process
        that runs the shard learns of it within its poll interval.

        Raises:
            ExecutionClosedError: it was terminated.
            StateMachineNotFoundError: there is no machine at `path`.
            ExecutionNotFoundError: there is no such execution.
        """
        partition = self._executions.partition(key)
        await _pausing.pause(self._executions, key, path, notice=self._tells_others(partition))
        self._shards.notify(partition)

    async def resume(self, key: ExecutionKey, path: Sequence[Key] | None = None) -> None:
        """Let the tasks run again: of all machines, or of those that were paused by this `path`.

        Tasks that have come up meanwhile, timers too, run at once. After an error it can be called again.

        Raises:
            ExecutionClosedError: it was terminated.
            ExecutionNotFoundError: there is no such execution.
        """
        await self._sweep(await _pausing.resume(self._executions, key, path))

    async def delete(self, key: ExecutionKey, *, force: bool = False) -> None:
        """Delete an execution that is closed, or with `force` any; its tasks and dead letters, too.

        From the first commit on nobody finds it any more, and its id is free; its rows are deleted after
        that, if need be by whoever runs the shard. A run id must not be used again.

        Raises:
            ExecutionRunningError: it is not closed, or its parent or its children have not heard of that.
            ExecutionNotFoundError: there is no such execution.
        """
        partition = await _deletion.delete(self._executions, self._store, key, force=force)
        try:
            await self._sweep(partition)
        except StorageUnavailableError as error:
            _log.info("the rows of a deleted execution are left to be swept later: %s", error)

    async def refresh(self, key: ExecutionKey) -> None:
        """Let all machines of an execution name their tasks anew, in place of those that they wait for.

        For when tasks were lost, or are wrong because the program that asked for them was. Attempts begin
        again, and dead letters of the old tasks are deleted. Only machines that are a `TaskRegenerator` are
        asked; the others keep their tasks. Semantics: Temporal's full refresh.

        Raises:
            ExecutionClosedError: it was terminated.
            ExecutionNotFoundError: there is no such execution.
        """
        await _refresh.refresh(self._executions, key)

    async def children(self, key: ExecutionKey) -> Sequence[ChildInfo]:
        """The child executions that the machines of an execution stand for, in the order of the tree.

        All of the tree is read. What it knows of a child is what the child has told: that it is closed. That
        is so, too, if the parent itself was closed before.

        Raises:
            ExecutionNotFoundError: there is no such execution.
        """
        return await children_of(self._executions, key)

    def history(self, key: ExecutionKey, *, after: int = 0) -> AsyncIterator[HistoryEntry]:
        """What each commit has changed, oldest first; nothing if the execution was started without history.

        With `after`, only the commits behind the one with this count; see `HistoryEntry.version`.

        Raises:
            ExecutionNotFoundError: there is no such execution.
        """
        return _history.history(self._executions, self._store, key, after)

    async def tree_at(self, key: ExecutionKey, transition_count: int) -> Node:
        """The tree as it was after the commit with this count: a copy, whose changes are kept by nobody.

        The counts are those of `HistoryEntry.version`. All changes from the start on are read.

        Raises:
            NoHistoryError: nothing is known of such a commit, see `start(history=True)`, or of one before it
                that another cluster has written.
            ExecutionNotFoundError: there is no such execution.
        """
        return await _history.tree_at(self._executions, self._store, self._registry, key, transition_count)

    async def _sweep(self, partition: str) -> None:
        try:
            await self._shards.sweep_now(partition)
        except PersistenceError as error:
            raise translated(error) from error

    def _tells_others(self, partition: str) -> bool:
        """Whether somebody else may run tasks of this shard, and has to be told."""
        return partition not in self._shards.loader
