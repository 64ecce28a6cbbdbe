"""Operations on executions as a whole: one commit that changes the execution's row, and perhaps its tree."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from hsm.engine._execution import Execution
from hsm.engine._executions import Executions
from hsm.engine._planner import Amendment
from hsm.engine._rows import QueuedTask
from hsm.engine._transaction import begin, end, roll_back
from hsm.errors import CommitConflictError
from hsm.ref import ExecutionKey
from hsm.tree import MissingPart
from persistence.proto.execution_pb2 import ExecutionRow

__all__ = ["has_seen", "operate"]

ResultT = TypeVar("ResultT")


async def operate(
    executions: Executions,
    key: ExecutionKey,
    act: Callable[[Execution], tuple[ResultT, Amendment | None]],
    *,
    before: Callable[[Execution], Awaitable[None]] | None = None,
    whole: bool = False,
    refresh: bool = False,
    claim: QueuedTask | None = None,
    keep_claim: bool = False,
) -> ResultT:
    """Let `act` look at an execution as it is now and change its tree, and commit that with its amendment.

    Nothing is committed if the tree is as it was and there is no amendment. `act` may run again, on a newer
    state; `before` reads what it needs from the store each time; with `whole`, all of the tree is loaded.
    With `refresh`, the machines that are changed ask for all their tasks anew. A commit ends the task
    `claim`, unless that is to be kept.
    """
    key = await executions.resolve(key)
    while True:
        execution = await executions.acquire(key, fresh=True)
        try:
            if before is not None:
                await before(execution)
            if whole and not await executions.load_whole(execution):
                executions.evict(execution)
                continue
            begin(execution)
            result, amend = act(execution)
            if amend is not None or execution.root.dirty:
                await executions.commit(execution, claim, keep_claim=keep_claim, amend=amend, refresh=refresh)
        except CommitConflictError:
            roll_back(execution)
            executions.evict(execution)
        except MissingPart as part:
            roll_back(execution)
            if not await executions.load_part(execution, part):
                executions.evict(execution)
        except BaseException:
            roll_back(execution)
            raise
        else:
            return result
        finally:
            end(execution)
            execution.lock.release()


def has_seen(row: ExecutionRow, request: str) -> bool:
    """Whether a request was carried out on the execution, as far as that is remembered."""
    return request in row.request_ids
