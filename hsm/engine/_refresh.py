"""Refresh: the tasks of all machines anew, from what their data says."""

from __future__ import annotations

from hsm.engine._execution import Execution
from hsm.engine._executions import Executions
from hsm.engine._operate import operate
from hsm.engine._planner import Amendment
from hsm.engine._transaction import check_open
from hsm.machine import TaskRegenerator
from hsm.ref import ExecutionKey

__all__ = ["refresh"]


async def refresh(executions: Executions, key: ExecutionKey) -> None:
    """See `Engine.refresh`."""
    touched: list[Execution] = []

    def act(execution: Execution) -> tuple[None, Amendment | None]:
        check_open(execution)
        touched.append(execution)
        state = execution.root._state
        for node in execution.root.walk():
            if isinstance(node.data(object), TaskRegenerator):
                # No transition: neither count nor version of the machine move.
                state.log.append((node, node.regenerate_tasks(), node.transition_count))
                state.dirty[node] = True
        return None, None

    try:
        await operate(executions, key, act, whole=True, refresh=True)
    except BaseException:
        for execution in touched:
            executions.evict(execution)
        raise
