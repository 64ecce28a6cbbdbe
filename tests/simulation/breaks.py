"""Engines that are broken on purpose: the simulation has to find out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Final
from unittest.mock import patch

import attrs

from hsm import Ref, Task
from hsm.engine import (
    Outcome,
    _closing,
    _deletion,
    _executions,
    _family,
    _plan,
    _planner,
    _start,
    _sweeper,
    _transaction,
)
from hsm.engine._children import owed
from hsm.engine._execution import Execution
from hsm.engine._executions import Executions
from hsm.engine._family import Family
from hsm.engine._gates import Circuit, _Bucket
from hsm.engine._loader import Loader
from hsm.engine._planner import Planner
from hsm.engine._rows import QueuedTask
from hsm.engine._translation import translated
from hsm.engine._worker import Worker
from hsm.engine.deadlines import DeadlineQueue
from hsm.errors import CommitConflictError
from persistence import errors as storage
from persistence.store import CheckRequest, DeleteRequest, Operation, SetRequest
from tests.simulation.store import SimulatedStore

__all__ = ["BREAKS", "broken"]

_QUEUES: Final = ("t/", "o/", "i/")


def _careless_multi(careless: Callable[[Operation], bool]) -> AbstractContextManager[Any]:
    """A store that does not check the etags of some rows."""
    multi = SimulatedStore.multi

    async def careless_multi(self: SimulatedStore, operations: Sequence[Operation]) -> str:
        kept: list[Operation] = []
        for operation in operations:
            if not careless(operation):
                kept.append(operation)
            elif not isinstance(operation, CheckRequest):
                kept.append(attrs.evolve(operation, etag=None))
        return await multi(self, kept) if kept else ""

    return patch.object(SimulatedStore, "multi", careless_multi)


def _version() -> AbstractContextManager[Any]:
    def careless(operation: Operation) -> bool:
        return (
            operation.key.startswith("e/")
            and bool(operation.etag)
            and not isinstance(operation, CheckRequest)
        )

    return _careless_multi(careless)


def _task_row() -> AbstractContextManager[Any]:
    return _careless_multi(lambda operation: operation.key.startswith(_QUEUES))


def _dirty() -> AbstractContextManager[Any]:
    plan = _plan.plan

    def forgetful(registry: Any, ids: Any, execution: Execution, *arguments: Any, **options: Any) -> Any:
        dirty = execution.root._state.dirty
        for node in dirty:
            if len(node.path) == 2:
                dirty[node] = False
        return plan(registry, ids, execution, *arguments, **options)

    return patch.object(_executions, "plan", forgetful)


def _outbox() -> AbstractContextManager[Any]:
    new_task = Planner.new_task

    def lose(self: Planner, *arguments: Any) -> None:
        new_task(self, *arguments)
        if len(self.commit.queued) > 1:
            key = self.commit.queued.pop().key
            self.operations[:] = [operation for operation in self.operations if operation.key != key]

    return patch.object(Planner, "new_task", lose)


def _unknown() -> AbstractContextManager[Any]:

    def sure(error: storage.PersistenceError) -> Exception:
        if isinstance(error, storage.CommitOutcomeUnknownError):
            return CommitConflictError("it cannot have taken place")
        return translated(error)

    return patch.object(_executions, "translated", sure)


def _stale_reads() -> AbstractContextManager[Any]:
    async def is_current(self: Executions, execution: Execution) -> bool:
        return True

    return patch.object(Executions, "_is_current", is_current)


def _rollback() -> AbstractContextManager[Any]:
    def keep(execution: Execution) -> None:
        execution.root._state.sealed = True

    return patch.object(_executions, "roll_back", keep)


def _validation() -> AbstractContextManager[Any]:
    stack = ExitStack()
    for module in (_planner, _transaction):
        stack.enter_context(patch.object(module, "check_task", lambda task, ref, node: None))
    return stack


def _polls() -> AbstractContextManager[Any]:
    async def poll(self: Loader, until_nanos: int, partitions: object = None) -> None:
        """See nothing."""

    return patch.object(Loader, "poll", poll)


def _sweeping() -> AbstractContextManager[Any]:
    async def sweep(store: object, partition: str, row: object) -> None:
        """Leave everything as it is."""

    return patch.object(_sweeper, "_sweep_execution", sweep)


def _pauses() -> AbstractContextManager[Any]:
    return patch.object(_executions, "check_runnable", lambda execution, ref, claim: None)


def _timers() -> AbstractContextManager[Any]:
    put = DeadlineQueue.put

    def early(self: DeadlineQueue[Any], key: Any, deadline: int) -> None:
        # Of tasks; queues that are closed are not to be asked again and again.
        put(self, key, deadline - 10**9 * isinstance(key, str))

    return patch.object(DeadlineQueue, "put", early)


def _requests() -> AbstractContextManager[Any]:
    stack = ExitStack()
    for module in (_closing, _start):
        stack.enter_context(patch.object(module, "has_seen", lambda row, request: False))
    return stack


def _letters() -> AbstractContextManager[Any]:
    async def throw_away(self: Worker, task: QueuedTask, error: Exception) -> Outcome:
        await self._write([DeleteRequest(partition=task.partition, key=task.key, etag=task.etag)])
        return Outcome.DEAD_LETTERED

    return patch.object(Worker, "_bury", throw_away)


def _index() -> AbstractContextManager[Any]:
    show = Planner._show

    def once(self: Planner, row: Any, shown: Any) -> None:
        if len(shown) and self.execution.etag is None:
            show(self, row, shown)

    return patch.object(Planner, "_show", once)


def _singletons() -> AbstractContextManager[Any]:
    new_task = _planner.Planner.new_task

    def twice(self: Planner, pending: Any, node: Any, count: int, task: Any) -> None:
        # The rows of those that are replaced stay.
        before = list(self.operations)
        new_task(self, pending, node, count, task)
        self.operations[:] = [
            operation
            for operation in self.operations
            if operation in before or isinstance(operation, SetRequest)
        ]

    return patch.object(Planner, "new_task", twice)


def _ends() -> AbstractContextManager[Any]:
    async def leave_them(self: Family, ref: Ref, task: Task) -> None:
        """Let the children go on."""

    return patch.object(Family, "_end_all", leave_them)


def _reports() -> AbstractContextManager[Any]:
    async def tell_nobody(self: Family, ref: Ref, task: Task) -> None:
        """Keep it."""

    return patch.object(Family, "_report", tell_nobody)


def _starts() -> AbstractContextManager[Any]:
    return patch.object(_family, "_request_of", lambda ref: "")


def _refreshes() -> AbstractContextManager[Any]:
    return patch.object(Planner, "withdraw_all", lambda self, pending, node: None)


def _retention() -> AbstractContextManager[Any]:
    delete = _deletion.delete

    async def at_once(*arguments: Any, force: bool) -> str:
        return await delete(*arguments, force=True)

    return patch.object(_deletion, "delete", at_once)


def _replaced() -> AbstractContextManager[Any]:
    return patch.object(_transaction, "check_pending", lambda node, claim: None)


def _latecomers() -> AbstractContextManager[Any]:
    def once(row: Any, before: Any, *, starts_child: bool) -> list[Task]:
        return owed(row, before, starts_child=False)

    return patch.object(_planner, "owed", once)


def _confirmations() -> AbstractContextManager[Any]:
    async def believe(self: Family, ref: Ref, task: Task) -> None:
        """Take it for granted that the parent knows."""

    return patch.object(Family, "_confirm", believe)


def _rates() -> AbstractContextManager[Any]:
    return patch.object(_Bucket, "empty_until", lambda self, now: None)


def _breakers() -> AbstractContextManager[Any]:
    return patch.object(Circuit, "closed_until", lambda self, now: None)


BREAKS: Final[dict[str, tuple[str, Callable[[], AbstractContextManager[Any]]]]] = {
    "version": ("a commit does not check the version of its execution", _version),
    "task-row": ("a write of a task does not check that its row is still there", _task_row),
    "dirty": ("changes of machines two levels down are forgotten", _dirty),
    "outbox": ("only the first task of a commit gets a row", _outbox),
    "unknown": ("a commit of unknown outcome counts as one that has not taken place", _unknown),
    "stale-reads": ("nobody looks whether a tree in memory is out of date", _stale_reads),
    "rollback": ("what a transaction did to the tree stays when it fails", _rollback),
    "validation": ("tasks that have become pointless are carried out", _validation),
    "polls": ("nobody looks for tasks that other processes have written", _polls),
    "sweeping": ("machines of deleted executions stay", _sweeping),
    "pauses": ("tasks of a paused execution run", _pauses),
    "timers": ("timers fire a second early", _timers),
    "requests": ("nobody remembers the requests that an execution has carried out", _requests),
    "letters": ("tasks are thrown away instead of becoming dead letters", _letters),
    "index": ("the index of search attributes is not kept up", _index),
    "singletons": ("rows of tasks that are replaced stay", _singletons),
    "ends": ("children go on when their parents have closed", _ends),
    "reports": ("parents are not told of the end of their children", _reports),
    "starts": ("nobody knows whether a child was started already", _starts),
    "refreshes": ("a refresh leaves the old tasks where they are", _refreshes),
    "retention": ("executions are deleted whether or not they have anything left to do", _retention),
    "replaced": ("tasks that others have taken the place of are carried out", _replaced),
    "latecomers": ("children of parents that have closed already go on", _latecomers),
    "confirmations": ("children do not look whether their parents know of them", _confirmations),
    "rates": ("the rates of queues are not kept to", _rates),
    "breakers": ("circuit breakers let everything through", _breakers),
}


def broken(name: str) -> AbstractContextManager[Any]:
    """An engine with this defect, in the block."""
    return BREAKS[name][1]()
