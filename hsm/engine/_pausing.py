"""Pauses: tasks of a paused machine are put aside as they come up, and put back when it goes on."""

from __future__ import annotations

from collections.abc import Sequence

from hsm.engine._execution import Execution
from hsm.engine._executions import Executions
from hsm.engine._operate import operate
from hsm.engine._planner import Amendment, Planner
from hsm.engine._rows import QueuedTask
from hsm.engine._transaction import check_open, is_paused
from hsm.engine._translation import translated
from hsm.machine import Key
from hsm.ref import ExecutionKey
from persistence import errors as storage
from persistence.executions import parked_key
from persistence.proto.execution_pb2 import (
    ExecutionRow,
    ParkedTaskRow,
    PausedSubtree,
)
from persistence.store import CheckRequest, DeleteRequest, EngineStore, SetRequest

__all__ = ["park", "pause", "resume"]


async def pause(executions: Executions, key: ExecutionKey, path: Sequence[Key], *, notice: bool) -> None:
    """See `Engine.pause`."""
    subtree = _subtree(path)

    def amend(planner: Planner, row: ExecutionRow) -> None:
        row.paused.append(subtree)
        if notice:
            planner.notice()

    def act(execution: Execution) -> tuple[None, Amendment | None]:
        check_open(execution)
        execution.root.child(path)
        return None, None if subtree in execution.row.paused else amend

    await operate(executions, key, act)


async def resume(executions: Executions, key: ExecutionKey, path: Sequence[Key] | None) -> str:
    """See `Engine.resume`; the partition to sweep, where the tasks are still to be put back."""

    def act(execution: Execution) -> tuple[str, Amendment | None]:
        check_open(execution)
        left = [] if path is None else [other for other in execution.row.paused if other != _subtree(path)]
        if len(left) == len(execution.row.paused):
            return execution.partition, None

        def amend(planner: Planner, row: ExecutionRow) -> None:
            del row.paused[:]
            row.paused.extend(left)
            planner.put_back(row)

        return execution.partition, amend

    return await operate(executions, key, act)


async def park(executions: Executions, store: EngineStore, task: QueuedTask) -> bool:
    """Take a task of a paused machine out of its queue; False if it has to be tried again instead.

    The commit checks that the execution is as it was, so that nothing is put aside behind the back of a
    resume.
    """
    execution = await executions.acquire(task.execution, fresh=True)
    try:
        if task.row is None or not is_paused(execution.row, task.ref().path):
            return False
        row = ParkedTaskRow(task=task.row, row_key=task.key)
        await store.multi(
            [
                CheckRequest(execution.partition, execution.row_key, execution.etag or ""),
                DeleteRequest(partition=task.partition, key=task.key, etag=task.etag),
                SetRequest(
                    partition=task.partition,
                    key=parked_key(*execution.key, task.id),
                    value=row.SerializeToString(),
                ),
            ]
        )
    except storage.ETagMismatchError as error:
        # A row that is gone, or elsewhere, is somebody else's.
        return error.key == task.key
    except storage.PersistenceError as error:
        raise translated(error) from error
    finally:
        execution.lock.release()
    return True


def _subtree(path: Sequence[Key]) -> PausedSubtree:
    subtree = PausedSubtree()
    for key in path:
        subtree.path.add(type=key.type, id=key.id)
    return subtree
