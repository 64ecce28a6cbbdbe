"""Transactions in memory: a tree is opened for one, undone if it fails, and closed after it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import CoroutineType
from typing import Final, TypeVar

from hsm.engine._commit import check_task
from hsm.engine._execution import Execution
from hsm.engine._rows import QueuedTask, is_detached
from hsm.errors import (
    ExecutionClosedError,
    NotActiveError,
    PausedError,
    StaleReferenceError,
    StateMachineNotFoundError,
    UntrackedChangeError,
)
from hsm.machine import Key, VersionedTransition
from hsm.ref import Ref, check_execution_version, is_other_machine
from hsm.tree import Node
from persistence.proto.execution_pb2 import ExecutionRow, ExecutionStatus, PausedSubtree

__all__ = [
    "begin",
    "check_open",
    "check_pending",
    "check_runnable",
    "end",
    "is_paused",
    "locate",
    "plain",
    "refuse_changes",
    "roll_back",
    "seal",
    "still_paused",
]

ResultT = TypeVar("ResultT")

_TERMINATED: Final = ExecutionStatus.EXECUTION_STATUS_TERMINATED


def begin(execution: Execution, *, reading: bool = False) -> None:
    """Open the tree for a transaction. References made under one for reading know of no version to come."""
    state = execution.root._state
    last = execution.version
    if reading:
        state.version = last
    else:
        failover_version = last.failover_version
        if not failover_version and execution.cluster is not None:
            failover_version = execution.cluster.id
        state.version = VersionedTransition(failover_version, last.transition_count + 1)
    state.depth = 1
    state.sealed = False


def seal(execution: Execution) -> None:
    """Let nobody use the tree while the transaction awaits something: a handle may have got out."""
    execution.root._state.sealed = True


def plain(result: ResultT) -> ResultT:
    """What a function of a node has returned, which nobody awaits.

    Raises:
        TypeError: it was a coroutine function, and has not run at all.
    """
    if isinstance(result, CoroutineType):
        result.close()
        raise TypeError(
            f"{result.__qualname__} is a coroutine function; functions of a node are plain, and do no I/O"
        )
    return result


def roll_back(execution: Execution) -> None:
    """Undo what the transaction has done to the tree. It is over, but for its `end`."""
    state = execution.root._state
    state.roll_back(0, 0)
    state.sealed = True


def end(execution: Execution) -> None:
    """Close the tree after a transaction."""
    state = execution.root._state
    state.undo.clear()
    state.depth = 0
    state.sealed = True


def refuse_changes(execution: Execution) -> None:
    """Raise if a read has changed the tree."""
    if execution.root.dirty:
        raise UntrackedChangeError(
            f"execution {execution.key.namespace}/{execution.key.id} was changed under an access for reading"
        )


def locate(execution: Execution, ref: Ref, claim: QueuedTask | None) -> Node:
    """The node that a reference points to, if the reference still holds.

    Semantics: Temporal `validateStateMachineRef`. A reference that knows of no version and is not a task's
    may be a guess: then, that there is no such machine is told as such.

    Raises:
        StaleStateError: the reference knows more than the store does.
        StaleReferenceError: what it points to has gone or moved on.
        StateMachineNotFoundError: there is no such machine.
    """
    check_execution_version(ref.known_version, execution.history)
    root = execution.root
    try:
        node = root.child(ref.path)
    except StateMachineNotFoundError as error:
        # Be it the machine itself or one above it.
        if ref.task_id or ref.initial_version.transition_count:
            raise StaleReferenceError(f"{ref} is gone") from error
        raise
    if is_other_machine(ref.initial_version, node._initial_version):
        raise StaleReferenceError(f"{ref} was deleted; another machine has its key")
    if claim is None:
        if ref.transition_count and ref.transition_count != node.transition_count:
            raise StaleReferenceError(
                f"{ref} was made at transition {ref.transition_count},"
                f" the machine is at {node.transition_count}"
            )
    elif claim.task is not None:
        own = claim.ref()
        holder = node if own.path == ref.path else root.child(own.path)
        check_pending(holder, claim)
        check_task(claim.task, own, holder)
    return node


def check_pending(node: Node, claim: QueuedTask) -> None:
    """Tell a task that has run elsewhere, or was replaced, though it holds itself still valid."""
    task_id = claim.id
    for task in node._tasks:
        if task.id == task_id:
            return
    raise StaleReferenceError(f"task {task_id} is not pending any more")


def check_open(execution: Execution) -> None:
    """Refuse to write to an execution that was closed by force, or that another cluster writes to.

    Raises:
        ExecutionClosedError: it was closed.
        NotActiveError: another cluster writes to it.
    """
    if execution.foreign:
        raise NotActiveError(
            f"execution {execution.key.namespace}/{execution.key.id} is written to elsewhere"
        )
    row = execution.row
    if row.status == _TERMINATED:
        namespace, id_, _ = execution.key
        raise ExecutionClosedError(f"execution {namespace}/{id_} was terminated: {row.close_reason}")


def check_runnable(execution: Execution, ref: Ref, claim: QueuedTask | None) -> None:
    """Refuse to run a task of the machine that `ref` points to, unless that is allowed now.

    Raises:
        StaleReferenceError: another cluster runs the tasks of the execution.
        ExecutionClosedError: the execution was terminated.
        PausedError: the machine is paused, or one above it is.
    """
    if execution.foreign:
        raise StaleReferenceError(f"{ref} is of an execution that another cluster has taken over")
    if not is_detached(claim):
        check_open(execution)
    if is_paused(execution.row, ref.path):
        raise PausedError(f"{ref} is paused")


def is_paused(row: ExecutionRow, path: Sequence[Key]) -> bool:
    """Whether the machine at a path is paused, or one above it is."""
    return any(_is_within(path, _path_of(paused)) for paused in row.paused)


def still_paused(row: ExecutionRow, deleted: Iterable[Sequence[Key]]) -> list[PausedSubtree]:
    """The pauses of an execution that are not of deleted machines, nor of any below those."""
    gone = list(deleted)
    return [paused for paused in row.paused if not any(_is_within(_path_of(paused), path) for path in gone)]


def _path_of(paused: PausedSubtree) -> list[Key]:
    return [Key(key.type, key.id) for key in paused.path]


def _is_within(path: Sequence[Key], top: Sequence[Key]) -> bool:
    """Whether the machine at a path is the one at `top`, or below it."""
    return list(path[: len(top)]) == list(top)
