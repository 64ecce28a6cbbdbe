"""Families: how a parent starts its child executions, hears of their end, and ends them with itself."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, Protocol, TypeVar

import attrs

from hsm.codec import result_codec
from hsm.engine._children import (
    CHILD_EXECUTION,
    ChildExecution,
    ChildInfo,
    ChildObserver,
    ChildState,
    ClosePolicy,
    Closing,
    ConfirmStart,
    EndChildren,
    HasExecutionResult,
    ReportClose,
    Startable,
    StartChild,
    note_close,
    note_start,
)
from hsm.engine._execution import Execution
from hsm.engine._executions import Executions
from hsm.engine._logs import engine_logger
from hsm.engine._operate import operate
from hsm.engine._start import Start, Starter
from hsm.engine._table import row_segments
from hsm.engine._transaction import begin, end, locate
from hsm.errors import (
    ExecutionAlreadyStartedError,
    ExecutionClosedError,
    ExecutionNotFoundError,
    HSMError,
    NotCancellableError,
    SerializationError,
    StaleReferenceError,
    StateMachineNotFoundError,
    TerminalError,
)
from hsm.machine import Key, Lifecycle, VersionedTransition, lifecycle_of
from hsm.ref import ExecutionKey, Ref
from hsm.registry import Registry
from hsm.task import Task
from hsm.transition import TransitionOutput
from hsm.tree import MissingPart, Node
from persistence.proto.execution_pb2 import ExecutionRow, ExecutionStatus, ParentLink

__all__ = ["Family", "OwnExecutor", "children_of", "parent_of"]

ResultT = TypeVar("ResultT")

OwnExecutor = Callable[[Ref, Task], Awaitable[None]]
"""Runs a task of the engine's own."""

_log: Final = engine_logger()
_AT_ONCE: Final = 50
_TERMINATED: Final = ExecutionStatus.EXECUTION_STATUS_TERMINATED
_STATUS: Final = {
    ExecutionStatus.EXECUTION_STATUS_COMPLETED: Lifecycle.COMPLETED,
    ExecutionStatus.EXECUTION_STATUS_FAILED: Lifecycle.FAILED,
    _TERMINATED: Lifecycle.TERMINATED,
}


class Engine(Protocol):
    """What a family needs of its engine."""

    async def read(self, ref: Ref, fn: Callable[[Node], ResultT]) -> ResultT: ...
    async def update(self, ref: Ref, fn: Callable[[Node], ResultT]) -> ResultT: ...
    async def terminate(self, key: ExecutionKey, reason: str = "", *, request_id: str = "") -> None: ...
    async def cancel(self, key: ExecutionKey, reason: str = "", *, request_id: str = "") -> None: ...


class Family:
    """The executors of the tasks by which parents and children deal with one another.

    Each may run again, at any point, in any process: starts go by a request id that names the machine of the
    child, ends find what has ended already, and a report finds that it was made. A child whose start comes
    too late, because that process was stopped, finds out by itself: what its parent knows decides.

    Attributes:
        executors: by the class of the task.
    """

    def __init__(self, executions: Executions, starter: Starter, registry: Registry, engine: Engine) -> None:
        self._executions = executions
        self._starter = starter
        self._registry = registry
        self._engine = engine
        self.executors: Mapping[type[Task], OwnExecutor] = {
            StartChild: self._start,
            ConfirmStart: self._confirm,
            ReportClose: self._report,
            EndChildren: self._end_all,
        }

    async def _start(self, ref: Ref, _: Task) -> None:
        info = await self._engine.read(ref, lambda node: _info(node, ref.execution))
        try:
            key = await self._begin(info)
        except ExecutionAlreadyStartedError as error:
            refused = Closing(_key_of(info), None, error=str(error))
            await self._engine.update(ref, lambda node: _close_and_tell(node, refused))
            return
        await self._engine.update(ref, lambda node: node.apply(note_start, key))

    async def _begin(self, info: ChildInfo, *, quietly: bool = False) -> ExecutionKey:
        """The key of the child, which runs by then; `quietly`, it does not do anything yet.

        Raises:
            ExecutionAlreadyStartedError: there is an execution of that name, which is not this child.
        """
        child, ref = info.child, info.ref
        definition = self._registry.required_machine(child.machine_type)
        data: object = definition.deserialize(child.data)
        start = Start(
            _key_of(info),
            child.machine_type,
            data,
            _request_of(ref),
            None if quietly or not isinstance(data, Startable) else _first_transition,
            row=ExecutionRow(parent=_link_to(ref)),
        )
        return (await self._starter.start(start)).execution

    async def _report(self, ref: Ref, _: Task) -> None:
        told = await operate(self._executions, ref.execution, _look)
        if told is None:
            return
        parent, closing = told
        reached = False

        def note(node: Node) -> None:
            nonlocal reached
            reached = True
            _close_and_tell(node, closing)

        try:
            try:
                await self._engine.update(parent, note)
            except ExecutionClosedError:
                # It is terminated.
                await self._note(parent, lambda node: _close(node, closing))
        except (ExecutionNotFoundError, StaleReferenceError, StateMachineNotFoundError) as error:
            if reached:
                # The parent is there, and fails.
                raise
            _log.debug("nobody has to be told of the end of %s: %s", ref.execution, error)

    async def _confirm(self, ref: Ref, _: Task) -> None:
        key = ref.execution
        execution = await self._executions.acquire(key, fresh=False)
        # Its parent is the same for ever.
        parent = _machine_in_parent(execution.row)
        execution.lock.release()
        if parent is None or await self._is_known(key, parent):
            return

        def is_expected(node: Node) -> bool:
            child = node.data(ChildExecution)
            if child.state is ChildState.SCHEDULED:
                node.apply(note_start, key)
            return child.execution == key

        try:
            if await self._note(parent, is_expected):
                return
        except (ExecutionNotFoundError, StaleReferenceError, StateMachineNotFoundError) as error:
            _log.debug("%s goes on without its parent: %s", key, error)
            return
        above = parent.execution
        with contextlib.suppress(ExecutionClosedError, ExecutionNotFoundError):
            await self._engine.terminate(key, f"its parent {above.namespace}/{above.id} does not wait for it")

    async def _is_known(self, key: ExecutionKey, parent: Ref) -> bool:
        """Whether a parent knows its child, as far as that is in memory: what is so stays so."""
        try:
            execution = await self._executions.acquire(parent.execution, fresh=False)
        except ExecutionNotFoundError:
            return False
        begin(execution, reading=True)
        try:
            return locate(execution, parent, None).data(ChildExecution).execution == key
        except (HSMError, MissingPart):
            # It may be out of date, and says nothing then.
            return False
        finally:
            end(execution)
            execution.lock.release()

    async def _note(self, ref: Ref, note: Callable[[Node], ResultT]) -> ResultT:
        """Change the machine that stands for a child, also when its execution was terminated."""

        def act(execution: Execution) -> tuple[ResultT, None]:
            return note(locate(execution, ref, None)), None

        return await operate(self._executions, ref.execution, act)

    async def _end_all(self, ref: Ref, _: Task) -> None:
        open_ = [
            info
            for info in await children_of(self._executions, ref.execution)
            if info.child.state is not ChildState.CLOSED
            and info.child.close_policy is not ClosePolicy.ABANDON
        ]
        failures: list[BaseException] = []
        for start in range(0, len(open_), _AT_ONCE):
            ends = [self._end(info) for info in open_[start : start + _AT_ONCE]]
            outcomes = await asyncio.gather(*ends, return_exceptions=True)
            failures += [outcome for outcome in outcomes if outcome is not None]
        if failures:
            # All the others are done with; of these, what can be tried again comes first.
            raise min(failures, key=lambda failure: isinstance(failure, TerminalError))

    async def _end(self, info: ChildInfo) -> None:
        child, parent = info.child, info.ref.execution
        terminates = child.close_policy is ClosePolicy.TERMINATE
        key = child.execution
        if child.state is ChildState.SCHEDULED:
            # Somebody may be about to start it: whoever comes second finds that it was, and has ended.
            try:
                key = await self._begin(info, quietly=terminates)
            except ExecutionAlreadyStartedError as error:
                refused = Closing(_key_of(info), None, error=str(error))
                await self._note(info.ref, lambda node: _close(node, refused))
                return
        reason = f"its parent {parent.namespace}/{parent.id} was closed"
        try:
            if terminates:
                await self._engine.terminate(key, reason, request_id=_request_of(info.ref))
            else:
                await self._engine.cancel(key, reason, request_id=_request_of(info.ref))
        except (ExecutionClosedError, ExecutionNotFoundError):
            return
        except NotCancellableError as error:
            raise TerminalError(
                f"child execution {key.namespace}/{key.id} goes on after its parent: {error}"
            ) from error


async def children_of(executions: Executions, key: ExecutionKey) -> Sequence[ChildInfo]:
    """The child executions that the machines of an execution stand for, in the order of the tree."""

    def collect(execution: Execution) -> tuple[Sequence[ChildInfo], None]:
        nodes = [node for node in execution.root.walk() if node.machine_type.id == CHILD_EXECUTION.id]
        return [_info(node, execution.key) for node in nodes], None

    return await operate(executions, key, collect, whole=True)


def parent_of(row: ExecutionRow) -> ExecutionKey | None:
    """The execution that has started this one as its child."""
    if not row.HasField("parent"):
        return None
    key = row.parent.execution
    return ExecutionKey(key.namespace, key.id, key.run_id)


def _machine_in_parent(row: ExecutionRow) -> Ref | None:
    """The machine that has started this execution as its child."""
    parent, link = parent_of(row), row.parent
    if parent is None:
        return None
    version = VersionedTransition(
        link.initial_version.failover_version, link.initial_version.max_transition_count
    )
    return Ref(parent, tuple([Key(key.type, key.id) for key in link.path]), initial_version=version)


def _info(node: Node, key: ExecutionKey) -> ChildInfo:
    return ChildInfo(
        Ref(key, node.path, initial_version=node.initial_version), attrs.evolve(node.data(ChildExecution))
    )


def _key_of(info: ChildInfo) -> ExecutionKey:
    """The name of a child; a made one is not used again for another child of the same parent."""
    ref, key = info.ref, info.child.execution
    parent = ref.execution
    id_ = key.id
    if not id_:
        *above, last = ref.path
        path = "/".join([*map(str, above), last.id])
        id_ = f"{parent.id}/{parent.run_id}/{path}/{ref.initial_version.transition_count}"
    return ExecutionKey(key.namespace or parent.namespace, id_)


def _request_of(ref: Ref) -> str:
    """Names the machine of a child for ever: a task of it may be replaced by another one."""
    parent, version = ref.execution, ref.initial_version
    return (
        f"child:{parent.namespace}/{parent.id}/{parent.run_id}/{row_segments(ref.path)}"
        f"/{version.failover_version}.{version.transition_count}"
    )


def _link_to(ref: Ref) -> ParentLink:
    link = ParentLink()
    link.execution.namespace, link.execution.id, link.execution.run_id = ref.execution
    for key in ref.path:
        link.path.add(type=key.type, id=key.id)
    link.initial_version.failover_version = ref.initial_version.failover_version
    link.initial_version.max_transition_count = ref.initial_version.transition_count
    return link


def _first_transition(root: Node) -> None:
    def begin(data: object) -> TransitionOutput | None:
        return data.on_start(root) if isinstance(data, Startable) else None

    root.transition(object, begin)


def _look(execution: Execution) -> tuple[tuple[Ref, Closing] | None, None]:
    """Whom to tell of the end of an execution, and what; None if it goes on."""
    row = execution.row
    status, parent = _STATUS.get(row.status), _machine_in_parent(row)
    if parent is None or status is None:
        return None, None
    result = None if row.status == _TERMINATED else _result_of(execution.root)
    return (parent, Closing(execution.key, status, row.state, row.close_reason, result)), None


def _result_of(root: Node) -> bytes | None:
    data = root.data(object)
    if not isinstance(data, HasExecutionResult):
        return None
    result = data.execution_result()
    try:
        return result_codec(type(result)).serialize(result)
    except SerializationError:
        raise
    except Exception as error:
        raise SerializationError(f"the result {result!r} cannot be kept: {error}") from error


def _close(node: Node, closing: Closing) -> bool:
    """Note that a child has ended; whether that is news."""
    child = node.data(ChildExecution)
    if child.state is ChildState.CLOSED or (
        child.state is ChildState.STARTED and child.execution != closing.execution
    ):
        return False
    node.apply(note_close, closing)
    return True


def _close_and_tell(node: Node, closing: Closing) -> None:
    """Note that a child has ended, and tell the machine that has started it, if its execution goes on."""
    owner, key = node.parent, node.key
    if not _close(node, closing) or owner is None or key is None:
        return
    root = owner
    while root.parent is not None:
        root = root.parent

    def tell(data: object) -> TransitionOutput | None:
        if not isinstance(data, ChildObserver):
            return None
        return data.child_closed(owner, key.id, node.data(ChildExecution))

    observed = isinstance(owner.data(object), ChildObserver)
    if observed and lifecycle_of(root.data(object)) is Lifecycle.RUNNING:
        owner.transition(object, tell)
