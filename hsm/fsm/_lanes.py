"""Lanes: events come from anywhere in the process; those of one machine are carried out batch by batch."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import TypeAlias

from hsm.fsm.errors import InvalidDataError, StoreTimeoutError
from hsm.fsm.store import AcceptedEvent
from persistence.proto.statemachine_pb2 import EventOutcome

__all__ = ["Lanes"]

Process: TypeAlias = Callable[[str, str, Sequence[AcceptedEvent]], Awaitable[Sequence[EventOutcome]]]
"""Carries out events to a machine: name of its configuration, id, and the events in their order."""

_MachineKey: TypeAlias = tuple[str, str]
_Waiting: TypeAlias = tuple[AcceptedEvent, asyncio.Future[EventOutcome]]


class Lanes:
    """Carries out events, one batch a machine at a time; what comes meanwhile is the next batch.

    Whoever comes first does it himself, for a task costs more than what it would do. He hands the machine
    over to a worker if others have come, or if he is cancelled: what was begun is carried out all the same.
    """

    def __init__(self, process: Process, batch: int) -> None:
        """Take at most `batch` events at once."""
        self._process = process
        self._batch = batch
        self._lanes: dict[_MachineKey, deque[_Waiting]] = {}
        self._workers: set[asyncio.Task[None]] = set()
        self._idle: asyncio.Future[None] | None = None

    async def carry_out(self, name: str, id_: str, events: Sequence[AcceptedEvent]) -> Sequence[EventOutcome]:
        """The outcomes of events to one machine, in their order.

        Raises:
            InvalidDataError: one of them is at fault; those before and after it were carried out.
            StoreTimeoutError: the lanes were closed before.
            FSMStoreError: as `Process`.
        """
        key = (name, id_)
        if key in self._lanes or len(events) > self._batch:
            return await self._queue(key, events)
        lane = self._lanes[key] = deque()
        try:
            return await self._process(name, id_, events)
        except asyncio.CancelledError:
            lane.extendleft(reversed(_waiting(events)))
            raise
        except InvalidDataError:
            if len(events) == 1:
                raise
            waiting = _waiting(events)
            lane.extendleft(reversed(waiting))
        finally:
            if lane:
                self._start(key)
            else:
                self._end(key)
        return await _outcomes(waiting)

    async def aclose(self, timeout: timedelta) -> None:
        """Return when nothing is under way; after so long, if that is not zero, give up what is."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout.total_seconds() or None):
                while self._lanes:
                    self._idle = asyncio.get_running_loop().create_future()
                    await self._idle
        workers = list(self._workers)
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        for lane in self._lanes.values():
            _give_up(lane)
            lane.clear()
        self._lanes.clear()

    async def _queue(self, key: _MachineKey, events: Sequence[AcceptedEvent]) -> Sequence[EventOutcome]:
        """Put events into the lane of their machine, and wait for their outcomes."""
        waiting = _waiting(events)
        if key in self._lanes:
            self._lanes[key].extend(waiting)
        else:
            self._lanes[key] = deque(waiting)
            self._start(key)
        return await _outcomes(waiting)

    def _start(self, key: _MachineKey) -> None:
        worker = asyncio.get_running_loop().create_task(self._work(key))
        self._workers.add(worker)
        worker.add_done_callback(self._workers.discard)

    def _end(self, key: _MachineKey) -> None:
        self._lanes.pop(key, None)  # gone if it was given up
        if not self._lanes and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    async def _work(self, key: _MachineKey) -> None:
        lane = self._lanes[key]
        while lane:
            batch = [lane.popleft() for _ in range(min(len(lane), self._batch))]
            await self._carry_out(key, batch)
        self._end(key)

    async def _carry_out(self, key: _MachineKey, batch: Sequence[_Waiting]) -> None:
        try:
            outcomes = await self._process(*key, [event for event, _ in batch])
        except InvalidDataError as error:
            if len(batch) == 1:
                _fail(batch[0][1], error)
                return
            for each in batch:  # one of them is at fault, and no reason to refuse the others
                await self._carry_out(key, [each])
        except asyncio.CancelledError:
            _give_up(batch)
            raise
        except Exception as error:  # noqa: BLE001  told to whoever waits
            for _, future in batch:
                _fail(future, error)
        else:
            for (_, future), outcome in zip(batch, outcomes, strict=True):
                if not future.done():
                    future.set_result(outcome)


def _waiting(events: Iterable[AcceptedEvent]) -> list[_Waiting]:
    loop = asyncio.get_running_loop()
    return [(event, loop.create_future()) for event in events]


async def _outcomes(waiting: Iterable[_Waiting]) -> list[EventOutcome]:
    # The futures survive whoever gives up waiting for them.
    return [await asyncio.shield(future) for _, future in waiting]


def _give_up(waiting: Iterable[_Waiting]) -> None:
    for _, future in waiting:
        _fail(future, StoreTimeoutError("the store was closed before the database answered"))


def _fail(future: asyncio.Future[EventOutcome], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # seen: the caller may have given up
