"""Sweeping: the rows of deleted subtrees that were too many for the commit that deleted them."""

from __future__ import annotations

from typing import Final

from hsm.engine._execution import decode_row
from hsm.engine._logs import engine_logger, of_partition
from hsm.engine._rows import task_row_key
from hsm.errors import SerializationError
from persistence.errors import ETagMismatchError
from persistence.executions import AFTER_SLASH, node_prefix
from persistence.proto.execution_pb2 import TombstoneRow
from persistence.proto.hsm_pb2 import StateMachineNode
from persistence.store import DeleteRequest, EngineStore, Item, Operation

__all__ = ["sweep"]

_log: Final = engine_logger()
_ROWS_A_COMMIT = 100


async def sweep(store: EngineStore, partition: str) -> None:
    """Delete what the tombstones of a shard cover, then the tombstones. May be broken off and begun again."""
    tombstones = [item async for item in store.scan(partition, "z/", "z" + AFTER_SLASH)]
    for tombstone in tombstones:
        try:
            row = decode_row(TombstoneRow, tombstone.key, tombstone.value)
        except SerializationError as error:
            _log.error("a tombstone is left alone: %s", error, extra=of_partition(partition))
            continue
        key = row.execution
        start = node_prefix(key.namespace, key.id, key.run_id) + row.segments
        batch: list[Item] = []
        async for item in store.scan(partition, start + "/", start + AFTER_SLASH):
            batch.append(item)
            if len(batch) == _ROWS_A_COMMIT:
                await _delete(store, partition, row, batch)
                batch = []
        await _delete(store, partition, row, batch)
        await _delete_row(store, partition, tombstone)


async def _delete(store: EngineStore, partition: str, tombstone: TombstoneRow, batch: list[Item]) -> None:
    operations: list[Operation] = []
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
    if not operations:
        return
    try:
        await store.multi(operations)
    except ETagMismatchError:
        # Somebody was faster with one of them: one by one, then.
        for item in dead:
            await _delete_row(store, partition, item)


async def _delete_row(store: EngineStore, partition: str, item: Item) -> None:
    try:
        await store.delete(DeleteRequest(partition=partition, key=item.key, etag=item.etag))
    except ETagMismatchError:
        # Written again, or swept by another process: in both cases not ours to delete.
        return
