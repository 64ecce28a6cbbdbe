"""Repair: pending tasks whose queue row is gone get a new one.

What the nodes say is the truth. Every commit writes nodes and rows together, so that rows are lost only with
the help of somebody else: by hand, or by a database that was damaged or restored in part.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from typing import Final

from google.protobuf.message import DecodeError

from hsm.engine._children import DETACHED
from hsm.engine._execution import Execution, load_execution
from hsm.engine._logs import engine_logger, of_partition, of_task
from hsm.engine._lookup import find_rows, home_keys
from hsm.engine._queries import ALL_ROWS, OpenRegistry
from hsm.engine._rows import QueuedTask, task_row
from hsm.engine._transaction import begin
from hsm.engine.cluster import Cluster
from hsm.ref import ExecutionKey, Ref
from hsm.registry import Registry
from hsm.tree import Node
from persistence.errors import ETagMismatchError
from persistence.executions import AFTER_SLASH, parse_execution_key, timer_key
from persistence.proto.execution_pb2 import ExecutionRow, ExecutionStatus
from persistence.proto.hsm_pb2 import StateMachineNode, StateMachineTask
from persistence.store import Concurrency, EngineStore, GetRequest, SetOptions, SetRequest

__all__ = ["executions_to_repair", "repair"]

_log: Final = engine_logger()
_FIRST_WRITE: Final = SetOptions(concurrency=Concurrency.FIRST_WRITE)
_KEYS_AT_ONCE: Final = 200


async def repair(
    store: EngineStore,
    registry: Registry,
    key: ExecutionKey,
    partition: str,
    now_nanos: int,
    in_memory: Callable[[str], QueuedTask | None],
    cluster: Cluster | None = None,
) -> list[QueuedTask]:
    """Write the rows that an execution lacks; the tasks that have one again, their attempts forgotten.

    Raises:
        ExecutionNotFoundError: there is no such run.
    """
    while True:
        execution = await load_execution(store, OpenRegistry(registry), key, partition, ALL_ROWS)
        execution.join(cluster)
        if execution.foreign:
            # Its machines still name tasks, which run elsewhere.
            return []
        terminated = execution.row.status == ExecutionStatus.EXECUTION_STATUS_TERMINATED
        begin(execution, reading=True)
        pending = [
            (node, task)
            for node in execution.root.walk()
            for task in node._tasks
            # The other tasks of one that is terminated run no more.
            if not task.dead and (not terminated or task.type in DETACHED)
        ]
        tasks = [task for _, task in pending]
        found = await find_rows(store, partition, key, tasks, in_memory)
        lost = [_queued(execution, node, task, now_nanos) for node, task in pending if task.id not in found]
        try:
            await _write(store, execution, lost)
        except ETagMismatchError:
            # It has moved on meanwhile: what was missing may have been done.
            continue
        for task in lost:
            _log.warning(
                "the row of task %s of %s was lost, and is written anew", task.id, key, extra=of_task(task)
            )
        return lost


def _queued(execution: Execution, node: Node, task: StateMachineTask, now_nanos: int) -> QueuedTask:
    """The queue task of a pending one: as it was if it is not due, else among the timers that are."""
    ref = Ref(
        execution.key,
        node.path,
        task.machine_transition_count,
        node._initial_version,
        node._last_version,
        execution.version,
        task.id,
        1,
    )
    key = timer_key(max(now_nanos, task.kind.deadline_nanos), task.id)
    return QueuedTask.of_row(execution.partition, key, "", task_row(task, ref))


async def _write(store: EngineStore, execution: Execution, tasks: list[QueuedTask]) -> None:
    # The execution's row is written as it is, for its new etag: who has found the same rows missing in
    # another process would write them once more, at another time and so under another key.
    value = execution.row.SerializeToString()
    size = store.limits.operations - 1
    for start in range(0, len(tasks), size):
        part = tasks[start : start + size]
        turn = SetRequest(
            partition=execution.partition, key=execution.row_key, value=value, etag=execution.etag
        )
        rows = [
            SetRequest(partition=task.partition, key=task.key, value=task.value(), options=_FIRST_WRITE)
            for task in part
        ]
        execution.etag = etag = await store.multi([turn, *rows])
        for task in part:
            task.etag = etag


async def executions_to_repair(store: EngineStore, partition: str) -> AsyncIterator[ExecutionKey]:
    """The executions of a shard of which a task seems to have no row."""
    moved = {
        task.id
        async for item in store.scan(partition, "t/", "t" + AFTER_SLASH)
        if (task := QueuedTask.parse(partition, item.key, item.etag, item.value)).displaced
    }
    batch: list[tuple[ExecutionKey, StateMachineTask]] = []
    suspects: set[ExecutionKey] = set()
    async for key, tasks in _pending(store, partition):
        batch += [(key, task) for task in tasks if not task.dead and task.id not in moved]
        if len(batch) >= _KEYS_AT_ONCE:
            suspects = await _suspects(store, partition, batch) - suspects
            batch.clear()
            for suspect in sorted(suspects):
                yield suspect
    for suspect in sorted(await _suspects(store, partition, batch) - suspects):
        yield suspect


async def _pending(
    store: EngineStore, partition: str
) -> AsyncIterator[tuple[ExecutionKey, Iterable[StateMachineTask]]]:
    async for item in store.scan(partition, "e/", "e" + AFTER_SLASH):
        try:
            yield ExecutionKey(*parse_execution_key(item.key)), ExecutionRow.FromString(item.value).root.tasks
        except DecodeError:
            _log.error(
                "the row %r cannot be read, nor its tasks be looked for",
                item.key,
                extra=of_partition(partition),
            )
    async for item in store.scan(partition, "n/", "n" + AFTER_SLASH):
        name = "/".join(item.key.split("/")[:4])
        try:
            yield ExecutionKey(*parse_execution_key(name)), StateMachineNode.FromString(item.value).tasks
        except DecodeError:
            _log.error(
                "the row %r cannot be read, nor its tasks be looked for",
                item.key,
                extra=of_partition(partition),
            )


async def _suspects(
    store: EngineStore, partition: str, pending: list[tuple[ExecutionKey, StateMachineTask]]
) -> set[ExecutionKey]:
    keys = {key for execution, task in pending for key in home_keys(execution, task)}
    requests = [GetRequest(partition=partition, key=key) for key in sorted(keys)]
    answers = await store.bulk_get(requests) if requests else ()
    there = {answer.key.rpartition("/")[2] for answer in answers if answer.data is not None}
    return {execution for execution, task in pending if task.id not in there}
