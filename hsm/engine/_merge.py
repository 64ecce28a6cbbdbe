"""Merging: what another database has told of an execution is put into the rows here, in one `multi`."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from typing import Final

from hsm.engine._execution import decode_row
from hsm.engine._planner import ANSWERED
from hsm.engine._search import index_keys
from hsm.engine._table import row_segments
from hsm.errors import BusyError, ResendError
from hsm.machine import Key, VersionedTransition
from hsm.ref import ExecutionKey
from hsm.tree import MergeResult
from hsm.tree._delta import deleted_since, history_of, is_snapshot, judge, merge_row, path_of
from persistence.errors import ETagMismatchError
from persistence.executions import (
    AFTER_SLASH,
    answer_key,
    current_run_key,
    execution_key,
    execution_keys,
    expiry_key,
    prefix_end,
    tombstone_key,
)
from persistence.proto.execution_pb2 import CurrentRun, ExecutionRow, TombstoneKind, TombstoneRow
from persistence.proto.replication_pb2 import Delta
from persistence.store import (
    Concurrency,
    DeleteRequest,
    EngineStore,
    GetRequest,
    Item,
    SetOptions,
    SetRequest,
)

__all__ = ["free_tombstone_key", "merge"]

_FIRST_WRITE: Final = SetOptions(concurrency=Concurrency.FIRST_WRITE)
_TOMBSTONE_BITS: Final = 62
_SUBTREE: Final = TombstoneKind.TOMBSTONE_KIND_SUBTREE


async def merge(
    store: EngineStore, partition: str, key: ExecutionKey, delta: Delta, keep: int, limit: int
) -> tuple[MergeResult, bool]:
    """See `Engine.apply_delta`; and whether rows are left to be swept.

    Args:
        store: to write to.
        partition: of the execution.
        key: with the run id.
        delta: what was told.
        keep: deletions that are remembered.
        limit: rows below a deleted machine that are deleted at once.
    """
    incoming = history_of(delta.row)
    if incoming and not incoming[-1].failover_version:
        raise ValueError(
            f"{key.namespace}/{key.id} was written by no cluster, so that it would be everybody's:"
            " its own cluster has to take it over first"
        )
    row_key = execution_key(*key)
    while True:
        found = await store.get(GetRequest(partition=partition, key=row_key))
        mine = None if found.data is None else decode_row(ExecutionRow, row_key, found.data)
        result = judge(() if mine is None else history_of(mine), delta)
        if result is not MergeResult.APPLIED:
            return result, False
        merging = _Merge(store, partition, key, delta)
        row = merge_row(mine, delta, keep)
        merging.set_row(row, found.etag)
        merging.set_index(mine, row)
        merging.set_answers(mine)
        for changed in delta.nodes:
            merging.set_node(path_of(changed.path), changed.node.SerializeToString())
        merging.set_expiry(0 if mine is None else mine.expiry_nanos)
        if mine is None:
            await merging.check_not_deleted()
            await merging.set_current_run()
        elif is_snapshot(delta):
            await merging.delete_others()
        else:
            await merging.delete_deleted(mine, limit)
        if not is_snapshot(delta):
            await merging.check_parents()
        try:
            await store.multi([*merging.deletes, *merging.writes.values()])
        except ETagMismatchError:
            continue
        return result, merging.tombstones


def free_tombstone_key(key: ExecutionKey) -> str:
    """Where nobody else puts a tombstone: other commits count theirs from 1."""
    return tombstone_key(*key, 2**_TOMBSTONE_BITS + random.getrandbits(_TOMBSTONE_BITS))


class _Merge:
    """The operations of one merge."""

    def __init__(self, store: EngineStore, partition: str, key: ExecutionKey, delta: Delta) -> None:
        self._store = store
        self._partition = partition
        self._key = key
        self._delta = delta
        self._prefix = execution_keys(*key)[1]
        self._deleted: set[str] = set()
        self.deletes: list[DeleteRequest] = []
        self.writes: dict[str, SetRequest] = {}
        self.tombstones = False

    def _set(
        self, key: str, value: bytes, etag: str | None = None, options: SetOptions | None = None
    ) -> None:
        self.writes[key] = SetRequest(
            partition=self._partition, key=key, value=value, etag=etag, options=options or SetOptions()
        )

    def set_index(self, mine: ExecutionRow | None, row: ExecutionRow) -> None:
        """Let listings find the execution by what its root shows now."""
        before = set(() if mine is None else index_keys(*self._key, mine.search_attributes))
        after = set(index_keys(*self._key, row.search_attributes))
        for added in sorted(after - before):
            self._set(added, b"")
        for gone in sorted(before - after):
            self._delete(gone)

    def set_answers(self, mine: ExecutionRow | None) -> None:
        """Keep the results of calls as the other database does."""
        answers = self._delta.answers
        for request in sorted(answers):
            self._set(answer_key(*self._key, request), answers[request].SerializeToString())
        for request in () if mine is None else mine.request_ids:
            if request.startswith(ANSWERED) and request not in answers:
                self._delete(answer_key(*self._key, request))

    def _delete(self, key: str) -> None:
        # Each key is written once.
        if key not in self.writes and key not in self._deleted:
            self.deletes.append(DeleteRequest(partition=self._partition, key=key))
        self._deleted.add(key)

    def set_row(self, row: ExecutionRow, etag: str | None) -> None:
        """Write the execution's row, if it is still what it was."""
        key = execution_key(*self._key)
        self._set(key, row.SerializeToString(), etag, None if etag else _FIRST_WRITE)

    def set_node(self, path: tuple[Key, ...], value: bytes) -> None:
        """Write a machine."""
        self._set(self._prefix + row_segments(path), value)

    async def set_current_run(self) -> None:
        """Make a run that is new here the current one, unless the current one was started later."""
        namespace, id_, run_id = self._key
        key = current_run_key(namespace, id_)
        found = await self._store.get(GetRequest(partition=self._partition, key=key))
        if found.data is not None:
            other_id = decode_row(CurrentRun, key, found.data).run_id
            other_key = execution_key(namespace, id_, other_id)
            other = await self._store.get(GetRequest(partition=self._partition, key=other_key))
            if other.data is not None:
                start = decode_row(ExecutionRow, other_key, other.data).start_nanos
                if (start, other_id) > (self._delta.row.start_nanos, run_id):
                    return
        row = CurrentRun(run_id=run_id, request_id=self._delta.row.start_request_id)
        self._set(key, row.SerializeToString(), found.etag, None if found.etag else _FIRST_WRITE)

    async def delete_others(self) -> None:
        """Delete all machines that a snapshot does not hold.

        What is still to be swept of deletions that have not taken place in its history, must not be.
        """
        async for item in self._scan(self._prefix, prefix_end(self._prefix)):
            self._delete(item.key)
        async for item in self._tombstones():
            if decode_row(TombstoneRow, item.key, item.value).kind == _SUBTREE:
                self._delete(item.key)

    async def check_not_deleted(self) -> None:
        """Refuse an execution whose rows are just being swept, because it was deleted here.

        Raises:
            BusyError: it is.
        """
        async for _ in self._tombstones():
            raise BusyError(f"execution {self._key.namespace}/{self._key.id} is being deleted")

    def _tombstones(self) -> AsyncIterator[Item]:
        start = tombstone_key(*self._key, 0).rpartition("/")[0]
        return self._scan(start + "/", start + AFTER_SLASH)

    def set_expiry(self, mine: int) -> None:
        """Have the execution deleted when it is in the other database."""
        theirs = self._delta.row.expiry_nanos
        if mine != theirs:
            if mine:
                self._delete(expiry_key(mine, *self._key))
            if theirs:
                self._set(expiry_key(theirs, *self._key), b"")

    async def delete_deleted(self, mine: ExecutionRow, limit: int) -> None:
        """Delete what was deleted since the version that is here; large subtrees are left to the sweeper."""
        last = mine.history[-1].max_transition_count
        for path in dict.fromkeys(deleted_since(self._delta, last)):
            segments = row_segments(path)
            top = self._prefix + segments
            below = [item.key async for item in self._scan(top + "/", top + AFTER_SLASH, limit + 1)]
            self._delete(top)
            if len(below) <= limit:
                for key in below:
                    self._delete(key)
                continue
            # All that is here is older than what comes, also than what comes in its place.
            row = TombstoneRow(segments=segments, before_ordinal=mine.next_ordinal)
            row.execution.namespace, row.execution.id, row.execution.run_id = self._key
            self._set(free_tombstone_key(self._key), row.SerializeToString())
            self.tombstones = True

    async def check_parents(self) -> None:
        """Refuse machines without anything above them.

        Raises:
            ResendError: there are some.
        """
        parents = {path_of(changed.path)[:-1] for changed in self._delta.nodes}
        keys = {self._prefix + row_segments(path) for path in parents if path} - self.writes.keys()
        requests = [GetRequest(partition=self._partition, key=key) for key in sorted(keys)]
        for answer in await self._store.bulk_get(requests) if requests else ():
            if answer.error is not None:
                raise answer.error
            if answer.data is None or answer.key in self._deleted:
                raise ResendError(
                    f"the delta lacks {answer.key!r}, which machines of it are below of",
                    since=VersionedTransition(),
                )

    def _scan(self, start: str, end: str, limit: int | None = None) -> AsyncIterator[Item]:
        return self._store.scan(self._partition, start, end, limit=limit)
