"""Child executions: started by a machine of another execution, which is told how they end."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import ClassVar, Final, Protocol, TypeVar, runtime_checkable

import attrs

from hsm.codec import result_codec
from hsm.errors import SerializationError, StaleReferenceError
from hsm.machine import Lifecycle, MachineType
from hsm.ref import ExecutionKey, Ref
from hsm.task import ImmediateKind, Task, TaskKind, TaskType
from hsm.transition import TransitionOutput, transitions
from hsm.tree import Collection, Node
from hsm.tree._data import encode
from persistence.proto.execution_pb2 import ExecutionRow

__all__ = [
    "CHILD_EXECUTION",
    "DETACHED",
    "UNASKED",
    "ChildExecution",
    "ChildInfo",
    "ChildObserver",
    "ChildState",
    "Children",
    "ClosePolicy",
    "Closing",
    "ConfirmStart",
    "EndChildren",
    "HasExecutionResult",
    "ReportClose",
    "StartChild",
    "Startable",
    "note_close",
    "note_start",
    "owed",
    "schedule",
]

ResultT = TypeVar("ResultT")

_OURS: Final = -(2**31)
"""The lowest thousand ids of machine types and task types are the engine's own."""

CHILD_EXECUTION: Final = MachineType(_OURS + 1, "hsm.ChildExecution")
"""The machine type of child executions in the trees of their parents."""

_NO_KEY: Final = ExecutionKey("", "")


class ChildState(enum.Enum):
    """How far the parent knows its child to be."""

    SCHEDULED = "scheduled"
    """It is going to be started."""
    STARTED = "started"
    CLOSED = "closed"
    """It has ended, or could not be started."""


class ClosePolicy(enum.Enum):
    """What becomes of a child that is running when its parent closes, in whatever way.

    Semantics: Temporal's parent close policy.
    """

    TERMINATE = "terminate"
    """It is terminated; one that was not started yet is not."""
    REQUEST_CANCEL = "request cancel"
    """Its root is asked to end: it has to be `Cancellable`."""
    ABANDON = "abandon"
    """It goes on."""


@runtime_checkable
class ChildObserver(Protocol):
    """Data of a machine that wants to know when one of its child executions has closed."""

    def child_closed(self, node: Node, id: str, child: ChildExecution, /) -> TransitionOutput | None:
        """A child has closed, or could not be started. Called in a transition of the machine, once a child.

        It is part of the commit in which the parent learns of it. It is not called if the parent itself has
        closed meanwhile.

        Args:
            node: of this machine.
            id: of the child, as given to `Children.start`.
            child: what is known of it.
        """
        ...


@runtime_checkable
class Startable(Protocol):
    """Data of a root that knows what to do when it is started as a child."""

    def on_start(self, node: Node, /) -> TransitionOutput | None:
        """The first transition, in the commit that starts the execution."""
        ...


@runtime_checkable
class HasExecutionResult(Protocol):
    """Data of a root that leaves something for the parent when it closes."""

    def execution_result(self) -> object:
        """The result: of a class that `hsm.codec.result_codec` can keep."""
        ...


@attrs.define
class ChildExecution:
    """A child execution as its parent knows it: the data of a machine below the one that has started it.

    Deleting that machine lets go of the child, as `ABANDON` does.

    Attributes:
        execution: namespace and id, and the run id once it is started; what is left empty is filled in then.
        machine_type: id of its root's type.
        data: of its root, until it is started.
        close_policy: what becomes of it when the parent closes.
        state: how far it is.
        status: how it was closed; None until then, and if it could not be started.
        close_state: the name of its root's last state.
        error: why it could not be started, or was terminated.
        raw_result: what its root has left; None if nothing.
    """

    execution: ExecutionKey
    machine_type: int
    data: bytes
    close_policy: ClosePolicy = ClosePolicy.TERMINATE
    state: ChildState = ChildState.SCHEDULED
    status: Lifecycle | None = None
    close_state: str = ""
    error: str = ""
    raw_result: bytes | None = None

    def result(self, type_: type[ResultT]) -> ResultT:
        """What its root has left, see `HasExecutionResult`.

        Raises:
            SerializationError: it has left nothing, or something else.
        """
        if self.raw_result is None:
            raise SerializationError(f"child execution {self.execution} has left no result")
        return result_codec(type_).deserialize(self.raw_result)

    def regenerate_tasks(self, _: Node, /) -> Iterable[Task]:
        """See `TaskRegenerator`."""
        return (StartChild(),) if self.state is ChildState.SCHEDULED else ()


class Children(Collection[ChildExecution]):
    """The child executions of a machine: `Children(node).start("invoice", Invoice(...))` in a transition."""

    __slots__ = ()

    def __init__(self, node: Node) -> None:
        super().__init__(node, CHILD_EXECUTION.id, ChildExecution)

    def start(
        self,
        id: str,
        data: object,
        *,
        execution: ExecutionKey = _NO_KEY,
        machine_type: MachineType | None = None,
        close_policy: ClosePolicy = ClosePolicy.TERMINATE,
    ) -> Node:
        """Have a child execution started after this commit; the machine that stands for it.

        It is started by a task, which may run more than once, and starts one child. If its root is
        `Startable`, that is its first transition.

        Args:
            id: among the children of this machine.
            data: of its root.
            execution: namespace and id; an empty namespace is that of the parent, an empty id is made from
                the parent's.
            machine_type: of its root; found by the class of `data` if it is not given.
            close_policy: what becomes of it when the parent closes.

        Raises:
            StateMachineAlreadyExistsError: there is a child with this id.
            NotRegisteredError: the machine type is not registered, or cannot be told from the data.
        """
        registry = self._node._state.registry
        type_id = registry.type_of(data) if machine_type is None else machine_type.id
        raw = encode(registry.required_machine(type_id), data)
        child = ChildExecution(execution._replace(run_id=""), type_id, raw, close_policy)
        node = self.add(id, child)
        node.apply(schedule, None)
        return node

    def result(self, id: str, type_: type[ResultT]) -> ResultT:
        """What a child has left, see `ChildExecution.result`."""
        return self.data(id).result(type_)


@attrs.frozen
class ChildInfo:
    """A child execution in a listing.

    Attributes:
        ref: to the machine that stands for it in the tree of its parent.
        child: what the parent knows of it.
    """

    ref: Ref
    child: ChildExecution


@attrs.frozen
class Closing:
    """How a child has ended.

    Attributes:
        execution: with the run id, if it was ever started.
        status: None if it was not.
        state: the name of its root's state.
        error: why it was terminated or not started.
        result: what its root has left.
    """

    execution: ExecutionKey
    status: Lifecycle | None
    state: str = ""
    error: str = ""
    result: bytes | None = None


_child: Final = transitions(ChildExecution)


@_child.move([ChildState.SCHEDULED], ChildState.SCHEDULED)
def schedule(_: ChildExecution, __: None, /) -> TransitionOutput:
    """Have it started."""
    return TransitionOutput((StartChild(),))


@_child.move([ChildState.SCHEDULED], ChildState.STARTED)
def note_start(child: ChildExecution, event: ExecutionKey) -> None:
    """It is there, under this key."""
    child.execution = event
    child.data = b""


@_child.move([ChildState.SCHEDULED, ChildState.STARTED], ChildState.CLOSED)
def note_close(child: ChildExecution, event: Closing) -> None:
    """It has ended."""
    child.execution = event.execution
    child.data = b""
    child.status = event.status
    child.close_state = event.state
    child.error = event.error
    child.raw_result = event.result


@attrs.frozen
class StartChild:
    """Of the machine that stands for a child: starts it."""

    type: ClassVar[TaskType] = TaskType(_OURS + 1, "hsm.StartChild")

    @property
    def kind(self) -> TaskKind:
        return ImmediateKind()

    def validate(self, ref: Ref, node: Node) -> None:
        if node.data(ChildExecution).state is not ChildState.SCHEDULED:
            raise StaleReferenceError(f"{ref} is started")


@attrs.frozen
class ConfirmStart:
    """Of the root of a child that was just started: sees to it that its parent knows, or ends it.

    Whoever has started it may have been stopped for so long that the parent was told otherwise meanwhile.
    """

    type: ClassVar[TaskType] = TaskType(_OURS + 4, "hsm.ConfirmStart")

    @property
    def kind(self) -> TaskKind:
        return ImmediateKind()

    def validate(self, ref: Ref, node: Node) -> None:
        """It is valid until it has run."""


@attrs.frozen
class ReportClose:
    """Of the root of a child that has closed: tells its parent."""

    type: ClassVar[TaskType] = TaskType(_OURS + 2, "hsm.ReportClose")

    @property
    def kind(self) -> TaskKind:
        return ImmediateKind()

    def validate(self, ref: Ref, node: Node) -> None:
        """It is valid until it has run."""


@attrs.frozen
class EndChildren:
    """Of the root of an execution that has closed: does to its children what their policies say."""

    type: ClassVar[TaskType] = TaskType(_OURS + 3, "hsm.EndChildren")

    @property
    def kind(self) -> TaskKind:
        return ImmediateKind()

    def validate(self, ref: Ref, node: Node) -> None:
        """It is valid until it has run."""


DETACHED: Final = frozenset({ReportClose.type.id, EndChildren.type.id})
"""Ids of task types whose tasks run also when their execution was terminated."""

UNASKED: Final = DETACHED | {ConfirmStart.type.id}
"""Ids of task types of which the machines that have these tasks know nothing."""


def owed(row: ExecutionRow, before: ExecutionRow | None, *, starts_child: bool) -> list[Task]:
    """What an execution has to settle with its parent and its children because of a commit.

    Args:
        row: as the commit writes it.
        before: as it was; None if the commit starts the execution.
        starts_child: whether a machine asks for a child in it.
    """
    closes = bool(row.close_nanos) and (before is None or row.close_nanos != before.close_nanos)
    own: list[Task] = []
    if row.HasField("parent"):
        own += [ConfirmStart()] if before is None else []
        own += [ReportClose()] if closes else []
    # One that starts a child when it is closed has ended its other children already.
    if row.has_children and (closes or (row.close_nanos and starts_child)):
        own.append(EndChildren())
    return own
