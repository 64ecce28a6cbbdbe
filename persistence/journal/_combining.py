"""Combining: commits to one history that expect no version, and would only make each other fail, go together.

While one commit of a history is under way, others gather and become the next one. So a history that many
write to costs a transaction for each round, and not for each of them, and other processes meet fewer of them.
"""

from __future__ import annotations

import asyncio
import copy
import random
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final
from uuid import UUID

from persistence.errors import PersistenceError, TransactionTooLargeError
from persistence.journal._appending import Appender
from persistence.journal.clock import Clock, sleep
from persistence.journal.errors import (
    EventCommitUnknownError,
    HistoryError,
    RetryNoVCError,
    TranscodingError,
    VersionConflictError,
)
from persistence.journal.events import Committed, Event, NewEvent
from persistence.journal.observer import JournalObserver
from persistence.journal.versions import RETRY_NO_VC

__all__ = ["FIRST_PAUSE_NS", "TRIES", "Combiner"]

TRIES: Final = 6
"""How often `RETRY_NO_VC` tries."""

FIRST_PAUSE_NS: Final = 5_000_000
_MAX_EVENTS: Final = 500
_MAX_BYTES: Final = 1024 * 1024


class _Request:
    __slots__ = ("events", "future", "type")

    def __init__(self, events: Sequence[NewEvent], type_: str, future: asyncio.Future[Committed]) -> None:
        self.events = events
        self.type = type_
        self.future = future

    def can_join(self, first: _Request) -> bool:
        """Whether it can share a transaction: ids that were given have to be greater than what is there."""
        return self.type == first.type and all(event.id is None for event in (*self.events, *first.events))


class Combiner:
    """Commits without an expectation, in up to six tries with growing pauses."""

    def __init__(
        self,
        appender: Appender,
        *,
        serialized: Callable[[UUID], AbstractAsyncContextManager[None]],
        clock: Clock,
        chance: random.Random,
        observer: JournalObserver,
        most: int,
    ) -> None:
        self._appender = appender
        self._serialized = serialized
        self._clock = clock
        self._random = chance
        self._observer = observer
        self._most = max(min(_MAX_EVENTS, most), 1)
        self._queues: dict[UUID, deque[_Request]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def commit(self, history: UUID, events: Sequence[NewEvent], type_: str) -> Committed:
        """Commit events behind whatever is there. It goes on if the caller is cancelled meanwhile."""
        loop = asyncio.get_running_loop()
        request = _Request(events, type_, loop.create_future())
        queue = self._queues.get(history)
        if queue is None:
            queue = self._queues[history] = deque()
            task = loop.create_task(self._drain(history, queue))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        queue.append(request)
        return await request.future

    async def _drain(self, history: UUID, queue: deque[_Request]) -> None:
        batch: list[_Request] = []
        try:
            while queue:
                async with self._serialized(history):
                    batch = self._take(queue)
                    if batch:
                        await self._carry_out(history, batch)
        finally:
            del self._queues[history]
            # Only if the program is ending and cancels every task.
            for request in (*batch, *queue):
                request.future.cancel()

    def _take(self, queue: deque[_Request]) -> list[_Request]:
        batch: list[_Request] = []
        events = size = 0
        while queue:
            request = queue[0]
            events += len(request.events)
            size += sum(len(event.payload) for event in request.events)
            if batch and (events > self._most or size > _MAX_BYTES or not request.can_join(batch[0])):
                break
            queue.popleft()
            if not request.future.done():
                batch.append(request)
        return batch

    async def _carry_out(self, history: UUID, batch: Sequence[_Request]) -> None:
        events = [event for request in batch for event in request.events]
        try:
            committed = await self._with_retries(history, events, batch[0].type)
        except (TransactionTooLargeError, TranscodingError) as error:
            if len(batch) == 1:
                _fail(batch[0], error)
            else:
                # One of them is to blame, and the others shall not suffer.
                for request in batch:
                    await self._carry_out(history, [request])
        except EventCommitUnknownError as error:
            cause = error.__cause__
            for request, own in _shares(batch, error.events):
                if isinstance(cause, Exception):
                    _fail(request, EventCommitUnknownError(history, own, cause))
        except Exception as error:  # noqa: BLE001  it is the callers' affair
            for request in batch:
                _fail(request, error)
        else:
            for request, own in _shares(batch, committed.events):
                if not request.future.done():
                    request.future.set_result(
                        committed if len(batch) == 1 else Committed(own[-1].id, tuple(own))
                    )

    async def _with_retries(self, history: UUID, events: Sequence[NewEvent], type_: str) -> Committed:
        tries = 0
        while True:
            start = self._clock.time_ns()
            try:
                return await self._appender.append(history, events, RETRY_NO_VC, type_)
            except VersionConflictError as error:
                self._observer.conflicted(history)
                tries += 1
                if tries == TRIES:
                    raise RetryNoVCError(history, tries, error) from error
                self._observer.retried(history)
            # Where commits take long, those of others do, too.
            longest = max(2 * (self._clock.time_ns() - start), FIRST_PAUSE_NS) << (tries - 1)
            await sleep(self._clock, int(self._random.uniform(0, longest)))


def _shares(batch: Sequence[_Request], events: Sequence[Event]) -> list[tuple[_Request, Sequence[Event]]]:
    shares: list[tuple[_Request, Sequence[Event]]] = []
    first = 0
    for request in batch:
        shares.append((request, events[first : first + len(request.events)]))
        first += len(request.events)
    return shares


def _fail(request: _Request, error: Exception) -> None:
    if request.future.done():
        return
    # To each its own, as raising one error in many tasks tangles its traceback.
    if isinstance(error, RetryNoVCError):
        own: Exception = RetryNoVCError(error.history, error.tries, error.error)
    elif isinstance(error, PersistenceError) and not isinstance(error, HistoryError):
        own = copy.copy(error)
        own.__cause__ = error.__cause__
    else:
        own = error
    request.future.set_exception(own)
    # A caller cancelled between now and its wake-up never looks; that is no reason to log.
    request.future.exception()
