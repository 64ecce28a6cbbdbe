"""Executors: the code that runs a task, and the environment it runs in."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from inspect import isawaitable
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar

from hsm.errors import NotRegisteredError, TerminalError
from hsm.ref import Ref
from hsm.task import Task

if TYPE_CHECKING:
    from hsm.registry import Registry
    from hsm.tree import Node

__all__ = ["AccessType", "Environment", "Executor", "TimerExecutor", "execute"]

ResultT = TypeVar("ResultT")
TaskT = TypeVar("TaskT", bound=Task)


class AccessType(enum.Enum):
    """What an access may do."""

    READ = "read"
    WRITE = "write"


class Environment(Protocol):
    """What an executor knows of the world: the time, and trees by reference."""

    def now(self) -> datetime:
        """The present time, aware."""
        ...

    def access(
        self, ref: Ref, access: AccessType, *, keep_task: bool = False
    ) -> AbstractAsyncContextManager[Node]:
        """The node that `ref` points to, locked until the block ends.

        WRITE commits when the block ends and rolls back when it raises. The node is of no use afterwards. The
        whole tree is loaded, because the block cannot run twice: `read` and `update` load what they need.

        A write under the reference of a queue task ends that task, in the same commit: what it does is done
        once. With `keep_task` the task goes on, and may write again; it has to be a `ValidatedTask`, which
        tells when that is no longer right.

        Raises:
            StaleReferenceError: the node has moved on, or the task has written already.
            CommitConflictError: somebody else changed the execution first.
            ReentrantTransitionError: this asyncio task holds the execution already. A task that it begins
                inside the block waits for the end of the block; do not wait for such a task there.
        """
        ...

    async def read(self, ref: Ref, fn: Callable[[Node], ResultT]) -> ResultT:
        """The result of `fn` on the node, as it is in the store now. `fn` may run again, and changes nothing.

        Raises:
            StaleReferenceError: the node has moved on.
            StateMachineNotFoundError, ExecutionNotFoundError: there is no such node.
            UntrackedChangeError: `fn` has changed the tree; that is undone.
        """
        ...

    async def update(self, ref: Ref, fn: Callable[[Node], ResultT], *, keep_task: bool = False) -> ResultT:
        """Run `fn` on the node, commit what it did, and return its result.

        `fn` may run again: on a tree loaded anew, when somebody else changed the execution first, and
        when it needed a part of the tree that was not loaded. Raises as `access`, but never for a conflict;
        `keep_task` is as there.
        """
        ...


Executor: TypeAlias = Callable[[Environment, Ref, TaskT], Awaitable[None]]
"""Runs a task of any kind, outside the lock; reaches state through the environment."""

TimerExecutor: TypeAlias = "Callable[[Environment, Node, TaskT], None]"
"""Runs a timer under the lock; what it does to the tree is committed with the end of the task."""


async def execute(registry: Registry, env: Environment, ref: Ref, task: Task) -> None:
    """Run the executor of a task, of either kind.

    Raises:
        NotRegisteredError: the task type has no executor.
        TerminalError: the executor is no coroutine function.
    """
    executor = registry.executor(type(task))
    if executor is not None:
        running: object = executor(env, ref, task)
        if not isawaitable(running):
            # It has done its work, and trying it again would do it again.
            raise TerminalError(
                f"the executor of task type {task.type.name!r} returned {running!r}: executors are coroutine"
                " functions, and `hsm.engine.in_thread` makes one of a function that blocks"
            )
        await running
        return
    timer_executor = registry.timer_executor(type(task))
    if timer_executor is None:
        raise NotRegisteredError(f"task type {task.type.name!r} (id {task.type.id}) has no executor")
    await env.update(ref, lambda node: timer_executor(env, node, task))
