"""Point reads that share round trips: whatever is asked for while a query runs becomes the next query."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Final, TypeAlias

from persistence.decision import Slot
from persistence.errors import PersistenceError, StoreClosedError
from persistence.store import GetResponse

__all__ = ["Gatherer", "ReadRows", "Rows"]

Rows: TypeAlias = Mapping[Slot, GetResponse | PersistenceError]
"""What was found: rows, or why one of them cannot be read; slots that are absent or expired are left out."""

ReadRows: TypeAlias = Callable[[Sequence[Slot]], Awaitable[Rows]]
"""Reads rows at once."""

_MAX_SLOTS: Final = 1000
_ABSENT: Final = GetResponse()


class Gatherer:
    """Gathers reads of single rows into queries, at most `parallel` of them at a time.

    A query begins after every read it serves was asked for, so that a caller sees what it has written
    before. There is no linger timer. A query that fails fails its readers, and nobody else; a row that
    cannot be read fails those who asked for it, and not the others that share its query.

    It belongs to the event loop that runs when it is made.
    """

    def __init__(self, read: ReadRows, *, parallel: int = 2) -> None:
        self._read = read
        self._parallel = parallel
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[Slot, asyncio.Future[GetResponse]] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._apart: set[asyncio.Task[Rows]] = set()
        self._scheduled = False
        self._closed = False

    async def get(self, slot: Slot) -> GetResponse:
        """Read one row.

        Raises:
            StoreClosedError: the gatherer is closed.
            PersistenceError: whatever the query raised.
        """
        if self._closed:
            raise StoreClosedError("the store is closed")
        future = self._waiting.get(slot)
        if future is None:
            future = self._waiting[slot] = self._loop.create_future()
            self._schedule()
        # Shielded, as several callers may wait for one row, and one of them may go away.
        return await asyncio.shield(future)

    async def get_all(self, slots: Sequence[Slot]) -> Rows:
        """Read several rows, in queries of their own; those that are absent or expired are left out.

        Raises:
            StoreClosedError: the gatherer is closed.
            PersistenceError: whatever a query raised.
        """
        found: Rows = {}
        for first in range(0, len(slots), _MAX_SLOTS):
            if self._closed:
                raise StoreClosedError("the store is closed")
            task = self._loop.create_task(self._read_all(slots[first : first + _MAX_SLOTS]))
            self._apart.add(task)
            task.add_done_callback(self._apart_ended)
            # Shielded, as a query that was begun had better come to its end.
            rows = await asyncio.shield(task)
            found = {**found, **rows} if found else rows
        return found

    async def _read_all(self, slots: Sequence[Slot]) -> Rows:
        return await self._read(slots)

    def _apart_ended(self, task: asyncio.Task[Rows]) -> None:
        self._apart.discard(task)
        if not task.cancelled():
            # A caller that was cancelled does not look; that is no reason to log.
            task.exception()

    async def drain(self) -> None:
        """Refuse new reads, and return when the accepted ones are answered."""
        self._closed = True
        while self._waiting or self._running or self._apart:
            self._start()
            await asyncio.wait({*self._running, *self._apart})

    def _schedule(self) -> None:
        if not self._scheduled and len(self._running) < self._parallel:
            self._scheduled = True
            # Not at once: the other tasks that are ready to run may want to share the query.
            self._loop.call_soon(self._start)

    def _start(self) -> None:
        self._scheduled = False
        if not self._waiting or len(self._running) >= self._parallel:
            return
        if len(self._waiting) <= _MAX_SLOTS:
            taken, self._waiting = self._waiting, {}
        else:
            slots = list(islice(self._waiting, _MAX_SLOTS))
            taken = {slot: self._waiting.pop(slot) for slot in slots}
        task = self._loop.create_task(self._answer(taken))
        self._running.add(task)
        task.add_done_callback(partial(self._ended, taken))
        if self._waiting:
            self._schedule()

    def _ended(self, taken: Mapping[Slot, asyncio.Future[GetResponse]], task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if task.cancelled():
            # The program is ending and cancels every task there is, perhaps before its first step.
            for future in taken.values():
                future.cancel()
        if self._waiting:
            self._schedule()

    async def _answer(self, taken: Mapping[Slot, asyncio.Future[GetResponse]]) -> None:
        try:
            rows = await self._read(list(taken))
        except Exception as error:  # noqa: BLE001  it is the readers' affair
            for future in taken.values():
                _fail(future, error)
        else:
            for slot, future in taken.items():
                row = rows.get(slot, _ABSENT)
                if isinstance(row, PersistenceError):
                    _fail(future, row)
                elif not future.done():
                    future.set_result(row)


def _fail(future: asyncio.Future[GetResponse], error: Exception) -> None:
    if future.done():
        return
    if isinstance(error, PersistenceError):
        # To each its own, as raising one error in many tasks tangles its traceback.
        duplicate = copy.copy(error)
        duplicate.__cause__ = error.__cause__
        error = duplicate
    future.set_exception(error)
    # A caller cancelled between now and its wake-up never looks; that is no reason to log.
    future.exception()
