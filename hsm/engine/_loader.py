"""Reading queue rows: what was left by an earlier run, what another process has written, what did not fit."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Sequence

from hsm.engine._queues import Dispatcher
from hsm.engine._rows import QueuedTask, QueueKey
from persistence.executions import AFTER_SLASH, group_prefix, prefix_end, timer_key
from persistence.store import EngineStore

__all__ = ["Loader"]


class Loader:
    """Offers the rows of the shards that this process runs to the dispatcher, as much as it takes.

    Of each shard's timers the earliest are in memory, up to a horizon; what is due later stays in the store
    until the window has emptied by half.
    """

    def __init__(
        self,
        store: EngineStore,
        dispatcher: Dispatcher,
        window: int,
        reload: Callable[[str], None],
    ) -> None:
        self._store = store
        self._dispatcher = dispatcher
        self._window = window
        self._reload = reload
        self._timers: dict[str, _TimerWindow] = {}

    @property
    def partitions(self) -> Sequence[str]:
        """The shards that are read."""
        return list(self._timers)

    def add(self, partition: str) -> None:
        """Accept the tasks of a shard from now on."""
        self._timers[partition] = _TimerWindow()

    def remove(self, partition: str) -> None:
        """Accept no task of a shard any more."""
        self._timers.pop(partition, None)

    async def load(self, partition: str) -> None:
        """Read everything of a shard, from the start."""
        await self.load_timers(partition)
        await self._load_queues(partition)

    def __contains__(self, partition: object) -> bool:
        return partition in self._timers

    async def poll(self, until_nanos: int, partitions: Iterable[str] | None = None) -> None:
        """Look for rows that another process has written: timers due until then, and all other tasks.

        In all shards, unless some are named.
        """
        for partition in self.partitions if partitions is None else partitions:
            window = self._timers.get(partition)
            if window is None:
                continue
            if window.horizon and len(window.keys) <= self._window // 2 and not window.loading:
                await self.load_timers(partition)
            end = timer_key(until_nanos, "")
            taken = 0
            async for item in self._store.scan(partition, "t/", end):
                if item.key.rpartition("/")[2] not in self._dispatcher:
                    self.offer(QueuedTask.parse(partition, item.key, item.etag, item.value))
                    taken += 1
                if taken == self._window:
                    break
            await self._load_queues(partition)

    def offer(self, task: QueuedTask) -> None:
        """Pass a task on, unless it is a timer beyond the horizon, or of a shard that somebody else runs."""
        window = self._timers.get(task.partition)
        if window is None:
            return
        if task.is_timer:
            if window.horizon and task.key >= window.horizon:
                return
            # First, for a timer that is due begins to run in there, and is taken out again.
            window.add(task.key)
            if not self._dispatcher.offer(task):
                window.remove(task.key)
            elif len(window.keys) > 2 * self._window:
                for dropped in window.shrink(self._window):
                    self._dispatcher.discard(dropped.rpartition("/")[2])
            return
        self._dispatcher.offer(task)

    def gone(self, task: QueuedTask) -> None:
        """Note that a task has left memory, and read on when a window has emptied."""
        if not task.is_timer:
            return
        window = self._timers.get(task.partition)
        if window is None:
            return
        window.remove(task.key)
        if window.horizon and len(window.keys) <= self._window // 2 and not window.loading:
            window.loading = True
            self._reload(task.partition)

    async def load_timers(self, partition: str) -> None:
        """Read the earliest timers of a shard, until enough of them wait."""
        window = self._timers.get(partition)
        if window is None:
            return
        window.loading = True
        try:
            await self._load_window(partition, window)
            # What is due already runs at once, and leaves the window as empty as it was.
            while window.horizon and len(window.keys) <= self._window // 2:
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
                if item.key.rpartition("/")[2] in self._dispatcher:
                    continue
                if taken == self._window:
                    window.horizon = min(item.key, window.horizon or item.key)
                    return
                taken += 1
                self.offer(QueuedTask.parse(partition, item.key, item.etag, item.value))
        except BaseException:
            window.horizon = "t/"
            raise

    async def _load_queues(self, partition: str) -> None:
        for start, end in (("i/", "i" + AFTER_SLASH), ("o/", "o" + AFTER_SLASH)):
            cursor: str | None = start
            while cursor is not None:
                cursor = await self._load_until_full(partition, cursor, end)

    async def _load_until_full(self, partition: str, start: str, end: str) -> str | None:
        """Read on until a queue is full; where the next queue begins, or None at the end."""
        async for item in self._store.scan(partition, start, end):
            task_id = item.key.rpartition("/")[2]
            if task_id in self._dispatcher:
                continue
            task = QueuedTask.parse(partition, item.key, item.etag, item.value)
            self.offer(task)
            if self._dispatcher.full(task.queue):
                return item.key.removesuffix(task_id)[:-1] + AFTER_SLASH
        return None

    async def refill(self, queue: QueueKey) -> None:
        """Read tasks of one queue, of which the store holds more than memory does."""
        prefix = group_prefix(*queue)
        for partition in self.partitions:
            async for item in self._store.scan(partition, prefix, prefix_end(prefix)):
                if item.key.rpartition("/")[2] in self._dispatcher:
                    continue
                # One that is refused may also be one that has ended since this page was read.
                self.offer(QueuedTask.parse(partition, item.key, item.etag, item.value))
                if self._dispatcher.full(queue):
                    return


class _TimerWindow:
    """The keys of one shard's timers in memory, in order."""

    __slots__ = ("horizon", "keys", "loading")

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.horizon = ""
        self.loading = False

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
