"""The intake: what becomes of messages, with a queue and a sink that do as they are told."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Sequence
from datetime import UTC, datetime, timedelta

from hsm.errors import BusyError
from hsm.fsm.errors import GenericStoreError
from hsm.fsm.service import Delivery, Intake, PoisonError, QueueError, encode_request
from persistence.proto.statemachine_pb2 import EventOutcome, EventRequest, EventResponse
from tests.support.fsm.service import event_for

SENT = datetime(2024, 5, 17, tzinfo=UTC)


def delivery(name: str, request: EventRequest | str | None = None, *, count: int = 1) -> Delivery:
    body = encode_request(request) if isinstance(request, EventRequest) else request
    return Delivery(receipt=name, message_id=f"id-{name}", body=body, sent=SENT, count=count)


class Queue:
    """A queue in memory."""

    name = "queue"
    hold = timedelta(hours=1)

    def __init__(self, *deliveries: Delivery, dead_letters: bool = True) -> None:
        self.waiting = list(deliveries)
        self.dead_letters = dead_letters
        self.acknowledged: list[str] = []
        self.released: list[str] = []
        self.buried: dict[str, str] = {}
        self.extended: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.changed = asyncio.Event()
        self.most = 0
        self.held = 0

    async def receive(self, most: int) -> Sequence[Delivery]:
        self._fail("receive")
        taken, self.waiting = self.waiting[:most], self.waiting[most:]
        self.held += len(taken)
        self.most = max(self.most, self.held)
        await asyncio.sleep(0 if taken else 0.005)
        return taken

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        self._fail("extend")
        self.extended.update(each.receipt for each in deliveries)
        self._change(0)

    async def acknowledge(self, delivery: Delivery) -> None:
        self._fail("acknowledge")
        self.acknowledged.append(delivery.receipt)
        self._change()

    async def release(self, deliveries: Sequence[Delivery]) -> None:
        self._fail("release")
        self.released += [each.receipt for each in deliveries]
        self._change(len(deliveries))

    async def bury(self, delivery: Delivery, reason: str) -> bool:
        self._fail("bury")
        self.buried[delivery.receipt] = reason
        self._change()
        return self.dead_letters

    def _fail(self, what: str) -> None:
        if self.failures[what] > 0:
            self.failures[what] -= 1
            raise QueueError(f"cannot {what}")

    def _change(self, left: int = 1) -> None:
        self.held -= left
        self.changed.set()

    async def until_through(self, count: int) -> None:
        async with asyncio.timeout(30):
            while len(self.acknowledged) + len(self.released) + len(self.buried) < count:
                self.changed.clear()
                await self.changed.wait()


class Sink:
    """Accepts events; their outcomes come at once, or when `release` is set."""

    def __init__(self) -> None:
        self.accepted: list[str] = []
        self.failures: list[Exception] = []
        self.outcome_failures: list[Exception] = []
        self.release = asyncio.Event()
        self.release.set()
        self.begun = asyncio.Event()

    async def accept(self, request: EventRequest) -> Awaitable[EventResponse]:
        await asyncio.sleep(0)
        if self.failures:
            raise self.failures.pop(0)
        self.accepted.append(request.event.event_id)
        self.begun.set()
        return self._outcome(request)

    async def _outcome(self, request: EventRequest) -> EventResponse:
        await self.release.wait()
        if self.outcome_failures:
            raise self.outcome_failures.pop(0)
        return EventResponse(event_id=request.event.event_id, outcome=EventOutcome(id=request.id))


async def process(
    queue: Queue, sink: Sink, count: int, *, concurrency: int = 100, most_deliveries: int = 0
) -> None:
    """Run an intake until so many messages are through."""
    intake = Intake(queue, sink, concurrency=concurrency, most_deliveries=most_deliveries)
    running = asyncio.create_task(intake.run())
    await queue.until_through(count)
    intake.stop()
    await asyncio.wait_for(running, 30)


async def test_message_is_acknowledged_after_its_outcome_and_not_before() -> None:
    queue, sink = Queue(delivery("a", event_for("m", "go", event_id="e"))), Sink()
    sink.release.clear()
    intake = Intake(queue, sink)
    running = asyncio.create_task(intake.run())
    await sink.begun.wait()
    for _ in range(20):
        await asyncio.sleep(0)
    assert queue.acknowledged == []
    sink.release.set()
    await queue.until_through(1)
    intake.stop()
    await running

    assert queue.acknowledged == ["a"]


async def test_events_without_an_id_and_time_have_those_of_the_message() -> None:
    seen: list[EventRequest] = []

    class Noting(Sink):
        async def accept(self, request: EventRequest) -> Awaitable[EventResponse]:
            seen.append(request)
            return await super().accept(request)

    await process(Queue(delivery("a", event_for("m", "go"))), Noting(), 1)

    assert [(each.event.event_id, each.event.timestamp.ToDatetime(UTC)) for each in seen] == [("id-a", SENT)]


async def test_failures_of_the_store_keep_the_order_of_a_machine() -> None:
    messages = [delivery(str(number), event_for("m", "go", event_id=str(number))) for number in range(5)]
    queue, sink = Queue(*messages), Sink()
    sink.failures = [GenericStoreError("away"), GenericStoreError("away")]

    await process(queue, sink, 5)

    assert sink.accepted == ["0", "1", "2", "3", "4"]
    assert sorted(queue.acknowledged) == ["0", "1", "2", "3", "4"]


async def test_poison_does_not_hold_up_what_follows() -> None:
    queue = Queue(
        delivery("a", "garbage"),
        delivery("b"),
        delivery("c", event_for("m", "go", event_id="c")),
        delivery("d", event_for("m", "go", event_id="d")),
    )
    sink = Sink()
    sink.failures = [PoisonError("nobody can process this")]

    await process(queue, sink, 4)

    assert set(queue.buried) == {"a", "b", "c"}
    assert queue.buried["c"] == "nobody can process this"
    assert (sink.accepted, queue.acknowledged) == (["d"], ["d"])


async def test_message_that_was_delivered_too_often_is_buried() -> None:
    queue = Queue(
        delivery("a", event_for("m", "go", event_id="a"), count=4),
        delivery("b", event_for("m", "go", event_id="b"), count=3),
    )

    await process(queue, Sink(), 2, most_deliveries=3)

    assert (set(queue.buried), queue.acknowledged) == ({"a"}, ["b"])


async def test_no_more_messages_are_held_than_asked_for() -> None:
    messages = [delivery(str(number), event_for(f"m{number}", "go")) for number in range(50)]
    queue = Queue(*messages)

    await process(queue, Sink(), 50, concurrency=7)

    assert queue.most == 7


async def test_queue_that_fails_is_asked_again() -> None:
    queue = Queue(delivery("a", event_for("m", "go")), delivery("b", "garbage"))
    queue.failures.update({"receive": 2, "acknowledge": 2, "bury": 2})

    await process(queue, Sink(), 2)

    assert (queue.acknowledged, set(queue.buried)) == (["a"], {"b"})


async def test_event_whose_outcome_is_not_known_comes_again() -> None:
    queue, sink = Queue(delivery("a", event_for("m", "go"))), Sink()
    sink.outcome_failures = [BusyError("closing")]

    await process(queue, sink, 1)

    assert (queue.acknowledged, queue.released) == ([], ["a"])


async def test_messages_in_hand_are_held() -> None:
    queue, sink = Queue(delivery("a", event_for("m", "go"))), Sink()
    queue.hold = timedelta(milliseconds=30)
    sink.release.clear()
    intake = Intake(queue, sink)
    running = asyncio.create_task(intake.run())
    async with asyncio.timeout(30):
        while queue.extended["a"] < 3:
            queue.changed.clear()
            await queue.changed.wait()
    sink.release.set()
    await queue.until_through(1)
    intake.stop()
    await running

    assert queue.acknowledged == ["a"]


async def test_stop_gives_back_what_is_not_accepted_and_finishes_the_rest() -> None:
    queue = Queue(delivery("a", event_for("m", "go")), delivery("b", event_for("m", "go")))
    sink = Sink()
    sink.release.clear()
    intake = Intake(queue, sink)

    running = asyncio.create_task(intake.run())
    await sink.begun.wait()
    sink.failures = [GenericStoreError("away")] * 1000
    intake.stop()
    await asyncio.sleep(0.01)
    assert not running.done()
    sink.release.set()
    await asyncio.wait_for(running, 30)

    assert sorted([*queue.acknowledged, *queue.released]) == ["a", "b"]
    assert "a" in queue.acknowledged


async def test_cancelled_it_gives_everything_back() -> None:
    queue, sink = Queue(delivery("a", event_for("m", "go"))), Sink()
    sink.release.clear()
    running = asyncio.create_task(Intake(queue, sink).run())
    await sink.begun.wait()
    running.cancel()
    await asyncio.wait({running})

    assert running.cancelled()
    assert queue.released == ["a"]
