"""The machine that stands for a child execution, as rows keep it, and the queues of its tasks."""

from __future__ import annotations

from typing import Final

from hsm.engine._children import (
    CHILD_EXECUTION,
    ChildExecution,
    ChildState,
    ClosePolicy,
    ConfirmStart,
    EndChildren,
    ReportClose,
    StartChild,
)
from hsm.machine import Lifecycle
from hsm.ref import ExecutionKey
from hsm.registry import Registry
from persistence.proto.execution_pb2 import (
    ChildClosePolicy,
    ChildExecutionInfo,
    ChildExecutionState,
    ExecutionKey as ExecutionKeyMessage,
    ExecutionStatus,
)

__all__ = ["register_child_executions"]

_GROUP: Final = "hsm.children"


class _Definition:
    type = CHILD_EXECUTION
    data_type = ChildExecution

    def serialize(self, data: ChildExecution, /) -> bytes:
        message = ChildExecutionInfo(
            state=_STATES[data.state],
            execution=ExecutionKeyMessage(
                namespace=data.execution.namespace, id=data.execution.id, run_id=data.execution.run_id
            ),
            root_type=data.machine_type,
            data=data.data,
            close_policy=_POLICIES[data.close_policy],
            close_state=data.close_state,
            error=data.error,
        )
        if data.status is not None:
            message.status = _STATUSES[data.status]
        if data.raw_result is not None:
            message.has_result = True
            message.result = data.raw_result
        return message.SerializeToString()

    def deserialize(self, data: bytes, /) -> ChildExecution:
        message = ChildExecutionInfo.FromString(data)
        execution = message.execution
        return ChildExecution(
            ExecutionKey(execution.namespace, execution.id, execution.run_id),
            message.root_type,
            message.data,
            _POLICY_OF[message.close_policy],
            _STATE_OF[message.state],
            _LIFECYCLE_OF.get(message.status),
            message.close_state,
            message.error,
            message.result if message.has_result else None,
        )


_STATES: Final = {
    ChildState.SCHEDULED: ChildExecutionState.CHILD_EXECUTION_STATE_SCHEDULED,
    ChildState.STARTED: ChildExecutionState.CHILD_EXECUTION_STATE_STARTED,
    ChildState.CLOSED: ChildExecutionState.CHILD_EXECUTION_STATE_CLOSED,
}
_STATE_OF: Final = {number: state for state, number in _STATES.items()}
_POLICIES: Final = {
    ClosePolicy.TERMINATE: ChildClosePolicy.CHILD_CLOSE_POLICY_TERMINATE,
    ClosePolicy.REQUEST_CANCEL: ChildClosePolicy.CHILD_CLOSE_POLICY_REQUEST_CANCEL,
    ClosePolicy.ABANDON: ChildClosePolicy.CHILD_CLOSE_POLICY_ABANDON,
}
_POLICY_OF: Final = {number: policy for policy, number in _POLICIES.items()}
_STATUSES: Final = {
    Lifecycle.RUNNING: ExecutionStatus.EXECUTION_STATUS_RUNNING,
    Lifecycle.COMPLETED: ExecutionStatus.EXECUTION_STATUS_COMPLETED,
    Lifecycle.FAILED: ExecutionStatus.EXECUTION_STATUS_FAILED,
    Lifecycle.TERMINATED: ExecutionStatus.EXECUTION_STATUS_TERMINATED,
}
_LIFECYCLE_OF: Final = {number: status for status, number in _STATUSES.items()}


def register_child_executions(registry: Registry) -> None:
    """Make child executions known to a registry; an engine does it by itself, if nobody has done it.

    For trees that have children, and no engine.
    """
    if registry.machine(CHILD_EXECUTION.id) is not None:
        return
    registry.register_machine(_Definition())
    for task in (StartChild, ReportClose, EndChildren):
        registry.register_task(task, group=_GROUP)
    # None of these has to wait behind a hundred starts, nor a start behind them.
    registry.register_task(ConfirmStart, group=f"{_GROUP}.confirm")
