"""The shards that this process runs: how it comes by them, reads their queues, and lets go of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable
from functools import partial
from typing import Final

from hsm.engine._bell import Bell
from hsm.engine._leases import Leases, keep
from hsm.engine._loader import Loader
from hsm.engine._logs import engine_logger, of_partition
from hsm.engine._policies import Policies
from hsm.engine._queues import Dispatcher
from hsm.engine._rows import QueuedTask, QueueKey
from hsm.engine._stopping import PATIENCE_SECONDS
from hsm.engine._sweeper import sweep
from hsm.engine.clock import nanos_of, sleep_for
from hsm.engine.options import EngineOptions
from hsm.ref import ExecutionKey
from persistence.errors import ETagMismatchError, PersistenceError, StoreUnavailableError
from persistence.executions import parse_execution_key, shard_partition
from persistence.store import DeleteRequest, EngineStore, Item

__all__ = ["Shards"]

_TEND_NANOS: Final = 60 * 10**9

_log: Final = engine_logger()
# Of its own, for programs that tell of an outage in another way.
_outage_log: Final = engine_logger("hsm.engine.outages")
# A store that does not answer yet keeps nobody from going on.
_FIRST_LOOK_SECONDS: Final = 2.0


class Shards:
    """The queues of this process's shards, and whatever goes on in the background to fill them.

    Attributes:
        partitions: of all shards, also those of other processes.
        dispatcher: runs the tasks.
        loader: reads the rows.
    """

    def __init__(
        self,
        store: EngineStore,
        count: int,
        options: EngineOptions,
        new_id: Callable[[], str],
        policies: Policies,
        run: Callable[[QueuedTask], None],
        rested: Callable[[], None],
        taken: Callable[[str], Coroutine[None, None, None]] | None,
    ) -> None:
        self._store = store
        self._taken = taken
        self._options = options
        self._rested = rested
        self._interval = nanos_of(options.poll_interval)
        self._leases = Leases(store, count, options.lease_seconds, new_id, self._take, self._leave)
        self._bell = Bell(store, self.spawn)
        self.partitions: list[str] = [shard_partition(shard) for shard in range(count)]
        self.loader: Loader = Loader(store, options.clock, options.timer_window, self.spawn, self._noticed)
        self.dispatcher: Dispatcher = Dispatcher(
            options.clock,
            policies,
            options.queue_buffer,
            run,
            self._refill,
            self.loader.gone,
            self.loader.move,
            self._leases.valid,
        )
        self.loader.fill(self.dispatcher)
        self._group = asyncio.TaskGroup()
        self._background: set[asyncio.Task[None]] = set()
        self._permanent = 0
        self._settled = asyncio.get_running_loop().create_future()
        self._waker: asyncio.Future[None] | None = None
        self._unread: set[str] = set()
        self._unswept: set[str] = set()
        self._rung: set[str] = set()
        self._recovered = True
        self._looking = False
        self._again = False
        self._stopped = False
        self._forget: Callable[[ExecutionKey], None] = _nothing
        self._expire: Callable[[str, int], Awaitable[None]] | None = None
        self._tend_at = self._now() + _TEND_NANOS

    def attend(
        self, forget: Callable[[ExecutionKey], None], expire: Callable[[str, int], Awaitable[None]] | None
    ) -> None:
        """Call `forget` for executions that others have paused or closed; `expire` deletes closed ones."""
        self._forget = forget
        self._expire = expire

    @property
    def busy(self) -> bool:
        """Whether tasks run or could run, or may be found in what is being read."""
        return (
            not self._recovered
            or self._looking
            or self._leases.busy
            or bool(self._unread)
            or self.dispatcher.busy
            or len(self._background) > self._permanent
        )

    @property
    def owned(self) -> frozenset[int]:
        """The shards that are ours."""
        return self._leases.owned

    async def open(self, *, run_tasks: bool) -> None:
        """Begin; with `run_tasks`, take our shards, and return when that is done or takes too long."""
        await self._group.__aenter__()
        if not run_tasks:
            return
        self._recovered = False
        self.dispatcher.start()
        self._spawn_for_ever(self._keep_leases)
        await asyncio.wait((self._settled,), timeout=_FIRST_LOOK_SECONDS)
        self._spawn_for_ever(self._keep_reading)
        if self._bell.audible:
            self._spawn_for_ever(self._keep_listening)

    def stop(self) -> None:
        """Start nothing more."""
        self._stopped = True
        self.dispatcher.stop()
        for task in self._background:
            task.cancel()

    async def release(self) -> None:
        """Give the shards back, when nothing of them runs any more; if the store does not, time does."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self._leases.close()
        except (PersistenceError, TimeoutError) as error:
            _log.info("the leases of this process are left to run out: %r", error)

    async def close(self) -> None:
        """Wait for the end of what goes on in the background."""
        # What the engine's block raised is the caller's and stays as it is: the group need not know.
        await self._group.__aexit__(None, None, None)

    def queued(self, partition: str, tasks: Iterable[QueuedTask]) -> None:
        """Take up tasks that were committed here, or tell whoever runs their shard."""
        if partition in self.loader:
            for task in tasks:
                self.loader.offer(task)
        elif any(True for _ in tasks):
            self._bell.ring(self.partitions.index(partition))

    def sweep(self, partition: str) -> None:
        """Delete what the tombstones of a shard cover, or leave it to its owner."""
        self.spawn(partial(self._sweep, partition))

    async def sweep_now(self, partition: str) -> None:
        """Do what the tombstones of a shard ask for, whoever runs it."""
        await sweep(self._store, partition, self.queued)

    def notify(self, partition: str) -> None:
        """Tell whoever runs a shard to look at it."""
        if partition not in self.loader:
            self._bell.ring(self.partitions.index(partition))

    def spawn(self, work: Callable[[], Coroutine[None, None, None]]) -> None:
        """Do something in the background; what it does not get done, a poll does."""
        if self._stopped:
            return
        task = self._group.create_task(self._guarded(work))
        self._background.add(task)
        task.add_done_callback(self._ended)

    def _spawn_for_ever(self, work: Callable[[], Coroutine[None, None, None]]) -> None:
        self._permanent += 1
        self.spawn(work)

    async def _guarded(self, work: Callable[[], Coroutine[None, None, None]]) -> None:
        try:
            await work()
        except StoreUnavailableError as error:
            _outage_log.debug("the store did not answer: %s", error)
        except Exception as error:  # noqa: BLE001 - a bad row must not take the engine with it
            _log.warning("reading ahead has failed: %r", error)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        self._rested()

    def _refill(self, queue: QueueKey) -> None:
        self.spawn(partial(self.loader.refill, queue))

    # Leases

    async def _keep_leases(self) -> None:
        await keep(self._leases, self._options.clock, self._renewed)

    def _renewed(self) -> None:
        if not self._settled.done():
            self._settled.set_result(None)
        if self._leases.valid():
            self.dispatcher.resume()
        if self._unread or not self._recovered:
            self._look_again()
        self._rested()

    def _take(self, shard: int) -> None:
        partition = self.partitions[shard]
        self.loader.add(partition)
        self._unread.add(partition)
        self._unswept.add(partition)
        if self._taken is not None:
            self.spawn(partial(self._taken, partition))

    async def _leave(self, shards: Collection[int], patience: float) -> None:
        """Start nothing more of some shards, and wait a while for what runs."""
        running: list[asyncio.Task[None]] = []
        for shard in shards:
            partition = self.partitions[shard]
            self.loader.remove(partition)
            for waiting in (self._unread, self._unswept, self._rung):
                waiting.discard(partition)
            running += [task.run for task in self.dispatcher.forget(partition) if task.run is not None]
        if running and patience:
            await asyncio.wait(running, timeout=patience)

    # Reading

    async def _keep_reading(self) -> None:
        """Take up what an earlier run has left, then look for what other processes write."""
        answers = True
        while True:
            self._looking, self._again = True, False
            try:
                await self._look()
                if not answers:
                    answers = True
                    _outage_log.warning("the store answers again")
            except StoreUnavailableError as error:
                # Once, however long it takes: the next poll is not far.
                _outage_log.log(
                    logging.WARNING if answers else logging.DEBUG,
                    "the store did not answer, and is asked again: %s",
                    error,
                )
                answers = False
            except Exception:  # noqa: BLE001 - it is logged, with its traceback
                _log.exception("the queues could not be read, which is tried again")
            self._looking = False
            self._rested()
            if not self._again:
                self._waker = asyncio.get_running_loop().create_future()
                await sleep_for(self._options.clock, self._interval, self._waker)

    async def _look(self) -> None:
        failures = await self._each(self._unread, self._read)
        self.dispatcher.review()
        until = self._now() + 2 * self._interval
        if not self._recovered:
            self._recovered = self._leases.settled
        else:
            rung, self._rung = self._rung, set()
            read = (rung or set(self.loader.partitions)) - self._unread
            failures += await self._each(read, lambda partition: self.loader.poll(until, (partition,)))
        # Nor for as long as the clock may have been put back.
        if not 0 < self._tend_at - self._now() <= _TEND_NANOS:
            self._tend_at = self._now() + _TEND_NANOS
            failures += await self._each(self.loader.partitions, self._tend)
        failures += await self._each(self._unswept, self._sweep)
        if failures:
            raise failures[0]

    async def _each(
        self, partitions: Iterable[str], work: Callable[[str], Coroutine[None, None, None]]
    ) -> list[Exception]:
        """Do something with each shard; one of which it fails keeps the others from nothing."""
        failures: list[Exception] = []
        # In order, so that a run can be repeated.
        for partition in sorted(partitions):
            try:
                await work(partition)
            except StoreUnavailableError:
                raise
            except Exception as error:  # noqa: BLE001 - the caller raises the first
                failures.append(error)
        return failures

    async def _tend(self, partition: str) -> None:
        """What can wait: executions whose time is over, and what others have left half done."""
        self._unswept.add(partition)
        if self._expire is not None:
            await self._expire(partition, self._now())

    def _noticed(self, partition: str, item: Item) -> None:
        """Another process has changed what an execution may do."""
        try:
            self._forget(ExecutionKey(*parse_execution_key(item.key)))
        except ValueError:
            _log.error("the row %r is no news of an execution", item.key, extra=of_partition(partition))
        self.spawn(partial(self._take_note, DeleteRequest(partition=partition, key=item.key, etag=item.etag)))

    async def _take_note(self, news: DeleteRequest) -> None:
        # While a shard changes hands, two processes read the same news; and there may be more of it by now.
        with contextlib.suppress(ETagMismatchError):
            await self._store.delete(news)

    async def _read(self, partition: str) -> None:
        self._unread.discard(partition)
        try:
            await self.loader.load(partition)
        except BaseException:
            if partition in self.loader:
                self._unread.add(partition)
            raise

    async def _sweep(self, partition: str) -> None:
        """Sweep a shard; what fails is begun again after the next poll."""
        self._unswept.discard(partition)
        try:
            await sweep(self._store, partition, self.queued)
        except BaseException:
            self._unswept.add(partition)
            raise

    async def _keep_listening(self) -> None:
        while True:
            try:
                await self._bell.listen(self._heard, self._leases.hurry)
            except Exception as error:  # noqa: BLE001 - without the bell there are the polls
                _log.info("the store cannot be watched, which is tried again: %r", error)
            await sleep_for(self._options.clock, self._interval, asyncio.get_running_loop().create_future())

    def _heard(self, shard: int | None) -> None:
        """Somebody has left tasks in a shard, or in any of them."""
        partitions = self.loader.partitions if shard is None else self.partitions[shard : shard + 1]
        rung = [partition for partition in partitions if partition in self.loader]
        if rung:
            self._rung.update(rung)
            self._look_again()

    def _look_again(self) -> None:
        self._again = True
        if self._waker is not None and not self._waker.done():
            self._waker.set_result(None)

    def _now(self) -> int:
        return self._options.clock.time_ns()


def _nothing(_: ExecutionKey) -> None:
    """For queues without executions."""
