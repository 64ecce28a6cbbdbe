"""Starting executions: one commit writes the first run of an id, or finds that there is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from hsm.engine._commit import plan
from hsm.engine._execution import Execution, decode_row
from hsm.engine._executions import Executions, translated
from hsm.engine._transaction import begin, end, seal
from hsm.engine.ids import IdSource
from hsm.errors import ExecutionAlreadyStartedError
from hsm.machine import VersionedTransition
from hsm.ref import ExecutionKey, Ref
from hsm.registry import Registry
from hsm.tree import Node
from persistence import errors as storage
from persistence.executions import current_run_key
from persistence.proto.execution_pb2 import CurrentRun, ExecutionRow
from persistence.store import Concurrency, EngineStore, GetRequest, Operation, SetOptions, SetRequest

__all__ = ["start_execution"]

ResultT = TypeVar("ResultT")

_FIRST_WRITE = SetOptions(concurrency=Concurrency.FIRST_WRITE)


async def start_execution(
    executions: Executions,
    store: EngineStore,
    registry: Registry,
    ids: IdSource,
    key: ExecutionKey,
    type_id: int,
    data: object,
    now_nanos: int,
    request_id: str,
    on_start: Callable[[Node], ResultT] | None,
) -> Ref:
    """Write a new execution, unless the same request has done so before.

    Raises:
        ExecutionAlreadyStartedError: another request has started an execution with this id.
    """
    key = key._replace(run_id=key.run_id or ids.new(now_nanos))
    partition = executions.partition(key)
    execution = _create(registry, key, partition, type_id, data, now_nanos, request_id)
    begin(execution)
    try:
        execution.root._state.dirty[execution.root] = True
        if on_start is not None:
            on_start(execution.root)
        execution.root._state.check()
        commit = plan(registry, ids, execution, now_nanos)
        row = CurrentRun(run_id=key.run_id, request_id=request_id)
        current: list[Operation] = [
            SetRequest(
                partition=partition,
                key=current_run_key(key.namespace, key.id),
                value=row.SerializeToString(),
                options=_FIRST_WRITE,
            )
        ]
        seal(execution)
        etag = await store.multi(current + commit.operations)
        commit.done(etag)
        execution.root._state.clear()
    except storage.ETagMismatchError:
        return await _existing(store, partition, key, request_id)
    except storage.PersistenceError as error:
        raise translated(error) from error
    finally:
        end(execution)
    if executions.cached(execution.key) is None:
        # Else somebody has read it from the store already, and may have changed it.
        executions.admit(execution)
    executions.committed(execution, commit)
    return Ref(key)


def _create(
    registry: Registry,
    key: ExecutionKey,
    partition: str,
    type_id: int,
    data: object,
    now_nanos: int,
    request_id: str,
) -> Execution:
    root = Node.new_root(registry, type_id, data, version=VersionedTransition(0, 1))
    row = ExecutionRow(start_nanos=now_nanos, start_request_id=request_id, root_type=type_id)
    return Execution(key, partition, root, row)


async def _existing(store: EngineStore, partition: str, key: ExecutionKey, request_id: str) -> Ref:
    row = current_run_key(key.namespace, key.id)
    try:
        found = await store.get(GetRequest(partition=partition, key=row))
    except storage.PersistenceError as error:
        raise translated(error) from error
    current = decode_row(CurrentRun, row, found.data or b"")
    if request_id and current.request_id == request_id:
        return Ref(key._replace(run_id=current.run_id))
    raise ExecutionAlreadyStartedError(
        f"execution {key.namespace}/{key.id} was started already, by request {current.request_id!r}",
        run_id=current.run_id,
    )
