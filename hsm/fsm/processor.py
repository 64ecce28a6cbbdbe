"""Processing: events are accepted durably, and sent to their machines in order, many machines at once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Final, Self

import attrs

from hsm.engine.clock import Clock, SystemClock, from_nanos, nanos_of, sleep_for
from hsm.errors import BusyError
from hsm.fsm._lines import Lines, Machine
from hsm.fsm._telling import Publish, Teller
from hsm.fsm.domain import check_request, update_event
from hsm.fsm.errors import (
    FSMStoreError,
    GenericStoreError,
    InvalidDataError,
    NotFoundError,
    StoreTimeoutError,
)
from hsm.fsm.outcomes import outcome_of
from hsm.fsm.store import Acceptance, AcceptedEvent, StoreManager
from persistence.proto.statemachine_pb2 import EventOutcome, EventRequest, EventResponse

__all__ = ["EventProcessor", "ProcessorOptions"]

_logger: Final = logging.getLogger(__name__)


@attrs.frozen
class ProcessorOptions:
    """How events are processed.

    Attributes:
        workers: machines at once.
        batch: events to one machine in one go.
        sweep_interval: how often events are looked for that another process has accepted and left behind.
        first_retry: pause after the store has failed; it doubles.
        longest_retry: the longest such pause.
    """

    workers: int = 64
    batch: int = 64
    sweep_interval: timedelta = timedelta(seconds=30)
    first_retry: timedelta = timedelta(milliseconds=50)
    longest_retry: timedelta = timedelta(seconds=10)

    def pause_after(self, failures: int) -> timedelta:
        """How long to wait after the store, or a publisher, has failed so often in a row."""
        return min(self.first_retry * (1 << min(failures - 1, 30)), self.longest_retry)


class EventProcessor:
    """Takes events for machines in a store, and sees that each gets its outcome.

    `submit` returns when the event is durable. From then on it is processed, by this process or, if that
    dies, by another one on the same store: at its start, or at its next sweep. Events to one machine are
    processed in the order in which they were accepted, whoever accepted them; machines do not wait for each
    other. What the store refuses for the moment is tried again; an event that can never be processed gets an
    outcome that says so.

    Outcomes are given to `publish`, at least once each, if the store keeps notifications of them: those of
    one machine in their order, those of several at the same time.

    Use it as an async context manager. At the end it accepts nothing more, and processes what it has
    accepted; what the store keeps it from stays pending, and so may an event whose sender gave up while the
    store was accepting it. What is left so is found at the next sweep, at the latest.
    """

    def __init__(
        self,
        store: StoreManager,
        options: ProcessorOptions | None = None,
        *,
        publish: Publish | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Process events on a store, which is open for as long as the processor is."""
        self._store = store
        self._options = options or ProcessorOptions()
        self._clock = clock or SystemClock()
        self._lines = Lines()
        self._teller = (
            None if publish is None else Teller(store, publish, self._clock, self._options.pause_after)
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._accepting = False

    def __repr__(self) -> str:
        return f"<EventProcessor with {len(self._lines)} machines waiting>"

    @property
    def backlog(self) -> int:
        """Machines of this process that have events waiting."""
        return len(self._lines)

    async def __aenter__(self) -> Self:
        """Take up what is pending, and begin to accept.

        Raises:
            FSMStoreError: the store cannot be read.
        """
        self._lines = Lines()
        async for name, id_ in self._store.pending_machines():
            self._lines.mark((name, id_))
        self._tasks = [asyncio.create_task(self._work()) for _ in range(self._options.workers)]
        self._tasks.append(asyncio.create_task(self._sweep()))
        if self._teller is not None:
            self._tasks.append(asyncio.create_task(self._teller.run()))
        self._accepting = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self, *, timeout: timedelta | None = None) -> None:
        """Accept nothing more; return when all accepted is processed, and told once, or after `timeout`."""
        self._accepting = False
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if timeout is None else timeout.total_seconds()):
                    await self._lines.idle()
                    if self._teller is not None:
                        await self._teller.idle()
        finally:
            tasks, self._tasks = self._tasks, []
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if left := self._lines.abandon():
                _logger.warning("events to %d machines stay pending until another start or sweep", left)

    async def submit(self, request: EventRequest) -> EventResponse:
        """Accept an event; its id, and its outcome if it came before and has one.

        The id and the time are filled in where the event has none; `request` itself is left as it is.

        Raises:
            EventError: the request does not name a machine, a configuration or an event.
            BusyError: the processor is not running.
            FSMStoreError: the store failed; the event may have been accepted.
        """
        request = self._complete(request)
        return _response(request, await self._accept(request))

    async def process(self, request: EventRequest) -> EventResponse:
        """As `submit`, and wait for the outcome. Giving up the wait leaves the event accepted.

        Raises:
            BusyError: the processor is not running, or was closed before there was an outcome.
        """
        return await (await self.accept(request))

    async def accept(self, request: EventRequest) -> Awaitable[EventResponse]:
        """As `submit`; what is returned has to be awaited, and waits for the outcome as `process` does.

        So several events can be accepted one after the other while they wait for their outcomes together.

        Raises:
            EventError, BusyError, FSMStoreError: as `submit`.
        """
        request = self._complete(request)
        acceptance = await self._accept(request)
        response = _response(request, acceptance)
        with contextlib.ExitStack() as stack:
            outcome: Awaitable[EventOutcome] | None = None
            if acceptance.pending is not None:
                # It may have been accepted before, and for another machine.
                machine = _machine_of(acceptance.pending.request)
                waiting = self._lines.waiting(machine, request.event.event_id)
                outcome = stack.enter_context(waiting)
            return _settlement(response, outcome, stack.pop_all())

    def _complete(self, request: EventRequest) -> EventRequest:
        if not self._accepting:
            raise BusyError("the processor of events is not running")
        check_request(request)
        complete = EventRequest()
        complete.CopyFrom(request)
        update_event(complete.event, now=from_nanos(self._clock.time_ns()))
        return complete

    async def _accept(self, request: EventRequest) -> Acceptance:
        try:
            acceptance = await self._store.accept_event(request)
        except (asyncio.CancelledError, GenericStoreError, StoreTimeoutError):
            # The store may have the event all the same, or have it in a moment, and nobody would say so.
            lines, machine = self._lines, _machine_of(request)
            self._clock.call_later(nanos_of(self._options.first_retry), lambda: lines.mark(machine))
            raise
        if acceptance.pending is not None:
            self._lines.mark(_machine_of(acceptance.pending.request))
        return acceptance

    async def _work(self) -> None:
        while True:
            machine = await self._lines.next()
            try:
                await self._drain(machine)
            except FSMStoreError as error:
                self._retry(machine, error)
            except Exception as error:
                _logger.exception("the store failed in a way that it should not")
                self._retry(machine, error)
            else:
                self._lines.done(machine)

    def _retry(self, machine: Machine, error: Exception) -> None:
        failures = self._lines.failed(machine)
        pause = self._options.pause_after(failures)
        _logger.warning("events to machine %r of %r wait for %s: %s", machine[1], machine[0], pause, error)
        lines = self._lines  # those of this run, should there be another one by then
        self._clock.call_later(nanos_of(pause), lambda: lines.again(machine))

    async def _drain(self, machine: Machine) -> None:
        """Process what waits for a machine; one batch, so that others have their turn."""
        name, id_ = machine
        events = await self._store.pending_events(id_, name, limit=self._options.batch)
        sound = [event for event in events if event.damage is None]
        if sound:
            await self._process(machine, sound)
        for event in events:
            if event.damage is not None:
                await self._put_aside(machine, event, InvalidDataError("the stored event cannot be read"))
        if len(events) == self._options.batch:
            self._lines.mark(machine)
        else:
            await self._look_up(machine)

    async def _process(self, machine: Machine, events: Sequence[AcceptedEvent]) -> None:
        try:
            outcomes = await self._store.process_events(events)
        except InvalidDataError as error:
            await self._one_by_one(machine, events, error)
            return
        for event, outcome in zip(events, outcomes, strict=True):
            self._settled(machine, event, outcome)

    async def _one_by_one(
        self, machine: Machine, events: Sequence[AcceptedEvent], error: InvalidDataError
    ) -> None:
        """Find the event that cannot be processed, and put it aside."""
        if len(events) > 1:
            for event in events:
                await self._process(machine, [event])
            return
        await self._put_aside(machine, events[0], error)

    async def _put_aside(self, machine: Machine, event: AcceptedEvent, error: InvalidDataError) -> None:
        """Give an event that cannot be processed an outcome that says so."""
        name, id_ = machine
        _logger.error(
            "event %r to machine %r of %r is refused: %s", event.request.event.event_id, id_, name, error
        )
        outcome = await self._store.settle_event(event, outcome_of(error, id=id_, config=name))
        self._settled(machine, event, outcome)

    def _settled(self, machine: Machine, event: AcceptedEvent, outcome: EventOutcome) -> None:
        self._lines.settle(machine, event.request.event.event_id, outcome)
        if self._teller is not None:
            self._teller.wake(machine[0])

    async def _look_up(self, machine: Machine) -> None:
        """Outcomes that somebody here waits for, and that another process has made."""
        for event_id in self._lines.awaited(machine):
            with contextlib.suppress(NotFoundError):
                outcome = await self._store.get_outcome_for_event(event_id, machine[0])
                self._lines.settle(machine, event_id, outcome)

    async def _sweep(self) -> None:
        """Find what other processes have left behind."""
        while True:
            await self._pause(self._options.sweep_interval)
            try:
                async for name, id_ in self._store.pending_machines():
                    self._lines.mark((name, id_))
                await self._store.sweep()
            except FSMStoreError as error:
                _logger.warning("what was left behind cannot be looked for: %s", error)
            except Exception:
                _logger.exception("the store failed in a way that it should not")
            if self._teller is not None:
                self._teller.wake()

    async def _pause(self, duration: timedelta) -> None:
        await sleep_for(self._clock, nanos_of(duration), asyncio.get_running_loop().create_future())


def _machine_of(request: EventRequest) -> Machine:
    return request.config, request.id


def _response(request: EventRequest, acceptance: Acceptance) -> EventResponse:
    return EventResponse(event_id=request.event.event_id, outcome=acceptance.outcome)


async def _settlement(
    response: EventResponse, outcome: Awaitable[EventOutcome] | None, waiting: contextlib.ExitStack
) -> EventResponse:
    with waiting:
        if outcome is not None:
            response.outcome.CopyFrom(await outcome)
    return response
