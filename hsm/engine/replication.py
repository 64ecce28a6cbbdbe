"""Replication: what is written in one cluster is told another, for good and all."""

from __future__ import annotations

import asyncio
from typing import Final, NoReturn

from hsm.engine._execution import decode_row
from hsm.engine._logs import engine_logger
from hsm.engine._translation import translated
from hsm.engine.clock import nanos_of, sleep_for
from hsm.engine.cluster import Cluster
from hsm.engine.engine import Engine
from hsm.errors import (
    CommitOutcomeUnknownError,
    ExecutionNotFoundError,
    HSMError,
    ResendError,
    RetryLaterError,
    StorageUnavailableError,
)
from hsm.machine import VersionedTransition
from hsm.ref import ExecutionKey
from hsm.tree import MergeResult
from persistence.errors import ETagMismatchError, PersistenceError
from persistence.executions import (
    SETTINGS_PARTITION,
    escape,
    parse_execution_key,
    prefix_end,
    replication_cursor_key,
    replication_mark_prefix,
)
from persistence.proto.replication_pb2 import ReplicationCursorRow
from persistence.store import DeleteRequest, GetRequest, SetRequest

__all__ = ["Replicator"]

_log: Final = engine_logger()
_UNKNOWN: Final = VersionedTransition()
_STEP: Final = 100
_TRIES: Final = 3


class Replicator:
    """Tells one cluster what happens to the executions of a namespace in another.

    Every commit of an engine with `EngineOptions.cluster` leaves a mark for each peer, which goes when the
    peer has been told. So this can be broken off at any time, and goes on where it was. When it is used
    first, it goes through all executions that there are. Another one carries what is written in the
    other direction; both may run at once.

    The engines need not know the machines, nor run tasks. There may be one for a namespace and a direction; a
    second one does no harm, and no good.

    Semantics: Temporal's replication, with one queue that keeps the latest change of each execution.
    """

    def __init__(self, source: Engine, target: Engine, namespace: str) -> None:
        """Make a link.

        Args:
            source: engine of the cluster that is to be read, which has the other one among its peers.
            target: engine of the cluster that is to be told.
            namespace: of the executions.

        Raises:
            ValueError: the two are no peers.
        """
        self._source = source
        self._target = target
        self._namespace = namespace
        self._from = _cluster_of(source)
        self._to = _cluster_of(target)
        if self._to.id not in self._from.peers or self._to.step != self._from.step:
            raise ValueError(f"cluster {self._to.id} is not among the peers of cluster {self._from.id}")

    async def run(self) -> NoReturn:
        """Carry over what comes, until cancelled; while a database does not answer, try again."""
        clock, interval = self._source._options.clock, self._source._options.poll_interval
        while True:
            try:
                await self.pump()
            except RetryLaterError as error:
                _log.warning("replication to cluster %d waits: %r", self._to.id, error)
            waker = asyncio.get_running_loop().create_future()
            await sleep_for(clock, nanos_of(interval), waker)

    async def pump(self) -> int:
        """Carry over what there is; how many executions have changed in the target.

        An execution that cannot be carried over is logged, does not hold up the others, and is tried again
        next time.

        Raises:
            StorageUnavailableError: a database does not answer.
        """
        try:
            changed = await self._first_pass()
            for partition in self._source._shards.partitions:
                changed += await self._carry_marked(partition)
        except PersistenceError as error:
            raise translated(error) from error
        return changed

    async def restart(self) -> None:
        """Go through all executions once more with the next `pump`, as if it were the first.

        For a target that has forgotten what it was told, because it was restored from a backup.

        Raises:
            StorageUnavailableError: the database of the target does not answer.
        """
        try:
            await self._save(replication_cursor_key(self._from.id, self._namespace), ReplicationCursorRow())
        except PersistenceError as error:
            raise translated(error) from error

    async def _carry_marked(self, partition: str) -> int:
        prefix = replication_mark_prefix(self._to.id, self._namespace)
        store, changed = self._source._store, 0
        async for item in store.scan(partition, prefix, prefix_end(prefix)):
            name = "e/" + item.key.split("/", 2)[2]
            result = await self._carry(ExecutionKey(*parse_execution_key(name)))
            if result is None:
                continue
            changed += result is MergeResult.APPLIED
            try:
                await store.delete(DeleteRequest(partition=partition, key=item.key, etag=item.etag))
            except ETagMismatchError:
                # Changed again since: for the next time.
                continue
        return changed

    async def _first_pass(self) -> int:
        """Go through all executions once, from where the last try has come to."""
        target, key = self._target._store, replication_cursor_key(self._from.id, self._namespace)
        found = await target.get(GetRequest(partition=SETTINGS_PARTITION, key=key))
        cursor = decode_row(ReplicationCursorRow, key, found.data or b"")
        if cursor.complete:
            return 0
        changed = 0
        start = f"e/{escape(self._namespace)}/"
        partitions = self._source._shards.partitions
        for shard in range(cursor.shards, len(partitions)):
            count = 0
            # The row itself is gone through again: it costs nothing.
            rows = self._source._store.scan(partitions[shard], cursor.key or start, prefix_end(start))
            async for item in rows:
                execution = ExecutionKey(*parse_execution_key(item.key))
                changed += await self._carry(execution) is MergeResult.APPLIED
                count += 1
                if not count % _STEP:
                    cursor.key = item.key
                    await self._save(key, cursor)
            cursor.shards, cursor.key = shard + 1, ""
            await self._save(key, cursor)
        cursor.complete = True
        await self._save(key, cursor)
        return changed

    async def _save(self, key: str, cursor: ReplicationCursorRow) -> None:
        await self._target._store.set(
            SetRequest(partition=SETTINGS_PARTITION, key=key, value=cursor.SerializeToString())
        )

    async def _carry(self, key: ExecutionKey) -> MergeResult | None:
        """Tell of one execution; None if that cannot be done."""
        try:
            return await self._tell(key)
        except ExecutionNotFoundError:
            # Deleted since.
            return MergeResult.DUPLICATE
        except (StorageUnavailableError, CommitOutcomeUnknownError):
            raise
        except (HSMError, ValueError) as error:
            _log.error("%s/%s cannot be told cluster %d: %r", key.namespace, key.id, self._to.id, error)
            return None

    async def _tell(self, key: ExecutionKey) -> MergeResult:
        source, target = self._source, self._target
        last = (await source.versions(key))[-1]
        if not last.failover_version:
            await source.take_over(key)
        try:
            since = (await target.versions(key))[-1]
        except ExecutionNotFoundError:
            since = _UNKNOWN
        for _ in range(_TRIES):
            try:
                return await target.apply_delta(await source.changes_since(key, since))
            except ResendError as error:
                since = error.since
        raise ResendError(f"{key} changes all the time", since=since)


def _cluster_of(engine: Engine) -> Cluster:
    cluster = engine._options.cluster
    if cluster is None:
        raise ValueError("the engine has no `EngineOptions.cluster`")
    return cluster
