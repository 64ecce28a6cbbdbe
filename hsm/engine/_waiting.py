"""Waiting: whoever waits for an execution is woken when it has changed, whoever has changed it.

Changes of this process are told by its commits. Those of others are told by the store, where it can be
watched: one watch a shard, however many wait. Where it cannot, the version rows of the executions that are
waited for are read, all of those that are due at once, after pauses that grow up to the poll interval.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Final

import attrs

from hsm.engine._logs import engine_logger
from hsm.engine.clock import Clock, sleep_for
from hsm.ref import ExecutionKey
from persistence.executions import execution_key
from persistence.features import require
from persistence.store import Change, ChangeKind, EngineStore, Feature, GetRequest, WatchableStore

__all__ = ["Waiters"]

_log: Final = engine_logger()
_EXECUTIONS: Final = "e/"
_GROWTH: Final = 2
_FIRST_PART: Final = 32
# A watch tells everything; who knows.
_DOUBT_NANOS: Final = 60 * 10**9


@attrs.define(eq=False)
class _Watched:
    """One execution that somebody waits for.

    Attributes:
        pause: from the last look at its row to the next one.
        due: time of the next look.
        waiters: how many wait.
        wakers: done when it has changed.
        etag: of its row when it was last looked at.
    """

    pause: int
    due: int
    waiters: int = 0
    wakers: list[asyncio.Future[None]] = attrs.field(factory=list[asyncio.Future[None]])
    etag: str | None = ""

    def wake(self) -> None:
        for waker in self.wakers:
            if not waker.done():
                waker.set_result(None)
        self.wakers.clear()


class Waiters:
    """Those who wait for executions to change."""

    def __init__(
        self, store: EngineStore, clock: Clock, poll_nanos: int, partition: Callable[[ExecutionKey], str]
    ) -> None:
        self._store = store
        self._clock = clock
        self._partition = partition
        self._watches = Feature.WATCH in store.features
        self._interval = poll_nanos
        self._longest = max(poll_nanos, _DOUBT_NANOS) if self._watches else poll_nanos
        self._first = self._longest if self._watches else max(poll_nanos // _FIRST_PART, 1)
        self._shards: dict[str, _Shard] = {}
        self._closed = False

    def __len__(self) -> int:
        return sum(watched.waiters for shard in self._shards.values() for watched in shard.rows.values())

    @contextmanager
    def waiting(self, key: ExecutionKey) -> Generator[Callable[[], asyncio.Future[None]], None, None]:
        """Be woken in this block: what it is given makes futures that are done after the next change.

        Whoever looks at the execution between making such a future and awaiting it misses nothing.
        """
        partition, row_key = self._partition(key), execution_key(*key)
        shard = self._shards.get(partition)
        if shard is None:
            shard = self._shards[partition] = _Shard()
        watched = shard.rows.get(row_key)
        if watched is None:
            due = self._clock.time_ns() + self._first
            watched = shard.rows[row_key] = _Watched(self._first, due)
        watched.waiters += 1
        if self._closed:
            pass
        elif not shard.tasks:
            self._begin(partition, shard)
        elif shard.next_look > watched.due:
            shard.look_again()
        try:
            yield lambda: self._next_change(watched)
        finally:
            watched.waiters -= 1
            if not watched.waiters:
                shard.rows.pop(row_key, None)
            if not shard.rows:
                self._shards.pop(partition, None)
                shard.end()

    def _next_change(self, watched: _Watched) -> asyncio.Future[None]:
        if self._closed:
            raise RuntimeError("the engine was closed while somebody waited")
        changed = asyncio.get_running_loop().create_future()
        # One that was cancelled is of no use any more.
        watched.wakers[:] = [waker for waker in watched.wakers if not waker.done()]
        watched.wakers.append(changed)
        return changed

    def wake(self, key: ExecutionKey) -> None:
        """Wake those who wait for an execution."""
        if not self._shards:
            return
        shard = self._shards.get(self._partition(key))
        watched = None if shard is None else shard.rows.get(execution_key(*key))
        if watched is not None:
            watched.wake()

    async def close(self) -> None:
        """Let nobody wait any more."""
        self._closed = True
        tasks = [task for shard in self._shards.values() for task in shard.tasks]
        for shard in list(self._shards.values()):
            shard.end()
            for watched in shard.rows.values():
                watched.wake()
        if tasks:
            await asyncio.wait(tasks)

    def _begin(self, partition: str, shard: _Shard) -> None:
        loop = asyncio.get_running_loop()
        shard.tasks.append(loop.create_task(self._keep_looking(partition, shard)))
        if self._watches:
            # Before the first of them looks for itself: what comes later is told.
            changes = self._watch(partition)
            shard.tasks.append(loop.create_task(self._keep_watching(partition, shard, changes)))

    def _watch(self, partition: str) -> AsyncIterator[Change] | None:
        try:
            return require(self._store, WatchableStore).watch(partition, _EXECUTIONS)
        except Exception as error:  # noqa: BLE001 - it is tried again
            _log.info("the store cannot be watched, which is tried again: %r", error)
            return None

    async def _keep_watching(
        self, partition: str, shard: _Shard, changes: AsyncIterator[Change] | None
    ) -> None:
        while True:
            if changes is not None:
                try:
                    await self._listen(shard, changes)
                except Exception as error:  # noqa: BLE001 - it is tried again
                    _log.info("a watch of the store has broken off, which is begun again: %r", error)
            await sleep_for(self._clock, self._interval, asyncio.get_running_loop().create_future())
            changes = self._watch(partition)
            # Nobody has told of what has changed meanwhile.
            shard.wake()

    async def _listen(self, shard: _Shard, changes: AsyncIterator[Change]) -> None:
        async for change in changes:
            if change.kind is ChangeKind.RESYNC:
                shard.wake()
            elif (watched := shard.rows.get(change.key)) is not None:
                watched.wake()

    async def _keep_looking(self, partition: str, shard: _Shard) -> None:
        while True:
            now = self._clock.time_ns()
            # What is due later than it was to be was planned before the clock was put back.
            due = [
                (key, watched)
                for key, watched in shard.rows.items()
                if not 0 < watched.due - now <= watched.pause
            ]
            if due:
                await self._look(partition, due)
            shard.next_look = min((watched.due for watched in shard.rows.values()), default=0)
            shard.waker = asyncio.get_running_loop().create_future()
            await sleep_for(self._clock, max(shard.next_look - self._clock.time_ns(), 0), shard.waker)

    async def _look(self, partition: str, due: Sequence[tuple[str, _Watched]]) -> None:
        """Wake those whose execution has another version than when it was last looked at."""
        etags: dict[str, str | None] = {}
        try:
            answers = await self._store.bulk_get([GetRequest(partition=partition, key=key) for key, _ in due])
            etags = {answer.key: answer.etag for answer in answers if answer.error is None}
        except Exception as error:  # noqa: BLE001 - it is tried again
            _log.debug("executions that are waited for cannot be looked at: %r", error)
        now = self._clock.time_ns()
        for key, watched in due:
            watched.pause = min(watched.pause * _GROWTH, self._longest)
            if key in etags and etags[key] != watched.etag:
                # Nobody knows whether the first look has seen what the waiters have.
                watched.etag = etags[key]
                watched.pause = self._first
                watched.wake()
            watched.due = now + watched.pause


class _Shard:
    """The executions of one shard that are waited for, by the keys of their rows."""

    def __init__(self) -> None:
        self.rows: dict[str, _Watched] = {}
        self.tasks: list[asyncio.Task[None]] = []
        self.next_look = 0
        self.waker: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """Wake everybody."""
        for watched in self.rows.values():
            watched.wake()

    def look_again(self) -> None:
        """Let the next look be sooner than was planned."""
        if self.waker is not None and not self.waker.done():
            self.waker.set_result(None)

    def end(self) -> None:
        """Nobody waits any more."""
        for task in self.tasks:
            task.cancel()
