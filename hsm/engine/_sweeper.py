"""Sweeping: rows that were too many for the commit that deleted them, or put them back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from hsm.engine._execution import decode_row
from hsm.engine._logs import engine_logger, of_partition
from hsm.engine._rows import QueuedTask, task_row_key
from hsm.errors import SerializationError
from hsm.ref import ExecutionKey
from persistence.errors import ETagMismatchError
from persistence.executions import (
    AFTER_SLASH,
    answer_prefix,
    dead_letter_key,
    history_prefix,
    node_prefix,
    parked_prefix,
    prefix_end,
    timer_key,
)
from persistence.proto.execution_pb2 import DeadLetterRow, ParkedTaskRow, TombstoneKind, TombstoneRow
from persistence.proto.hsm_pb2 import StateMachineNode, StateMachineTask
from persistence.store import CheckRequest, DeleteRequest, EngineStore, Item, Operation, SetRequest

__all__ = ["sweep"]

_log: Final = engine_logger()
_ROWS_A_COMMIT: Final = 100
_EXECUTION: Final = TombstoneKind.TOMBSTONE_KIND_EXECUTION
_PARKED: Final = TombstoneKind.TOMBSTONE_KIND_PARKED


async def sweep(
    store: EngineStore, partition: str, queued: Callable[[str, Sequence[QueuedTask]], None]
) -> None:
    """Do what the tombstones of a shard ask for, then delete them. May be broken off and begun again.

    Tasks that are put back into their queues are handed to `queued`.
    """
    tombstones = [item async for item in store.scan(partition, "z/", "z" + AFTER_SLASH)]
    rows: list[tuple[Item, TombstoneRow]] = []
    for tombstone in tombstones:
        try:
            rows.append((tombstone, decode_row(TombstoneRow, tombstone.key, tombstone.value)))
        except SerializationError as error:
            _log.error("a tombstone is left alone: %s", error, extra=of_partition(partition))
    deleted = {_key(row) for _, row in rows if row.kind == _EXECUTION}
    if deleted:
        await _sweep_dead_letters(store, partition, deleted)
    for tombstone, row in rows:
        if row.kind == _EXECUTION:
            await _sweep_execution(store, partition, row)
        elif row.kind == _PARKED:
            await _put_back(store, partition, row, queued)
        else:
            still = CheckRequest(partition, tombstone.key, tombstone.etag)
            await _sweep_subtree(store, partition, row, still)
        await _delete_row(store, partition, tombstone)


def _key(row: TombstoneRow) -> ExecutionKey:
    key = row.execution
    return ExecutionKey(key.namespace, key.id, key.run_id)


# Subtrees


async def _sweep_subtree(store: EngineStore, partition: str, row: TombstoneRow, still: CheckRequest) -> None:
    # An execution may be put back to a state before the deletion; its tombstones go first then.
    start = node_prefix(*_key(row)) + row.segments
    batch: list[Item] = []
    # The check of the tombstone is an operation, too.
    room = free = min(_ROWS_A_COMMIT, store.limits.operations - 1)
    async for item in store.scan(partition, start + "/", start + AFTER_SLASH):
        needed = 1 + len(list(_tasks_of(item)))
        if batch and needed > free:
            await _delete(store, partition, row, batch, still)
            batch, free = [], room
        batch.append(item)
        free -= needed
    await _delete(store, partition, row, batch, still)


async def _delete(
    store: EngineStore, partition: str, tombstone: TombstoneRow, batch: list[Item], still: CheckRequest
) -> None:
    operations: list[Operation] = [still]
    dead: list[Item] = []
    for item in batch:
        try:
            node = decode_row(StateMachineNode, item.key, item.value)
        except SerializationError as error:
            _log.error("a row of a deleted machine is left behind: %s", error, extra=of_partition(partition))
            continue
        # A row that is younger belongs to a machine that was added again under the same key.
        if node.ordinal >= tombstone.before_ordinal:
            continue
        dead.append(item)
        operations.append(DeleteRequest(partition=partition, key=item.key, etag=item.etag))
        for task in node.tasks:
            key = task_row_key(tombstone.execution.namespace, task)
            operations.append(DeleteRequest(partition=partition, key=key))
    if not dead:
        return
    try:
        await store.multi(operations)
    except ETagMismatchError:
        # Somebody was faster with one of them: one by one, then.
        for item in dead:
            await _delete_row(store, partition, item, still)


async def _delete_row(store: EngineStore, partition: str, item: Item, *still: CheckRequest) -> None:
    try:
        await store.multi([*still, DeleteRequest(partition=partition, key=item.key, etag=item.etag)])
    except ETagMismatchError:
        # Written again, or swept by another process: in both cases not ours to delete.
        return


# Whole executions


async def _sweep_execution(store: EngineStore, partition: str, row: TombstoneRow) -> None:
    """Delete all rows of an execution; nobody writes any more of them."""
    key = _key(row)
    keys = _task_keys(key.namespace, row.tasks)
    for prefix in (node_prefix(*key), history_prefix(*key), parked_prefix(*key), answer_prefix(*key)):
        async for item in store.scan(partition, prefix, prefix_end(prefix)):
            if prefix[0] == "n":
                keys += _task_keys(key.namespace, _tasks_of(item))
            keys.append(item.key)
            if len(keys) >= _ROWS_A_COMMIT:
                await _delete_keys(store, partition, keys)
                keys = []
    await _delete_keys(store, partition, keys)


def _tasks_of(item: Item) -> Iterable[StateMachineTask]:
    try:
        return decode_row(StateMachineNode, item.key, item.value).tasks
    except SerializationError:
        # Its tasks find out by themselves.
        return ()


def _task_keys(namespace: str, tasks: Iterable[StateMachineTask]) -> list[str]:
    return [task_row_key(namespace, task) for task in tasks]


async def _delete_keys(store: EngineStore, partition: str, keys: Sequence[str]) -> None:
    size = min(_ROWS_A_COMMIT, store.limits.operations)
    for start in range(0, len(keys), size):
        await store.multi([DeleteRequest(partition=partition, key=key) for key in keys[start : start + size]])


async def _sweep_dead_letters(store: EngineStore, partition: str, deleted: set[ExecutionKey]) -> None:
    keys: list[str] = []
    async for item in store.scan(partition, dead_letter_key(""), "d" + AFTER_SLASH):
        try:
            name = decode_row(DeadLetterRow, item.key, item.value).task.execution
        except SerializationError:
            continue
        if ExecutionKey(name.namespace, name.id, name.run_id) in deleted:
            keys.append(item.key)
    await _delete_keys(store, partition, keys)


# Parked tasks


async def _put_back(
    store: EngineStore,
    partition: str,
    row: TombstoneRow,
    queued: Callable[[str, Sequence[QueuedTask]], None],
) -> None:
    """Put the parked tasks of an execution back into their queues, where they may be parked again."""
    prefix = parked_prefix(*_key(row))
    async for item in store.scan(partition, prefix, prefix_end(prefix)):
        task = _parked(partition, item)
        try:
            task.etag = await store.multi(
                [
                    DeleteRequest(partition=partition, key=item.key, etag=item.etag),
                    SetRequest(partition=partition, key=task.key, value=task.value()),
                ]
            )
        except ETagMismatchError:
            # Somebody else sweeps here, too.
            continue
        queued(partition, [task])


def _parked(partition: str, item: Item) -> QueuedTask:
    """A task among the timers that are due: in its queue, a poll may not look for one that is so old."""
    task_id = item.key.rpartition("/")[2]
    try:
        row = decode_row(ParkedTaskRow, item.key, item.value).task
    except SerializationError:
        # It comes up as it is, to be dead-lettered, and keeps no other where it is.
        return QueuedTask.parse(partition, timer_key(0, task_id), "", item.value)
    return QueuedTask.of_row(partition, timer_key(row.not_before_nanos, task_id), "", row)
