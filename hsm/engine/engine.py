"""The engine: durable executions on a store, their queues and their timers."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from functools import partial
from types import TracebackType
from typing import Final, Self, TypeVar

from hsm.engine import _queries
from hsm.engine._commit import Commit
from hsm.engine._execution import Execution, decode_row
from hsm.engine._executions import Executions, translated
from hsm.engine._leases import Leases, keep
from hsm.engine._loader import Loader
from hsm.engine._queues import Dispatcher
from hsm.engine._rows import QueuedTask, QueueKey
from hsm.engine._settings import shard_count
from hsm.engine._start import start_execution
from hsm.engine._sweeper import sweep
from hsm.engine._worker import Worker
from hsm.engine.clock import from_nanos, time_limit
from hsm.engine.ids import IdSource
from hsm.engine.info import DeadLetter, ExecutionInfo, ExecutionTree
from hsm.engine.options import EngineOptions
from hsm.errors import StaleReferenceError
from hsm.executor import AccessType
from hsm.machine import Lifecycle, MachineType
from hsm.ref import ExecutionKey, Ref
from hsm.registry import Registry
from hsm.tree import Node
from persistence import errors as storage
from persistence.executions import dead_letter_key, shard_partition
from persistence.proto.execution_pb2 import DeadLetterRow
from persistence.store import DeleteRequest, EngineStore, GetRequest, SetRequest

__all__ = ["Engine"]

ResultT = TypeVar("ResultT")

_log: Final = logging.getLogger("hsm.engine")
_NANOS_PER_MICROSECOND: Final = 1000
# A store that does not answer yet keeps nobody from going on.
_FIRST_LOOK_SECONDS: Final = 2.0


class Engine:
    """Runs executions on a store: `async with Engine(registry, store) as engine`.

    An execution is a tree of machines under one root. A transition and the tasks that it asks for are
    committed together or not at all. Every task runs at least once, as it comes due, also after a crash; what
    it does to the tree is done once. The store is the caller's to open and to close.

    With `run_tasks` False, the engine reads and writes executions and runs no task.

    Semantics: Temporal's history service, with one row for each machine and without history events.
    """

    def __init__(
        self,
        registry: Registry,
        store: EngineStore,
        options: EngineOptions | None = None,
        *,
        run_tasks: bool = True,
    ) -> None:
        self._registry = registry
        self._store = store
        self._options = options or EngineOptions()
        self._run_tasks = run_tasks
        self._ids = IdSource(self._options.random)
        self._background = asyncio.TaskGroup()
        # Executors run in this, not in that of whoever happens to commit their task.
        self._context = contextvars.copy_context()
        self._runs: set[asyncio.Task[None]] = set()
        self._readers: set[asyncio.Task[None]] = set()
        self._watchers: dict[ExecutionKey, list[asyncio.Future[None]]] = {}
        self._drainers: list[asyncio.Future[None]] = []
        self._partitions: list[str] = []
        self._unread: set[str] = set()
        self._unswept: set[str] = set()
        self._recovered = not run_tasks
        self._looking = False
        self._waker: asyncio.Future[None] | None = None
        self._closing = False
        self._executions: Executions
        self._dispatcher: Dispatcher
        self._leases: Leases
        self._settled: asyncio.Future[None]
        self._loader: Loader
        self._worker: Worker

    async def __aenter__(self) -> Self:
        options, store = self._options, self._store
        try:
            shards = await shard_count(store, options.shard_count, create=options.create)
        except storage.PersistenceError as error:
            raise translated(error) from error
        self._partitions = [shard_partition(shard) for shard in range(shards)]
        self._executions = Executions(store, self._registry, options, self._ids, shards, self._committed)
        self._leases = Leases(
            store, shards, options.lease_seconds, self._new_id, self._take_shard, self._leave_shard
        )
        self._dispatcher = Dispatcher(
            options.clock,
            self._concurrency,
            options.queue_buffer,
            self._spawn,
            self._refill,
            self._leases.valid,
        )
        self._loader = Loader(store, self._dispatcher, options.timer_window, self._reload_timers)
        self._worker = Worker(
            self, store, self._registry, options, self._executions, self._dispatcher, self._loader
        )
        self._settled = asyncio.get_running_loop().create_future()
        await self._background.__aenter__()
        if self._run_tasks:
            self._dispatcher.start()
            self._read(self._keep_leases)
            await asyncio.wait((self._settled,), timeout=_FIRST_LOOK_SECONDS)
            self._read(self._keep_reading)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Start no more tasks, wait for those that run, and leave the rest in the store."""
        self._closing = True
        self._dispatcher.stop()
        for reader in self._readers:
            reader.cancel()
        try:
            if self._runs:
                grace = self._options.drain_timeout if kind is None else timedelta()
                await asyncio.wait(self._runs, timeout=grace.total_seconds())
        finally:
            for run in self._runs:
                run.cancel()
            try:
                if self._runs:
                    await asyncio.wait(self._runs)
                await self._give_shards_back()
            finally:
                self._worker.close()
                # What the block raised is the caller's and stays as it is: the group need not know.
                await self._background.__aexit__(None, None, None)
                self._wake_drainers()

    def now(self) -> datetime:
        """The present time, by the engine's clock."""
        return from_nanos(self._options.clock.time_ns())

    async def start(
        self,
        key: ExecutionKey,
        data: object,
        *,
        machine_type: MachineType | None = None,
        request_id: str = "",
        on_start: Callable[[Node], ResultT] | None = None,
    ) -> Ref:
        """Start an execution and return a reference to its root.

        A start with the request id of an earlier one returns what that has started, and changes nothing.

        Args:
            key: namespace and id; the run id is made if it is empty.
            data: of the root.
            machine_type: of the root; found by the class of `data` if it is not given.
            request_id: makes the start idempotent.
            on_start: first transitions, and children, in the same commit.

        Raises:
            ExecutionAlreadyStartedError: another request has started an execution with this id.
            NotRegisteredError: the machine type is not registered, or cannot be told from the data.
        """
        type_id = self._registry.type_of(data) if machine_type is None else machine_type.id
        return await start_execution(
            self._executions,
            self._store,
            self._registry,
            self._ids,
            key,
            type_id,
            data,
            self._options.clock.time_ns(),
            request_id,
            on_start,
        )

    def access(
        self, ref: Ref, access: AccessType, *, keep_task: bool = False
    ) -> AbstractAsyncContextManager[Node]:
        """See `Environment.access`."""
        return self._executions.access(
            ref, access, claim=self._claim(ref, keep=keep_task), keep_claim=keep_task
        )

    async def update(self, ref: Ref, fn: Callable[[Node], ResultT], *, keep_task: bool = False) -> ResultT:
        """See `Environment.update`."""
        claim = self._claim(ref, keep=keep_task)
        return await self._executions.run(ref, fn, AccessType.WRITE, claim=claim, keep_claim=keep_task)

    async def read(self, ref: Ref, fn: Callable[[Node], ResultT]) -> ResultT:
        """See `Environment.read`."""
        return await self._executions.run(ref, fn, AccessType.READ, claim=self._claim(ref))

    async def wait(self, ref: Ref, until: Callable[[Node], bool], *, timeout: timedelta | None = None) -> Ref:
        """Wait until a predicate holds for the node; the reference to it as it was then.

        Changes by this process wake the waiter at once, those of others within the poll interval.

        Raises:
            TimeoutError: it did not hold within `timeout`.
        """
        key = await self._executions.resolve(ref.execution)
        ref = Ref(key, ref.path, initial_version=ref.initial_version)
        async with time_limit(self._options.clock, timeout):
            while True:
                changed = asyncio.get_running_loop().create_future()
                self._watchers.setdefault(key, []).append(changed)
                try:
                    found = await self.read(ref, lambda node: node.ref(key) if until(node) else None)
                    if found is not None:
                        return found
                    await self._sleep_or(changed)
                finally:
                    self._forget_watcher(key, changed)

    def list(
        self, *, namespace: str | None = None, status: Lifecycle | None = None, state: str | None = None
    ) -> AsyncIterator[ExecutionInfo]:
        """The executions that match, in no particular order over all.

        Args:
            namespace: of the executions.
            status: whether they are running, completed or failed.
            state: the name of the root's state.
        """
        return _queries.list_executions(self._store, self._partitions, namespace, status, state)

    async def count(
        self, *, namespace: str | None = None, status: Lifecycle | None = None, state: str | None = None
    ) -> int:
        """How many executions `list` would tell of."""
        count = 0
        async for _ in self.list(namespace=namespace, status=status, state=state):
            count += 1
        return count

    async def describe(self, key: ExecutionKey) -> ExecutionTree:
        """An execution with all its machines and their pending tasks, as it is in the store now.

        Machines and tasks of types that are not registered are described, too, as far as they can be.

        Raises:
            ExecutionNotFoundError: there is no such execution.
        """
        in_memory = self._dispatcher.get
        return await _queries.execution_tree(self._store, self._registry, self._executions, key, in_memory)

    def dead_letters(self) -> AsyncIterator[DeadLetter]:
        """The tasks that are not tried again, oldest task first within a shard."""
        return _queries.dead_letters(self._store, self._registry, self._partitions)

    async def replay(self, dead: DeadLetter) -> None:
        """Put a dead letter back into its queue, its attempts forgotten, in one transaction.

        Raises:
            StaleReferenceError: it was replayed already.
        """
        key = dead_letter_key(dead.task_id)
        try:
            found = await self._store.get(GetRequest(partition=dead.partition, key=key))
            if found.data is None:
                raise StaleReferenceError(f"dead letter {dead.task_id} is gone")
            row = decode_row(DeadLetterRow, key, found.data)
            task = _queries.revived(row, dead.partition)
            task.etag = await self._store.multi(
                [
                    DeleteRequest(partition=dead.partition, key=key, etag=dead.etag),
                    SetRequest(partition=dead.partition, key=task.key, value=task.value()),
                ]
            )
        except storage.ETagMismatchError as error:
            raise StaleReferenceError(f"dead letter {dead.task_id} was replayed already") from error
        except storage.PersistenceError as error:
            raise translated(error) from error
        if self._run_tasks:
            self._loader.offer(task)

    async def drain(self) -> None:
        """Return when no task runs and none could run now. Timers that are not due do not count."""
        while self._is_busy():
            quiet = asyncio.get_running_loop().create_future()
            self._drainers.append(quiet)
            await quiet

    def _is_busy(self) -> bool:
        if self._closing:
            return bool(self._runs)
        return (
            not self._recovered
            or self._looking
            or self._leases.busy
            or bool(self._unread)
            or self._dispatcher.busy
            or len(self._readers) > 2 * self._run_tasks
        )

    # What the parts call

    def _claim(self, ref: Ref, *, keep: bool = False) -> QueuedTask | None:
        """The running task that a reference comes from: what it writes is written once."""
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

    def _concurrency(self, key: QueueKey) -> int:
        namespace, group, destination = key
        return self._options.concurrency_of(namespace, group, destination or "") or self._options.concurrency

    def _committed(self, execution: Execution, commit: Commit) -> None:
        if self._watchers:
            for watcher in self._watchers.pop(execution.key, ()):
                if not watcher.done():
                    watcher.set_result(None)
        if not self._run_tasks:
            return
        for task_id in commit.withdrawn:
            task = self._dispatcher.get(task_id)
            # The row of a timer that has failed is elsewhere: left in memory, it goes when it is due.
            if task is None or (task.is_timer and task.row is not None and task.row.failures):
                continue
            self._dispatcher.discard(task_id)
            if task_id not in self._dispatcher:
                self._loader.gone(task)
        for task in commit.queued:
            self._loader.offer(task)
        if commit.tombstones:
            self._read(partial(self._sweep, execution.partition))

    def _spawn(self, task: QueuedTask) -> None:
        # Not in the task group, whose bookkeeping costs more than the task: the worker lets no error out.
        run = asyncio.get_running_loop().create_task(self._worker.run(task), context=self._context.copy())
        # It is in nobody's way any more: a timer that hangs must not keep later ones from being read.
        self._loader.gone(task)
        task.run = run
        self._runs.add(run)
        run.add_done_callback(self._run_ended)

    def _run_ended(self, run: asyncio.Task[None]) -> None:
        self._runs.discard(run)
        self._wake_drainers()

    def _read(self, reading: Callable[[], Coroutine[None, None, None]]) -> None:
        if self._closing:
            return
        reader = self._background.create_task(self._guarded(reading))
        self._readers.add(reader)
        reader.add_done_callback(self._reader_ended)

    async def _guarded(self, reading: Callable[[], Coroutine[None, None, None]]) -> None:
        """What this does not get done, a poll does."""
        try:
            await reading()
        except storage.StoreUnavailableError as error:
            _log.debug("the store did not answer: %s", error)
        except Exception as error:  # noqa: BLE001 - a bad row must not take the engine with it
            _log.warning("reading ahead has failed: %r", error)

    def _reader_ended(self, reader: asyncio.Task[None]) -> None:
        self._readers.discard(reader)
        self._wake_drainers()

    def _wake_drainers(self) -> None:
        for drainer in self._drainers:
            if not drainer.done():
                drainer.set_result(None)
        self._drainers.clear()

    def _refill(self, queue: QueueKey) -> None:
        self._read(partial(self._loader.refill, queue))

    def _reload_timers(self, partition: str) -> None:
        self._read(partial(self._loader.load_timers, partition))

    async def _keep_reading(self) -> None:
        """Take up what an earlier run has left, then look for what other processes write."""
        interval = _nanos(self._options.poll_interval)
        answers = True
        while True:
            self._looking = True
            try:
                while self._unread:
                    await self._read_shard(next(iter(self._unread)))
                if self._recovered:
                    await self._loader.poll(self._options.clock.time_ns() + 2 * interval)
                elif self._leases.settled:
                    self._recovered = True
                while self._unswept:
                    await self._sweep(self._unswept.pop())
                if not answers:
                    answers = True
                    _log.warning("the store answers again")
            except storage.StoreUnavailableError as error:
                # Once, however long it takes: the next poll is not far.
                _log.log(
                    logging.WARNING if answers else logging.DEBUG,
                    "the store did not answer, and is asked again: %s",
                    error,
                )
                answers = False
            except Exception:  # noqa: BLE001 - it is logged, with its traceback
                _log.exception("the queues could not be read, which is tried again")
            self._looking = False
            self._wake_drainers()
            self._waker = asyncio.get_running_loop().create_future()
            await self._sleep_or(self._waker)

    async def _read_shard(self, partition: str) -> None:
        self._unread.discard(partition)
        try:
            await self._loader.load(partition)
        except BaseException:
            self._unread.add(partition)
            raise

    # Leases

    def _new_id(self) -> str:
        return self._ids.new(self._options.clock.time_ns())

    async def _keep_leases(self) -> None:
        await keep(self._leases, self._options.clock, self._leases_renewed)

    def _leases_renewed(self) -> None:
        if not self._settled.done():
            self._settled.set_result(None)
        if self._leases.valid():
            self._dispatcher.resume()
        if self._unread or not self._recovered:
            self._look_again()
        self._wake_drainers()

    def _look_again(self) -> None:
        if self._waker is not None and not self._waker.done():
            self._waker.set_result(None)

    def _take_shard(self, shard: int) -> None:
        partition = shard_partition(shard)
        self._loader.add(partition)
        self._unread.add(partition)
        self._unswept.add(partition)

    async def _leave_shard(self, shard: int, patience: float) -> None:
        """Start nothing more of a shard, and wait a while for what runs."""
        partition = shard_partition(shard)
        self._loader.remove(partition)
        self._unread.discard(partition)
        self._unswept.discard(partition)
        running = [task.run for task in self._dispatcher.forget(partition) if task.run is not None]
        if running and patience:
            await asyncio.wait(running, timeout=patience)

    async def _give_shards_back(self) -> None:
        try:
            await self._leases.close()
        except storage.PersistenceError as error:
            _log.info("the leases of this process are left to run out: %s", error)

    async def _sweep(self, partition: str) -> None:
        """Sweep a shard; what fails is begun again after the next poll."""
        try:
            await sweep(self._store, partition)
        except BaseException:
            self._unswept.add(partition)
            raise

    async def _sleep_or(self, event: asyncio.Future[None] | None) -> None:
        """Sleep for a poll interval, or until the event."""
        waker = event or asyncio.get_running_loop().create_future()
        when = self._options.clock.time_ns() + _nanos(self._options.poll_interval)
        alarm = self._options.clock.call_at(when, lambda: None if waker.done() else waker.set_result(None))
        try:
            await waker
        finally:
            alarm.cancel()

    def _forget_watcher(self, key: ExecutionKey, watcher: asyncio.Future[None]) -> None:
        watchers = self._watchers.get(key)
        if watchers is not None and watcher in watchers:
            watchers.remove(watcher)
            if not watchers:
                del self._watchers[key]


def _nanos(duration: timedelta) -> int:
    """A duration in nanoseconds."""
    return duration // timedelta(microseconds=1) * _NANOS_PER_MICROSECOND
