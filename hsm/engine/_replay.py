"""Replay: a dead letter becomes a task again."""

from __future__ import annotations

from hsm.engine._execution import decode_row
from hsm.engine._executions import Executions
from hsm.engine._rows import QueuedTask
from hsm.engine._translation import translated
from hsm.engine.info import DeadLetter
from hsm.errors import HSMError, RetryLaterError, StaleReferenceError
from persistence import errors as storage
from persistence.executions import dead_letter_key, timer_key
from persistence.proto.execution_pb2 import DeadLetterRow, TaskRow
from persistence.store import DeleteRequest, EngineStore, GetRequest, SetRequest

__all__ = ["replay"]


async def replay(store: EngineStore, executions: Executions, dead: DeadLetter, now_nanos: int) -> QueuedTask:
    """Put the row of a dead letter back, and note that on its machine; the task for its queue.

    Raises:
        StaleReferenceError: it was replayed already.
    """
    key = dead_letter_key(dead.task_id)
    try:
        found = await store.get(GetRequest(partition=dead.partition, key=key))
        if found.data is None:
            raise StaleReferenceError(f"dead letter {dead.task_id} is gone")
        row = decode_row(DeadLetterRow, key, found.data)
        task = _revived(dead, row, now_nanos)
        revival = SetRequest(partition=task.partition, key=task.key, value=task.value())
        if not row.undecodable:
            claim = QueuedTask(dead.partition, key, dead.etag, task.queue, row.task)
            claim.instead = revival
            try:
                await executions.complete(claim)
            except RetryLaterError:
                raise
            except HSMError:
                # The machine or the whole execution is gone, or cannot be read: only the row is left.
                pass
            else:
                task.etag = claim.instead_etag
                return task
        task.etag = await store.multi(
            [DeleteRequest(partition=dead.partition, key=key, etag=dead.etag), revival]
        )
    except storage.ETagMismatchError as error:
        raise StaleReferenceError(f"dead letter {dead.task_id} was replayed already") from error
    except storage.PersistenceError as error:
        raise translated(error) from error
    return task


def _revived(letter: DeadLetter, row: DeadLetterRow, now_nanos: int) -> QueuedTask:
    """The queue task that a dead letter becomes when it is replayed, with its attempts forgotten.

    Its row is among the timers that are due, where the process that runs its queue finds it soonest.
    """
    key = timer_key(now_nanos, letter.task_id)
    if row.undecodable:
        return QueuedTask.parse(letter.partition, key, "", row.undecodable)
    task = TaskRow()
    task.CopyFrom(row.task)
    task.failures = 0
    task.not_before_nanos = 0
    return QueuedTask.of_row(letter.partition, key, "", task)
