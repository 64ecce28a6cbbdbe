"""Deleting executions: the row on which all writers agree goes first, everything else is swept afterwards."""

from __future__ import annotations

from typing import Final

from hsm.engine._children import DETACHED
from hsm.engine._execution import decode_row
from hsm.engine._executions import Executions
from hsm.engine._logs import engine_logger, of_partition
from hsm.engine._merge import free_tombstone_key
from hsm.engine._search import index_keys
from hsm.engine._translation import translated
from hsm.errors import ExecutionNotFoundError, ExecutionRunningError, SerializationError
from hsm.ref import ExecutionKey
from persistence import errors as storage
from persistence.executions import current_run_key, execution_key, expiry_key, parse_expiry_key
from persistence.proto.execution_pb2 import CurrentRun, ExecutionRow, TombstoneKind, TombstoneRow
from persistence.store import DeleteRequest, EngineStore, GetRequest, Item, Operation, SetRequest

__all__ = ["delete", "expire"]

_log: Final = engine_logger()


class _StillNeededError(ExecutionRunningError):
    """It is closed, and has something to do all the same."""


async def delete(executions: Executions, store: EngineStore, key: ExecutionKey, *, force: bool) -> str:
    """Make an execution unknown; the partition to sweep, where its other rows still are.

    Only its row is looked at: its machines may be of types that nobody knows any more.
    """
    key = await executions.resolve(key)
    partition, row_key = executions.partition(key), execution_key(*key)
    while True:
        try:
            found = await store.get(GetRequest(partition=partition, key=row_key))
            if found.data is None:
                raise ExecutionNotFoundError(
                    f"there is no execution {key.namespace}/{key.id} (run {key.run_id!r})"
                )
            row = decode_row(ExecutionRow, row_key, found.data)
            if not row.close_nanos and not force:
                raise ExecutionRunningError(f"execution {key.namespace}/{key.id} is running")
            if not force and any(task.type in DETACHED for task in row.root.tasks):
                raise _StillNeededError(
                    f"execution {key.namespace}/{key.id} has parent or children to tell of its end"
                )
            own = DeleteRequest(partition=partition, key=row_key, etag=found.etag)
            await store.multi([own, *await _operations(store, partition, key, row)])
        except storage.ETagMismatchError:
            continue
        except storage.PersistenceError as error:
            raise translated(error) from error
        executions.forget(key)
        return partition


async def _operations(
    store: EngineStore, partition: str, key: ExecutionKey, row: ExecutionRow
) -> list[Operation]:
    """What goes with an execution's row, and what remembers the rest."""
    tombstone = TombstoneRow(
        kind=TombstoneKind.TOMBSTONE_KIND_EXECUTION, tasks=row.root.tasks, before_ordinal=2**63 - 1
    )
    name = tombstone.execution
    name.namespace, name.id, name.run_id = key
    gone = index_keys(*key, row.search_attributes)
    if row.expiry_nanos:
        gone.append(expiry_key(row.expiry_nanos, *key))
    operations: list[Operation] = [
        SetRequest(partition=partition, key=free_tombstone_key(key), value=tombstone.SerializeToString()),
        *(DeleteRequest(partition=partition, key=each) for each in gone),
    ]
    current_key = current_run_key(key.namespace, key.id)
    current = await store.get(GetRequest(partition=partition, key=current_key))
    if current.data is not None and decode_row(CurrentRun, current_key, current.data).run_id == key.run_id:
        operations.append(DeleteRequest(partition=partition, key=current_key, etag=current.etag))
    return operations


async def expire(executions: Executions, store: EngineStore, partition: str, now_nanos: int) -> None:
    """Delete the executions of a shard whose time is over."""
    async for item in store.scan(partition, "x/", expiry_key(now_nanos + 1, "", "", "")):
        try:
            key = ExecutionKey(*parse_expiry_key(item.key))
            await delete(executions, store, key, force=False)
        except _StillNeededError as error:
            _log.debug("an execution is deleted later: %s", error, extra=of_partition(partition))
        except (ExecutionNotFoundError, ExecutionRunningError, ValueError) as error:
            _log.debug("an execution need not be deleted: %s", error, extra=of_partition(partition))
            await _forget(store, partition, item)
        except SerializationError as error:
            # It must not keep the others.
            _log.error("an execution is not deleted: %s", error, extra=of_partition(partition))


async def _forget(store: EngineStore, partition: str, item: Item) -> None:
    try:
        await store.delete(DeleteRequest(partition=partition, key=item.key, etag=item.etag))
    except storage.ETagMismatchError:
        return
