"""The engine: durable executions on a store, their queues and their timers."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Final, NoReturn, Self, TypeVar

from hsm.engine import _queries
from hsm.engine._access import Access
from hsm.engine._child_definition import register_child_executions
from hsm.engine._commit import Commit
from hsm.engine._deletion import expire
from hsm.engine._execution import Execution
from hsm.engine._executions import Executions
from hsm.engine._family import Family
from hsm.engine._listings import Listings
from hsm.engine._observed import EngineGauges, ObservedExecutions, ObservedWorker, harmlessly, use
from hsm.engine._operations import Operations
from hsm.engine._policies import Policies
from hsm.engine._queues import Dispatcher
from hsm.engine._repairing import Repairs
from hsm.engine._replay import replay
from hsm.engine._replication import Replication
from hsm.engine._requests import Requests
from hsm.engine._rows import QueuedTask
from hsm.engine._settings import shard_count
from hsm.engine._shards import Shards
from hsm.engine._start import Starter
from hsm.engine._stopping import end_runs
from hsm.engine._translation import translated
from hsm.engine._waiting import Waiters
from hsm.engine._worker import Worker
from hsm.engine.clock import from_nanos, nanos_of, time_limit
from hsm.engine.ids import IdSource
from hsm.engine.info import DeadLetter, ExecutionTree, QueueInfo
from hsm.engine.options import EngineOptions
from hsm.errors import StaleReferenceError
from hsm.executor import AccessType, Environment
from hsm.ref import ExecutionKey, Ref
from hsm.registry import Registry
from hsm.tree import Node
from persistence import errors as storage
from persistence.store import EngineStore

__all__ = ["Engine"]

ResultT = TypeVar("ResultT")

_PARTS: Final = frozenset({"_executions", "_dispatcher", "_shards", "_starter", "_worker", "_waiters"})
"""What an engine has while it is open."""


class Engine(Requests, Operations, Listings, Repairs, Replication):
    """Runs executions on a store: `async with Engine(registry, store) as engine`.

    An execution is a tree of machines under one root. A transition and the tasks that it asks for are
    committed together or not at all. Every task runs at least once, as it comes due, also after a crash; what
    it does to the tree is done once. The store is the caller's to open and to close.

    With `run_tasks` False, the engine reads and writes executions and runs no task. With `environment`,
    executors are given what that makes of the engine, and not the engine itself.

    Semantics: Temporal's history service, with one row for each machine and without history events.
    """

    def __init__(
        self,
        registry: Registry,
        store: EngineStore,
        options: EngineOptions | None = None,
        *,
        run_tasks: bool = True,
        environment: Callable[[Engine], Environment] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(store, str):
            raise TypeError("an engine takes an open store, not a URL: `async with connect(url) as store`")
        self._registry = registry
        register_child_executions(registry)
        self._store = store
        self._options = options or EngineOptions()
        self._run_tasks = run_tasks
        self._environment: Environment = self if environment is None else environment(self)
        self._ids = IdSource(self._options.random)
        # Executors run in this, not in that of whoever happens to commit their task.
        self._context = contextvars.copy_context()
        self._runs: set[asyncio.Task[None]] = set()
        self._drainers: list[asyncio.Future[None]] = []
        self._opened = False
        self._closing = False
        self._gauges: EngineGauges | None = None
        if self._options.telemetry is not None:
            self._context.run(use, self._options.telemetry)
        self._executions: Executions
        self._dispatcher: Dispatcher
        self._shards: Shards
        self._starter: Starter
        self._worker: Worker
        self._waiters: Waiters

    if not TYPE_CHECKING:  # type checkers would take any name for an attribute

        def __getattr__(self, name: str) -> NoReturn:
            """Only what is missing is asked for here; who forgets `async with` misses one of the parts."""
            if name in _PARTS:
                raise RuntimeError("the engine is not open: use `async with Engine(...) as engine`")
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    async def __aenter__(self) -> Self:
        options, store = self._options, self._store
        try:
            shards = await shard_count(store, options.shard_count, create=options.create)
        except storage.PersistenceError as error:
            raise translated(error) from error
        if self._opened:
            raise RuntimeError("an engine is opened once: make another one")
        self._opened = True
        telemetry = options.telemetry
        executions, worker = (
            (Executions, Worker) if telemetry is None else (ObservedExecutions, ObservedWorker)
        )
        self._executions = executions(store, self._registry, options, self._ids, shards, self._committed)
        if options.repair_loaded and self._run_tasks:
            self._executions.loaded = self._loaded
        interval = nanos_of(options.poll_interval)
        self._waiters = Waiters(store, options.clock, interval, self._executions.partition)
        policies = Policies(options)
        self._starter = Starter(
            self._executions,
            store,
            self._registry,
            options.clock.time_ns,
            self._new_id,
            options.delete_rows,
            self._tells_others,
        )
        self._shards = Shards(
            store,
            shards,
            options,
            self._new_id,
            policies,
            self._spawn,
            self._wake_drainers,
            self._repair_shard if options.repair_shards else None,
        )
        self._shards.attend(self._executions.forget, self._expire if options.retention is not None else None)
        self._dispatcher = self._shards.dispatcher
        self._worker = worker(
            self._environment,
            store,
            self._registry,
            options,
            policies,
            self._executions,
            self._dispatcher,
            self._shards.loader,
            Family(self._executions, self._starter, self._registry, self).executors,
        )
        try:
            await self._shards.open(run_tasks=self._run_tasks)
        except BaseException:
            # Nobody leaves a block that was not entered.
            await self._close(timedelta())
            raise
        if telemetry is not None:
            self._gauges = gauges = EngineGauges(self._shards)
            harmlessly(lambda: telemetry.opened(gauges))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Start no more tasks, wait for those that run, and leave the rest in the store."""
        await self._close(self._options.drain_timeout if kind is None else timedelta())

    async def shutdown(self, timeout: timedelta | None = None) -> None:
        """Stop running tasks, in good order, and let other processes have the shards.

        No task is started any more. Those that run have until `timeout` to end (`drain_timeout` if it is left
        out); then they are cancelled, and run again by whoever has their shard next. This returns at most 10
        seconds after `timeout`: an executor that does not heed its cancellation is left behind, and leases
        that cannot be given back run out. Reading and writing go on to work until the engine's block ends.
        """
        self._closing = True
        self._shards.stop()
        try:
            await end_runs(self._runs, self._options.drain_timeout if timeout is None else timeout)
        finally:
            await self._shards.release()
            self._wake_drainers()

    async def _close(self, grace: timedelta) -> None:
        try:
            await self.shutdown(grace)
        finally:
            self._worker.close()
            await self._waiters.close()
            await self._shards.close()
            telemetry, gauges = self._options.telemetry, self._gauges
            if telemetry is not None and gauges is not None:
                harmlessly(lambda: telemetry.closed(gauges))

    def now(self) -> datetime:
        """The present time, by the engine's clock."""
        return from_nanos(self._options.clock.time_ns())

    def access(
        self, ref: Ref, access: AccessType, *, keep_task: bool = False
    ) -> AbstractAsyncContextManager[Node]:
        """See `Environment.access`."""
        claim = self._claim(ref, keep=keep_task)
        return Access(self._executions, ref, access, claim, keep_claim=keep_task)

    async def update(self, ref: Ref, fn: Callable[[Node], ResultT], *, keep_task: bool = False) -> ResultT:
        """See `Environment.update`."""
        claim = self._claim(ref, keep=keep_task)
        return await self._executions.run(ref, fn, AccessType.WRITE, claim=claim, keep_claim=keep_task)

    async def read(self, ref: Ref, fn: Callable[[Node], ResultT]) -> ResultT:
        """See `Environment.read`."""
        return await self._executions.run(ref, fn, AccessType.READ, claim=self._claim(ref))

    async def wait(self, ref: Ref, until: Callable[[Node], bool], *, timeout: timedelta | None = None) -> Ref:
        """Wait until a predicate holds for the node; the reference to it as it was then.

        A change by this process wakes the waiter at once, one by another process as soon as the store tells
        of it, or within the poll interval if the store cannot be watched. `until` changes nothing; it sees
        the state after a change, not every state: wait for what stays true.

        Raises:
            TimeoutError: it did not hold within `timeout`.
            ExecutionNotFoundError, StateMachineNotFoundError, StaleReferenceError: there is no such node, or
                it is gone.
            RuntimeError: the engine was closed.
        """
        key = await self._executions.resolve(ref.execution)
        ref = Ref(key, ref.path, initial_version=ref.initial_version)

        def look(node: Node) -> Ref | None:
            return node.ref(key) if until(node) else None

        async with time_limit(self._options.clock, timeout):
            if (found := await self.read(ref, look)) is not None:
                return found
            with self._waiters.waiting(key) as next_change:
                while True:
                    changed = next_change()
                    if (found := await self.read(ref, look)) is not None:
                        return found
                    await changed

    async def describe(self, key: ExecutionKey) -> ExecutionTree:
        """An execution with all its machines and their pending tasks, as it is in the store now.

        Machines and tasks of types that are not registered are described, too, as far as they can be.

        Raises:
            ExecutionNotFoundError: there is no such execution.
        """
        in_memory = self._dispatcher.get
        return await _queries.execution_tree(self._store, self._registry, self._executions, key, in_memory)

    def queues(self) -> Sequence[QueueInfo]:
        """The queues of the shards that this process runs, as far as they are in memory now."""
        return self._dispatcher.infos()

    def dead_letters(self) -> AsyncIterator[DeadLetter]:
        """The tasks that are not tried again, oldest task first within a shard."""
        return _queries.dead_letters(self._store, self._registry, self._shards.partitions)

    async def replay(self, dead: DeadLetter) -> None:
        """Put a dead letter back into its queue, its attempts forgotten, in one transaction.

        Raises:
            StaleReferenceError: it was replayed already.
        """
        task = await replay(self._store, self._executions, dead, self._options.clock.time_ns())
        self._shards.queued(task.partition, [task])

    async def drain(self) -> None:
        """Return when no task runs and none could run now. Timers that are not due do not count."""
        while self._is_busy():
            quiet = asyncio.get_running_loop().create_future()
            self._drainers.append(quiet)
            await quiet

    def _is_busy(self) -> bool:
        if self._closing:
            return bool(self._runs)
        return self._shards.busy

    # What the parts call

    def _claim(self, ref: Ref, *, keep: bool = False) -> QueuedTask | None:
        """The running task that a reference comes from: what it writes is written once."""
        _check_reference(ref)
        if not ref.task_id:
            return None
        task = self._dispatcher.get(ref.task_id)
        if task is None or task.spent:
            raise StaleReferenceError(f"task {ref.task_id} has run already")
        if task.execution != ref.execution:
            raise ValueError(f"{ref} is a reference of task {ref.task_id}, which belongs to {task.execution}")
        if keep and not hasattr(task.task, "validate"):
            raise ValueError(
                f"task {ref.task_id} cannot be kept: without `validate`, its own write makes it stale"
            )
        return task

    async def _expire(self, partition: str, now_nanos: int) -> None:
        await expire(self._executions, self._store, partition, now_nanos)

    def _committed(self, execution: Execution, commit: Commit) -> None:
        self._waiters.wake(execution.key)
        for task_id in commit.withdrawn:
            task = self._dispatcher.get(task_id)
            # One that waits for its next try has its row elsewhere: left in memory, it goes when it is due.
            if task is None or task.displaced:
                continue
            self._dispatcher.discard(task_id)
            if task_id not in self._dispatcher:
                self._shards.loader.gone(task)
        if commit.queued:
            self._shards.queued(execution.partition, commit.queued)
        if commit.tombstones and self._run_tasks:
            self._shards.sweep(execution.partition)

    def _spawn(self, task: QueuedTask) -> None:
        # Not in the task group, whose bookkeeping costs more than the task: the worker lets no error out.
        run = asyncio.get_running_loop().create_task(self._worker.run(task), context=self._context.copy())
        task.run = run
        self._runs.add(run)
        run.add_done_callback(self._run_ended)

    def _run_ended(self, run: asyncio.Task[None]) -> None:
        self._runs.discard(run)
        self._wake_drainers()

    def _wake_drainers(self) -> None:
        for drainer in self._drainers:
            if not drainer.done():
                drainer.set_result(None)
        self._drainers.clear()

    def _new_id(self) -> str:
        return self._ids.new(self._options.clock.time_ns())

    def _wake_watchers(self, key: ExecutionKey) -> None:
        self._waiters.wake(key)


def _check_reference(ref: object) -> None:
    """A key in its place is the usual mistake, and would be found out about by its missing parts."""
    if not isinstance(ref, Ref):
        raise TypeError(f"{ref!r} is no Ref: `Ref(key)` is the root of an execution")
