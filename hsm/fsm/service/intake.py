"""Intake: events come from a queue of messages, which are acknowledged once their outcomes are committed."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import Final, Protocol, TypeAlias

import attrs

from hsm.engine.clock import Clock, SystemClock, from_nanos
from hsm.errors import HSMError
from hsm.fsm.service.errors import PoisonError
from hsm.fsm.service.messages import decode_request
from hsm.fsm.service.telemetry import NoTelemetry, ServiceTelemetry
from persistence.errors import PersistenceError
from persistence.proto.statemachine_pb2 import EventOutcome, EventRequest, EventResponse

__all__ = ["Delivery", "EventSink", "Intake", "MessageQueue"]

_LOG: Final = logging.getLogger("hsm.fsm.service.intake")
_FIRST_PAUSE_SECONDS: Final = 0.05
_LONGEST_PAUSE_SECONDS: Final = 5.0


@attrs.frozen
class Delivery:
    """A message as it was delivered this time.

    Attributes:
        receipt: names this delivery to the queue.
        message_id: of the message; the same each time it is delivered, and no other message's.
        body: of the message; None if it has none.
        sent: when the message was sent.
        count: how often it has been delivered, this time included.
    """

    receipt: str
    message_id: str
    body: str | None
    sent: datetime
    count: int


class MessageQueue(Protocol):
    """A queue that delivers a message again unless it is acknowledged in time."""

    @property
    def name(self) -> str:
        """For log records."""
        ...

    @property
    def hold(self) -> timedelta:
        """How long a delivery belongs to us, from its arrival or the latest `extend`."""
        ...

    async def receive(self, most: int) -> Sequence[Delivery]:
        """Wait for messages; none after some time without any."""
        ...

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """Keep deliveries from others for `hold` from now on."""
        ...

    async def acknowledge(self, delivery: Delivery) -> None:
        """The message is done: it is not delivered again."""
        ...

    async def release(self, deliveries: Sequence[Delivery]) -> None:
        """Let others have the messages at once."""
        ...

    async def bury(self, delivery: Delivery, reason: str) -> bool:
        """Move the message to the dead letters; False, and nothing is done, if the queue has none."""
        ...


Outcome: TypeAlias = Awaitable[EventResponse]


class EventSink(Protocol):
    """What processes the events."""

    async def accept(self, request: EventRequest) -> Outcome:
        """Take on an event durably; what is returned is awaited for its committed, and announced, outcome.

        Raises:
            PoisonError: it can never be taken on.
        """
        ...


@attrs.define(eq=False)
class _Lane:
    """The deliveries for one machine that are not accepted yet, in their order."""

    waiting: deque[tuple[Delivery, EventRequest]] = attrs.field(factory=deque[tuple[Delivery, EventRequest]])


class Intake:
    """Feeds the messages of a queue to an event sink.

    Messages for one machine are accepted in the order in which they are delivered, those for different
    machines side by side. A message is acknowledged when its event's outcome is committed and announced;
    until then the queue keeps it, and a process that dies leaves it to another one. If the event is then
    processed a second time, it changes nothing, and its first outcome is announced again.

    A message that can never be processed goes to the dead letters with the reason. While the database is
    away, messages wait.
    """

    def __init__(
        self,
        queue: MessageQueue,
        sink: EventSink,
        *,
        telemetry: ServiceTelemetry | None = None,
        clock: Clock | None = None,
        concurrency: int = 100,
        most_deliveries: int = 0,
    ) -> None:
        """Make one; `run` starts it.

        Args:
            queue: the messages come from it.
            sink: the events go to it.
            telemetry: hears of the messages.
            clock: tells how long messages take.
            concurrency: how many messages are held at once, at most.
            most_deliveries: a message that has been delivered more often goes to the dead letters: it might
                be what ends the processes. 0 leaves that to the queue.
        """
        self._queue = queue
        self._sink = sink
        self._telemetry = telemetry or NoTelemetry()
        self._clock = clock or SystemClock()
        self._concurrency = concurrency
        self._most_deliveries = most_deliveries
        self._held: dict[str, Delivery] = {}
        self._lanes: dict[tuple[str, str], _Lane] = {}
        self._settling: set[asyncio.Future[EventResponse]] = set()
        self._stopping = asyncio.Event()
        self._room = asyncio.Event()

    def stop(self) -> None:
        """Receive no more. `run` returns when the messages that are accepted are acknowledged."""
        self._stopping.set()
        self._room.set()

    async def run(self) -> None:
        """Receive and process messages until `stop`; cancelled, it gives back those not acknowledged."""
        try:
            async with asyncio.TaskGroup() as group:
                holding = group.create_task(self._hold())
                async with asyncio.TaskGroup() as work:
                    await self._receive(work)
                holding.cancel()
        finally:
            for settling in self._settling:
                settling.cancel()
            if self._held:
                await asyncio.shield(self._attempt("release", self._queue.release(list(self._held.values()))))

    async def _receive(self, work: asyncio.TaskGroup) -> None:
        pause = _Pause()
        while not self._stopping.is_set():
            room = self._concurrency - len(self._held)
            if room <= 0:
                self._room.clear()
                await self._room.wait()
                continue
            try:
                # Not cut short by `stop`: the queue would give messages to a poll that nobody reads.
                deliveries = await self._queue.receive(room)
            except (HSMError, PersistenceError, OSError) as error:
                _LOG.warning("%s: cannot receive: %s", self._queue.name, error)
                await self._sleep(pause.next())
                continue
            pause.reset()
            # What we hold already comes again if we could not hold on to it.
            new = [each for each in deliveries if each.receipt not in self._held]
            for delivery in new:
                self._held[delivery.receipt] = delivery
            if self._stopping.is_set():
                await self._give_back(new)
                return
            for delivery in new:
                self._sort(delivery, work)

    def _sort(self, delivery: Delivery, work: asyncio.TaskGroup) -> None:
        """Put a delivery into the lane of its machine."""
        if 0 < self._most_deliveries < delivery.count:
            reason = f"the message was delivered {delivery.count - 1} times without being acknowledged"
            work.create_task(self._bury(delivery, reason))
            return
        try:
            request = decode_request(delivery.body, event_id=delivery.message_id, sent=delivery.sent)
        except PoisonError as error:
            work.create_task(self._bury(delivery, str(error)))
            return
        machine = (request.config, request.id)
        lane = self._lanes.get(machine)
        if lane is None:
            lane = self._lanes[machine] = _Lane()
            work.create_task(self._drive(machine, lane, work))
        lane.waiting.append((delivery, request))

    async def _drive(self, machine: tuple[str, str], lane: _Lane, work: asyncio.TaskGroup) -> None:
        """Have the deliveries of a lane accepted one after the other."""
        while lane.waiting:
            delivery, request = lane.waiting[0]
            pause = _Pause()
            while True:
                if self._stopping.is_set():
                    await self._give_back([each for each, _ in lane.waiting])
                    lane.waiting.clear()
                    break
                try:
                    outcome = await self._sink.accept(request)
                except PoisonError as error:
                    await self._bury(delivery, str(error))
                except (HSMError, PersistenceError, OSError) as error:
                    # To let the message go would let later ones for the machine pass it.
                    _LOG.warning(
                        "%s: event %s waits: %s",
                        self._queue.name,
                        request.event.event_id,
                        error,
                        extra=_fields(request),
                    )
                    await self._sleep(pause.next())
                    continue
                else:
                    # Begun at once: what finishes may be cancelled before it has.
                    settling = asyncio.ensure_future(outcome)
                    self._settling.add(settling)
                    settling.add_done_callback(self._settling.discard)
                    work.create_task(self._finish(delivery, request, settling))
                lane.waiting.popleft()
                break
        del self._lanes[machine]

    async def _finish(self, delivery: Delivery, request: EventRequest, outcome: Outcome) -> None:
        try:
            response = await outcome
        except (HSMError, PersistenceError, OSError) as error:
            # It is stored as pending. Whoever takes it up makes its outcome, and the message comes again.
            _LOG.warning(
                "%s: event %s has no outcome yet: %s",
                self._queue.name,
                request.event.event_id,
                error,
                extra=_fields(request),
            )
            await self._give_back([delivery])
            return
        age = from_nanos(self._clock.time_ns()) - delivery.sent
        code = EventOutcome.StatusCode.Name(response.outcome.code)
        self._telemetry.outcome(code, max(0.0, age.total_seconds()))
        if await self._until_done("acknowledge", delivery, lambda: self._queue.acknowledge(delivery)):
            self._drop(delivery, "acknowledged")

    async def _bury(self, delivery: Delivery, reason: str) -> None:
        buried = False

        async def bury() -> None:
            nonlocal buried
            buried = await self._queue.bury(delivery, reason)

        if not await self._until_done("bury", delivery, bury):
            return
        where = "goes to the dead letters" if buried else "stays, as there are no dead letters"
        _LOG.error("%s: message %s %s: %s", self._queue.name, delivery.message_id, where, reason)
        self._drop(delivery, "dead_lettered" if buried else "kept")

    async def _until_done(self, what: str, delivery: Delivery, call: Callable[[], Awaitable[None]]) -> bool:
        """Call until the queue answers; False if that has to be given up, as we end."""
        pause = _Pause()
        while True:
            try:
                await call()
            except (HSMError, PersistenceError, OSError) as error:
                _LOG.warning("%s: cannot %s %s: %s", self._queue.name, what, delivery.message_id, error)
                if self._stopping.is_set():
                    self._drop(delivery, "released")
                    return False
                await self._sleep(pause.next())
            else:
                return True

    async def _give_back(self, deliveries: Sequence[Delivery]) -> None:
        await self._attempt("release", self._queue.release(deliveries))
        for delivery in deliveries:
            self._drop(delivery, "released")

    def _drop(self, delivery: Delivery, result: str) -> None:
        del self._held[delivery.receipt]
        self._room.set()
        self._telemetry.message(self._queue.name, result)

    async def _hold(self) -> None:
        """Keep the messages in hand from being delivered to others meanwhile."""
        while True:
            await asyncio.sleep(self._queue.hold.total_seconds() / 3)
            if self._held:
                await self._attempt("extend", self._queue.extend(list(self._held.values())))

    async def _attempt(self, what: str, call: Awaitable[None]) -> None:
        """Something that may fail: messages would just be delivered again."""
        try:
            await call
        except (HSMError, PersistenceError, OSError) as error:
            _LOG.warning("%s: cannot %s messages: %s", self._queue.name, what, error)

    async def _sleep(self, seconds: float) -> None:
        """Wait for a while, or until `stop`."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass


class _Pause:
    """Pauses that double, with jitter."""

    def __init__(self) -> None:
        self._seconds = _FIRST_PAUSE_SECONDS

    def next(self) -> float:
        seconds = self._seconds
        self._seconds = min(2 * seconds, _LONGEST_PAUSE_SECONDS)
        return seconds * random.uniform(0.5, 1)

    def reset(self) -> None:
        self._seconds = _FIRST_PAUSE_SECONDS


def _fields(request: EventRequest) -> dict[str, object]:
    return {
        "hsm_configuration": request.config,
        "hsm_machine_id": request.id,
        "hsm_event_id": request.event.event_id,
    }
