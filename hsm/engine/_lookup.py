"""Looking for the rows of pending tasks, which may be in more than one place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from hsm.engine._rows import QueuedTask, task_row_key
from hsm.ref import ExecutionKey
from persistence.executions import AFTER_SLASH, dead_letter_key, group_prefix, parked_key
from persistence.proto.hsm_pb2 import StateMachineTask
from persistence.store import EngineStore, GetRequest, Item

__all__ = ["find_rows", "have_rows", "home_keys"]

# A tree may wait for thousands of tasks, and a store makes a request of each key.
_KEYS_AT_ONCE: Final = 300


def home_keys(execution: ExecutionKey, task: StateMachineTask) -> list[str]:
    """Where a task's row may be, unless the task waits for its next try."""
    namespace = execution.namespace
    keys = [task_row_key(namespace, task), dead_letter_key(task.id), parked_key(*execution, task.id)]
    if task.kind.HasField("deadline_nanos"):
        # As a timer that is due and had no room.
        keys.append(group_prefix(namespace, task.group, None) + task.id)
    return keys


async def have_rows(
    store: EngineStore, partition: str, execution: ExecutionKey, tasks: Sequence[StateMachineTask]
) -> bool:
    """Whether the rows of all these tasks are where rows are, unless their tasks wait for their next try."""
    keys = [key for task in tasks for key in home_keys(execution, task)]
    return {task.id for task in tasks} <= (await _get(store, partition, keys)).keys()


async def find_rows(
    store: EngineStore,
    partition: str,
    execution: ExecutionKey,
    tasks: Sequence[StateMachineTask],
    in_memory: Callable[[str], QueuedTask | None],
    *,
    limit: int | None = None,
) -> dict[str, Item]:
    """The rows of pending tasks by id, dead letters among them.

    Args:
        store: to look in.
        partition: of the execution.
        execution: which they belong to.
        tasks: to look for.
        in_memory: knows the tasks that this process has in memory, and their rows.
        limit: timers to look at for a task that waits for its next try; None for all.
    """
    keys: list[str] = []
    for task in tasks:
        known = in_memory(task.id)
        keys += home_keys(execution, task) if known is None else [known.key, *home_keys(execution, task)]
    found = await _get(store, partition, keys)
    missing = {task.id for task in tasks} - found.keys()
    if not missing:
        return found
    async for item in store.scan(partition, "t/", "t" + AFTER_SLASH, limit=limit):
        task_id = item.key.rpartition("/")[2]
        if task_id in missing:
            found[task_id] = item
            missing.discard(task_id)
            if not missing:
                return found
    # One that was moved meanwhile has come back to where it was not before.
    return found | await _get(store, partition, keys)


async def _get(store: EngineStore, partition: str, keys: Iterable[str]) -> dict[str, Item]:
    requests = [GetRequest(partition=partition, key=key) for key in keys]
    found: dict[str, Item] = {}
    for start in range(0, len(requests), _KEYS_AT_ONCE):
        for answer in await store.bulk_get(requests[start : start + _KEYS_AT_ONCE]):
            if answer.error is not None:
                raise answer.error
            if answer.data is not None:
                task_id = answer.key.rpartition("/")[2]
                found.setdefault(task_id, Item(answer.key, answer.data, answer.etag or ""))
    return found
