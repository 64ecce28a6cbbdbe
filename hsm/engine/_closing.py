"""Closing executions from outside: by force, or by asking the root."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from hsm.engine._commit import tasks_of
from hsm.engine._execution import Execution
from hsm.engine._executions import Executions
from hsm.engine._operate import has_seen, operate
from hsm.engine._planner import Amendment, Planner
from hsm.engine._translation import translated
from hsm.errors import ExecutionClosedError, NotCancellableError
from hsm.ref import ExecutionKey
from hsm.transition import TransitionOutput
from hsm.tree import Node
from persistence import errors as storage
from persistence.executions import prefix_end
from persistence.proto.execution_pb2 import ExecutionRow, ExecutionStatus
from persistence.proto.hsm_pb2 import StateMachineTask
from persistence.store import EngineStore

__all__ = ["Cancellable", "cancel", "check_running", "pending_tasks", "terminate", "termination"]


@runtime_checkable
class Cancellable(Protocol):
    """Data of a root that can be asked to end."""

    def request_cancel(self, node: Node, reason: str) -> TransitionOutput | None:
        """Begin to end. Called in a transition of the root, once for each request.

        The machine goes where it cleans up, and asks for the tasks that do so. It may also go on as if
        nothing had happened.
        """
        ...


async def pending_tasks(store: EngineStore, execution: Execution, limit: int) -> list[StateMachineTask]:
    """Tasks that the machines of an execution wait for, from up to `limit` rows."""
    prefix = execution.prefix
    try:
        rows = store.scan(execution.partition, prefix, prefix_end(prefix), limit=limit)
        tasks = tasks_of([item.value async for item in rows])
    except storage.PersistenceError as error:
        raise translated(error) from error
    return [*execution.root._tasks, *tasks][:limit]


def termination(
    reason: str, tasks: Sequence[StateMachineTask], request: str = "", *, notice: bool
) -> Amendment:
    """Close an execution by force, and delete the rows of these tasks; others are dropped as they come up."""

    def amend(planner: Planner, row: ExecutionRow) -> None:
        row.status = ExecutionStatus.EXECUTION_STATUS_TERMINATED
        row.close_nanos = planner.now_nanos
        row.close_reason = reason
        if row.paused:
            del row.paused[:]
            # They come up once more, and are dropped.
            planner.put_back(row)
            planner.commit.tombstones = True
        if request:
            planner.remember(row, request)
        for task in tasks:
            planner.withdraw(task)
        if notice:
            planner.notice()

    return amend


async def terminate(
    executions: Executions,
    store: EngineStore,
    limit: int,
    key: ExecutionKey,
    reason: str,
    request_id: str,
    *,
    notice: bool,
) -> None:
    """See `Engine.terminate`."""
    request = request_id and f"terminate:{request_id}"
    tasks: list[StateMachineTask] = []

    async def before(execution: Execution) -> None:
        tasks[:] = await pending_tasks(store, execution, limit)

    def act(execution: Execution) -> tuple[None, Amendment | None]:
        if request and has_seen(execution.row, request):
            return None, None
        check_running(execution)
        return None, termination(reason, tasks, request, notice=notice)

    await operate(executions, key, act, before=before)


async def cancel(executions: Executions, key: ExecutionKey, reason: str, request_id: str) -> None:
    """See `Engine.cancel`."""
    request = request_id and f"cancel:{request_id}"

    def ask(root: Node, data: object) -> TransitionOutput | None:
        if not isinstance(data, Cancellable):
            raise NotCancellableError(f"machine type {root.machine_type.name!r} cannot be asked to cancel")
        return data.request_cancel(root, reason)

    def act(execution: Execution) -> tuple[None, Amendment | None]:
        if request and has_seen(execution.row, request):
            return None, None
        check_running(execution)
        root = execution.root
        root.transition(object, lambda data: ask(root, data))
        return None, None if not request else lambda planner, row: planner.remember(row, request)

    await operate(executions, key, act)


def check_running(execution: Execution) -> None:
    """Refuse what makes no sense for an execution that is closed.

    Raises:
        ExecutionClosedError: it is.
    """
    row = execution.row
    if row.close_nanos:
        namespace, id_, _ = execution.key
        status = ExecutionStatus.Name(row.status).removeprefix("EXECUTION_STATUS_").lower()
        raise ExecutionClosedError(f"execution {namespace}/{id_} is closed: {status}")
