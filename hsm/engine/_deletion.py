"""Deleting executions: the row on which all writers agree goes first, everything else is swept afterwards."""

from __future__ import annotations

from typing import Final

from hsm.engine._execution import Execution, decode_row
from hsm.engine._executions import Executions, translated
from hsm.engine._logs import engine_logger
from hsm.engine._search import index_keys
from hsm.errors import ExecutionNotFoundError, ExecutionRunningError
from hsm.ref import ExecutionKey
from persistence import errors as storage
from persistence.executions import current_run_key, expiry_key, parse_expiry_key, tombstone_key
from persistence.proto.execution_pb2 import CurrentRun, TombstoneKind, TombstoneRow
from persistence.store import DeleteRequest, EngineStore, GetRequest, Item, Operation, SetRequest

__all__ = ["delete", "expire"]

_log: Final = engine_logger()
_EXPIRED_AT_ONCE: Final = 100


async def delete(executions: Executions, store: EngineStore, key: ExecutionKey, *, force: bool) -> str:
    """Make an execution unknown; the partition to sweep, where its other rows still are."""
    key = await executions.resolve(key)
    while True:
        execution = await executions.acquire(key, fresh=True)
        try:
            if not execution.row.close_nanos and not force:
                raise ExecutionRunningError(f"execution {key.namespace}/{key.id} is running")
            await store.multi(await _operations(store, execution))
        except storage.ETagMismatchError:
            continue
        except storage.PersistenceError as error:
            raise translated(error) from error
        else:
            return execution.partition
        finally:
            executions.evict(execution)
            execution.lock.release()


async def _operations(store: EngineStore, execution: Execution) -> list[Operation]:
    partition, key, row = execution.partition, execution.key, execution.row
    tombstone = TombstoneRow(
        kind=TombstoneKind.TOMBSTONE_KIND_EXECUTION, tasks=execution.root._tasks, before_ordinal=2**63 - 1
    )
    name = tombstone.execution
    name.namespace, name.id, name.run_id = key
    number = execution.root._state.take_ordinal()
    operations: list[Operation] = [
        DeleteRequest(partition=partition, key=execution.row_key, etag=execution.etag),
        SetRequest(partition=partition, key=tombstone_key(*key, number), value=tombstone.SerializeToString()),
    ]
    if row.expiry_nanos:
        operations.append(DeleteRequest(partition=partition, key=expiry_key(row.expiry_nanos, *key)))
    operations += [
        DeleteRequest(partition=partition, key=index_key)
        for index_key in index_keys(*key, row.search_attributes)
    ]
    current_key = current_run_key(key.namespace, key.id)
    current = await store.get(GetRequest(partition=partition, key=current_key))
    if current.data is not None and decode_row(CurrentRun, current_key, current.data).run_id == key.run_id:
        operations.append(DeleteRequest(partition=partition, key=current_key, etag=current.etag))
    return operations


async def expire(executions: Executions, store: EngineStore, partition: str, now_nanos: int) -> bool:
    """Delete the executions of a shard whose time is over; whether there were any."""
    end = expiry_key(now_nanos + 1, "", "", "")
    due: list[Item] = [item async for item in store.scan(partition, "x/", end, limit=_EXPIRED_AT_ONCE)]
    for item in due:
        try:
            key = ExecutionKey(*parse_expiry_key(item.key))
            await delete(executions, store, key, force=False)
        except (ExecutionNotFoundError, ExecutionRunningError, ValueError) as error:
            _log.debug("an execution need not be deleted: %s", error)
            await _forget(store, partition, item)
    return bool(due)


async def _forget(store: EngineStore, partition: str, item: Item) -> None:
    try:
        await store.delete(DeleteRequest(partition=partition, key=item.key, etag=item.etag))
    except storage.ETagMismatchError:
        return
