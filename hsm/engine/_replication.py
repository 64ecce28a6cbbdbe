"""The part of an engine that keeps executions of several databases in step."""

from __future__ import annotations

from typing import Final

from hsm.engine._entries import empty_entry
from hsm.engine._execution import is_foreign
from hsm.engine._executions import Executions
from hsm.engine._export import read_delta
from hsm.engine._marks import marks
from hsm.engine._merge import free_tombstone_key, merge
from hsm.engine._shards import Shards
from hsm.engine._translation import translated
from hsm.engine.options import EngineOptions
from hsm.errors import NotActiveError
from hsm.machine import VersionedTransition
from hsm.ref import ExecutionKey
from hsm.tree import MergeResult
from hsm.tree._delta import history_of
from persistence import errors as storage
from persistence.executions import execution_key, history_key, parked_prefix, prefix_end
from persistence.proto.execution_pb2 import TombstoneKind, TombstoneRow
from persistence.proto.replication_pb2 import Delta
from persistence.store import EngineStore, SetRequest

__all__ = ["Replication"]

_UNKNOWN: Final = VersionedTransition()


class Replication:
    """What clusters tell each other. Machines and tasks need not be registered for it."""

    _store: EngineStore
    _options: EngineOptions
    _executions: Executions
    _shards: Shards
    _run_tasks: bool

    async def versions(self, key: ExecutionKey) -> tuple[VersionedTransition, ...]:
        """The last transaction of each failover version of an execution, oldest first.

        Raises:
            ExecutionNotFoundError: there is no such execution.
        """
        key = await self._executions.resolve(key)
        row, _ = await self._executions.stored_row(key)
        return history_of(row)

    async def changes_since(self, key: ExecutionKey, version: VersionedTransition = _UNKNOWN) -> Delta:
        """What whoever has `version` of an execution lacks; all of it, if that cannot be told, or for (0, 0).

        The tasks that its machines wait for go with it, dead letters as tasks that have not been tried, and
        results of calls. What else the database holds beside the machines does not: attempts, dead letters,
        rows of history.

        Raises:
            ExecutionNotFoundError: there is no such execution.
            SerializationError: a row cannot be decoded.
        """
        key = await self._executions.resolve(key)
        try:
            return await read_delta(self._store, self._executions.partition(key), key, version)
        except storage.PersistenceError as error:
            raise translated(error) from error

    async def apply_delta(self, delta: Delta) -> MergeResult:
        """Take over what another cluster has told of an execution, in one commit.

        Deltas may come in any order, and any number of times. If the two have parted, the one with the higher
        failover version is right, and takes the place of the other. The tasks of the execution do not run
        here as long as it is the other cluster's.

        Raises:
            ResendError: something before it is missing, or all has to be sent; says since when.
            ValueError: no cluster has written it.
            BusyError: it was deleted here, and is still being swept.
            TransactionTooLargeError: too much for one transaction of the store.
        """
        name = delta.execution
        key = ExecutionKey(name.namespace, name.id, name.run_id)
        cluster = self._options.cluster
        keep = 0 if cluster is None else cluster.tombstones
        try:
            result, tombstones = await merge(
                self._store, self._executions.partition(key), key, delta, keep, self._options.delete_rows
            )
        except storage.PersistenceError as error:
            raise translated(error) from error
        if result is MergeResult.APPLIED:
            self._changed(key)
        if tombstones and self._run_tasks:
            self._shards.sweep(self._executions.partition(key))
        return result

    async def take_over(self, key: ExecutionKey) -> VersionedTransition:
        """Let this cluster write to an execution and run its tasks from now on; its version.

        What the other cluster has done and not told yet is lost when it hears of this. Nothing is done if the
        execution is this cluster's already, but that lost queue rows are written anew: call it again if it
        was broken off.

        Raises:
            ExecutionNotFoundError: there is no such execution.
            NotActiveError: this engine is of no cluster.
        """
        cluster = self._options.cluster
        if cluster is None:
            raise NotActiveError("an engine without `EngineOptions.cluster` takes over nothing")
        key = await self._executions.resolve(key)
        while True:
            row, etag = await self._executions.stored_row(key)
            last = history_of(row)[-1]
            if last.failover_version and not is_foreign(last.failover_version, cluster):
                break
            version = VersionedTransition(
                cluster.next_version(last.failover_version), last.transition_count + 1
            )
            row.history.add(
                failover_version=version.failover_version, max_transition_count=version.transition_count
            )
            partition = self._executions.partition(key)
            writes = [
                SetRequest(
                    partition=partition, key=execution_key(*key), value=row.SerializeToString(), etag=etag
                ),
                *marks(partition, key, cluster),
            ]
            if row.keeps_history:
                # Or there would be a gap in it.
                entry = empty_entry(row)
                entry.time_nanos = self._options.clock.time_ns()
                own = history_key(*key, version.transition_count)
                writes.append(SetRequest(partition=partition, key=own, value=entry.SerializeToString()))
            try:
                parked = await self._parked(key)
                await self._store.multi([*writes, *parked])
            except storage.ETagMismatchError:
                continue
            except storage.PersistenceError as error:
                raise translated(error) from error
            last = version
            self._changed(key)
            if parked and self._run_tasks:
                self._shards.sweep(partition)
            break
        await self._repair(key)
        return last

    async def _parked(self, key: ExecutionKey) -> list[SetRequest]:
        """Have tasks put back that were put aside here in a pause of which the other cluster knows more."""
        partition, prefix = self._executions.partition(key), parked_prefix(*key)
        if not [item async for item in self._store.scan(partition, prefix, prefix_end(prefix), limit=1)]:
            return []
        row = TombstoneRow(kind=TombstoneKind.TOMBSTONE_KIND_PARKED)
        row.execution.namespace, row.execution.id, row.execution.run_id = key
        return [SetRequest(partition=partition, key=free_tombstone_key(key), value=row.SerializeToString())]

    def _changed(self, key: ExecutionKey) -> None:
        """Note that an execution was written behind the back of its tree in memory."""
        execution = self._executions.cached(key)
        if execution is not None:
            self._executions.evict(execution)
        self._wake_watchers(key)

    # What the engine has

    async def _repair(self, key: ExecutionKey) -> int:
        raise NotImplementedError

    def _wake_watchers(self, key: ExecutionKey) -> None:
        raise NotImplementedError
