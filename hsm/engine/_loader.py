"""Reading queue rows: what was left by an earlier run, what another process has written, what did not fit."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Final

from hsm.engine._cursors import ROWS_BEFORE_A_JUMP, Cursors
from hsm.engine._moves import Moves
from hsm.engine._queues import Dispatcher
from hsm.engine._rows import QueuedTask, QueueKey
from hsm.engine.clock import Clock
from persistence.executions import AFTER_SLASH, group_prefix, prefix_end, timer_key
from persistence.store import EngineStore, Item

__all__ = ["Loader"]

_LONGEST_PAGE: Final = 1000
# After a key and before any other: no key holds anything less.
_NEXT: Final = "\x01"


class Loader:
    """Offers the rows of the shards that this process runs to the dispatcher, as much as it takes.

    Of each shard's timers the earliest are in memory, up to a horizon; what is due later stays in the store
    until the window has emptied by half. Of each queue the oldest tasks are, and a poll reads only what has
    come since the one before, by the time in the tasks' ids; now and then it reads everything.
    """

    def __init__(
        self,
        store: EngineStore,
        clock: Clock,
        window: int,
        spawn: Callable[[Callable[[], Coroutine[None, None, None]]], None],
        noticed: Callable[[str, Item], None],
    ) -> None:
        self._store = store
        self._noticed = noticed
        self._clock = clock
        self._window = window
        self._spawn = spawn
        self._shards: dict[str, _Shard] = {}
        self._turn = 0
        self._moves = Moves(store, clock, spawn, self.offer, self._lost_sight)
        self._dispatcher: Dispatcher

    def fill(self, dispatcher: Dispatcher) -> None:
        """Offer what is read to this dispatcher from now on."""
        self._dispatcher = dispatcher

    def __contains__(self, partition: object) -> bool:
        return partition in self._shards

    @property
    def partitions(self) -> Sequence[str]:
        """The shards that are read."""
        return list(self._shards)

    def has_all_timers(self, partition: str) -> bool:
        """Whether all timers of a shard are in memory, and all tasks that wait for their next try."""
        shard = self._shards.get(partition)
        if shard is None:
            return False
        timers = shard.timers
        return timers.read and not timers.horizon and not timers.loading and not self._moves.tasks

    def add(self, partition: str) -> None:
        """Accept the tasks of a shard from now on."""
        self._shards[partition] = _Shard()

    def remove(self, partition: str) -> None:
        """Accept no task of a shard any more."""
        self._shards.pop(partition, None)
        self._moves.forget(partition)

    async def load(self, partition: str) -> None:
        """Read everything of a shard, from the start."""
        await self.load_timers(partition)
        await self._load_queues(partition)

    async def poll(self, until_nanos: int, partitions: Iterable[str] | None = None) -> None:
        """Look for rows that another process has written: timers due until then, and all other tasks.

        In all shards, unless some are named.
        """
        for partition in self.partitions if partitions is None else partitions:
            shard = self._shards.get(partition)
            if shard is None:
                continue
            if self._is_half_empty(shard.timers) and not shard.timers.loading:
                await self.load_timers(partition)
            end = timer_key(until_nanos, "")
            taken = 0
            async for item in self._store.scan(partition, "t/", end):
                if not self._knows(item.key.rpartition("/")[2]):
                    self.offer(QueuedTask.parse(partition, item.key, item.etag, item.value))
                    taken += 1
                if taken == self._window:
                    break
            await self._moves.flush()
            await self._load_queues(partition)

    def offer(self, task: QueuedTask) -> None:
        """Pass a task on, unless it is a timer beyond the horizon, or of a shard that somebody else runs."""
        shard = self._shards.get(task.partition)
        if shard is None:
            return
        if not task.is_timer:
            self._dispatcher.offer(task)
            return
        window = shard.timers
        if window.horizon and task.key >= window.horizon:
            return
        # What is due has its place in its queue.
        if self._dispatcher.offer(task) and self._dispatcher.waits(task.id):
            window.add(task.key)
            if len(window.keys) > 2 * self._window:
                for dropped in window.shrink(self._window):
                    self._dispatcher.discard(dropped.rpartition("/")[2])

    def move(self, task: QueuedTask) -> None:
        """Put the row of a task that has left memory where it is found in time."""
        if task.partition in self._shards:
            self._moves.add(task)

    def gone(self, task: QueuedTask) -> None:
        """Note that a task waits in memory no more, and read on when a window has emptied."""
        shard = self._shards.get(task.partition)
        if shard is None or not task.is_timer:
            return
        window = shard.timers
        window.remove(task.key)
        if self._is_half_empty(window) and not window.loading:
            window.loading = True
            self._spawn(lambda: self.load_timers(task.partition))

    def _knows(self, task_id: str) -> bool:
        return task_id in self._dispatcher.tasks or task_id in self._moves.tasks

    def _lost_sight(self, partition: str) -> None:
        if (shard := self._shards.get(partition)) is not None:
            shard.cursors.clear()

    # Timers

    def _is_half_empty(self, window: _TimerWindow) -> bool:
        return bool(window.horizon) and len(window.keys) <= self._window // 2

    async def load_timers(self, partition: str) -> None:
        """Read the earliest timers of a shard, until enough of them wait."""
        shard = self._shards.get(partition)
        if shard is None:
            return
        window = shard.timers
        window.loading = True
        try:
            await self._load_window(partition, window)
            # What is due already runs at once, and leaves the window as empty as it was.
            while self._is_half_empty(window) and self._shards.get(partition) is shard:
                await self._load_window(partition, window)
        finally:
            window.loading = False

    async def _load_window(self, partition: str, window: _TimerWindow) -> None:
        # Until this has read to the end of the window, nobody knows where that is.
        window.horizon = ""
        taken = 0
        try:
            async for item in self._store.scan(partition, "t/", "t" + AFTER_SLASH):
                # Those that run, or wait for their next try, take up no room.
                if self._knows(item.key.rpartition("/")[2]):
                    continue
                if taken == self._window:
                    window.horizon = min(item.key, window.horizon or item.key)
                    break
                taken += 1
                self.offer(QueuedTask.parse(partition, item.key, item.etag, item.value))
            await self._moves.flush()
            window.read = True
        except BaseException:
            window.horizon = "t/"
            raise

    # Queues

    async def _load_queues(self, partition: str) -> None:
        shard = self._shards.get(partition)
        if shard is None:
            return
        shard.cursors.begin(self._clock.time_ns())
        for start, end in (("i/", "i" + AFTER_SLASH), ("o/", "p" + AFTER_SLASH)):
            await self._read_queues(partition, start, end, shard.cursors)
        shard.cursors.end()

    async def _read_queues(self, partition: str, start: str, end: str, cursors: Cursors) -> None:
        """Offer the rows of many queues, and leave out what a cursor or a full queue makes pointless."""
        # A queue that overflows asks for what it lacks when it has room.
        full = {group_prefix(*key) for key in self._dispatcher.overflowing()}
        held, moving = self._dispatcher.tasks, self._moves.tasks
        prefix, count, page = "", 0, ROWS_BEFORE_A_JUMP
        while True:
            further: str | None = None
            rows = 0
            async for item in self._store.scan(partition, start, end, limit=page):
                rows += 1
                key = item.key
                if key[0] == "p":
                    # It comes after the last of the queues, so that nobody has to ask for it.
                    self._noticed(partition, item)
                    start = key + _NEXT
                    continue
                if not prefix or not key.startswith(prefix):
                    prefix, count = key[: key.rindex("/") + 1], 0
                    if prefix in full:
                        further = prefix_end(prefix)
                        break
                count += 1
                task_id = key[len(prefix) :]
                if task_id not in held and task_id not in moving:
                    task = QueuedTask.parse(partition, key, item.etag, item.value)
                    self.offer(task)
                    if self._dispatcher.full(task.queue):
                        further = prefix_end(prefix)
                        break
                if count >= ROWS_BEFORE_A_JUMP and (further := cursors.passed(prefix, task_id)) is not None:
                    break
                start = key + _NEXT
            if further is not None:
                start, prefix, page = further, "", ROWS_BEFORE_A_JUMP + 1
            elif rows < page:
                return
            else:
                page = min(4 * page, _LONGEST_PAGE)

    async def refill(self, queue: QueueKey) -> None:
        """Read tasks of one queue, of which the store holds more than memory does."""
        prefix = group_prefix(*queue)
        partitions = self.partitions
        # Each shard has its turn to be the first, or those of the last ones might wait for ever.
        self._turn += 1
        for number in range(len(partitions)):
            partition = partitions[(self._turn + number) % len(partitions)]
            async for item in self._store.scan(partition, prefix, prefix_end(prefix)):
                if self._knows(item.key.rpartition("/")[2]):
                    continue
                # One that is refused may also be one that has ended since this page was read.
                self.offer(QueuedTask.parse(partition, item.key, item.etag, item.value))
                if self._dispatcher.full(queue):
                    return


class _Shard:
    """What is known of the rows of one shard."""

    __slots__ = ("cursors", "timers")

    def __init__(self) -> None:
        self.timers = _TimerWindow()
        self.cursors = Cursors()


class _TimerWindow:
    """The keys of one shard's timers in memory, in order."""

    __slots__ = ("horizon", "keys", "loading", "read")

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.horizon = ""
        self.loading = False
        self.read = False

    def add(self, key: str) -> None:
        bisect.insort(self.keys, key)

    def remove(self, key: str) -> None:
        index = bisect.bisect_left(self.keys, key)
        if index < len(self.keys) and self.keys[index] == key:
            del self.keys[index]

    def shrink(self, size: int) -> list[str]:
        """Let go of all but the first `size`; the horizon moves before them."""
        dropped = self.keys[size:]
        del self.keys[size:]
        self.horizon = dropped[0]
        return dropped
