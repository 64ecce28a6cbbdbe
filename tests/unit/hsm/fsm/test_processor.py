"""Processing: durable before it is answered, in order per machine, many machines at once, nothing lost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import pytest

from hsm.errors import BusyError
from hsm.fsm import (
    Acceptance,
    AcceptedEvent,
    ConfigurationNotFoundError,
    DatabaseStore,
    EventProcessor,
    GenericStoreError,
    MissingDestinationError,
    OutcomePendingError,
    ProcessorOptions,
    StoreTimeoutError,
)
from hsm.testing import FakeClock
from persistence.proto.statemachine_pb2 import EventOutcome, EventRequest, EventResponse, Transition
from tests.support.fsm.processing import Failing, Gate, SlowToAccept, history_of, step
from tests.support.fsm.suite import pending_of, request as asking
from tests.support.fsm.world import DatabaseWorld

CODES = EventOutcome.StatusCode


async def test_event_is_durable_when_it_is_answered(store: DatabaseStore, world: DatabaseWorld) -> None:
    gate = Gate(store)
    async with EventProcessor(gate) as processor:
        gate.close()
        response = await processor.submit(step("e1"))

        assert response == EventResponse(event_id="e1")
        reader = await world.open()
        assert await pending_of(reader) == {("counters", "1"): ["e1"]}
        with pytest.raises(OutcomePendingError):
            await reader.get_outcome_for_event("e1", "counters")
        gate.open()

    assert (await store.get_outcome_for_event("e1", "counters")).code == CODES.Ok


async def test_id_and_time_are_filled_in(store: DatabaseStore) -> None:
    clock = FakeClock()
    async with EventProcessor(store, clock=clock) as processor:
        sent = EventRequest(config="counters", id="1")
        sent.event.transition.CopyFrom(Transition(event="next"))

        response = await processor.process(sent)

        assert not sent.event.event_id
        stored = await store.get_event(response.event_id, "counters")
        assert stored.timestamp.ToDatetime(clock.now().tzinfo) == clock.now()


async def test_outcome_can_be_waited_for(store: DatabaseStore) -> None:
    async with EventProcessor(store) as processor:
        done = await processor.process(step("e1"))
        refused = await processor.process(step("e2", name="explode"))
        nobody = await processor.process(step("e3", machine="nobody"))

        assert done.outcome == EventOutcome(id="1", config="counters", revision=2)
        assert refused.outcome.code == CODES.EventNotAllowed
        assert nobody.outcome.code == CODES.FsmNotFound


async def test_event_that_comes_again_is_answered_with_its_outcome(store: DatabaseStore) -> None:
    async with EventProcessor(store) as processor:
        first = await processor.process(step("e1"))

        assert await processor.submit(step("e1")) == first
        assert await processor.process(step("e1", machine="2")) == first

    assert await history_of(store) == ["e1"]
    assert await history_of(store, "2") == []


async def test_event_that_comes_twice_at_once_has_one_outcome(store: DatabaseStore) -> None:
    async with EventProcessor(store) as processor:
        responses = await asyncio.gather(
            *(processor.process(step("e1", machine=str(1 + number % 2))) for number in range(10))
        )

    assert all(response == responses[0] for response in responses)
    assert sorted(await history_of(store) + await history_of(store, "2")) == ["e1"]


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (asking("accept", "e1", machine=""), MissingDestinationError),
        (asking("accept", "e1", config="unknown"), ConfigurationNotFoundError),
    ],
)
async def test_request_that_leads_nowhere_is_refused(
    store: DatabaseStore, bad: EventRequest, error: type[Exception]
) -> None:
    async with EventProcessor(store) as processor:
        with pytest.raises(error):
            await processor.submit(bad)
        with pytest.raises(error):
            await processor.process(bad)

        assert (await processor.process(step("e2"))).outcome.code == CODES.Ok


async def test_events_to_a_machine_are_processed_in_order_of_acceptance(store: DatabaseStore) -> None:
    ids = [f"e{number * 37 % 100:02}" for number in range(100)]
    async with EventProcessor(store, ProcessorOptions(batch=7)) as processor:
        for id_ in ids:
            await processor.submit(step(id_))

    assert await history_of(store) == ids


async def test_start_takes_up_what_is_pending_in_order(world: DatabaseWorld, store: DatabaseStore) -> None:
    ids = [f"e{number * 7 % 20:02}" for number in range(20)]
    for number, id_ in enumerate(ids):
        await store.accept_event(step(id_, machine=str(1 + number % 2)))

    async with EventProcessor(await world.open()) as processor:
        await processor.submit(step("last", machine="1"))

    assert await history_of(store, "1") == [*ids[::2], "last"]
    assert await history_of(store, "2") == ids[1::2]
    assert await pending_of(store) == {}


async def test_events_keep_their_order_across_processes(world: DatabaseWorld, store: DatabaseStore) -> None:
    async with (
        EventProcessor(store) as first,
        EventProcessor(await world.open()) as second,
    ):
        ids = [f"e{number:02}" for number in range(60)]
        for number, id_ in enumerate(ids):
            await (first, second)[number % 2].submit(step(id_))

    assert await history_of(store) == ids


async def test_what_another_process_left_behind_is_swept_up(
    world: DatabaseWorld, store: DatabaseStore
) -> None:
    clock = FakeClock()
    async with EventProcessor(store, clock=clock) as processor:
        await (await world.open()).accept_event(step("left"))
        assert await history_of(store) == []

        await clock.skip(timedelta(seconds=31))
        waiting = await processor.process(step("e2"))

        assert waiting.outcome.code == CODES.Ok
        assert await history_of(store) == ["left", "e2"]


async def test_one_that_waits_learns_what_another_process_did(
    world: DatabaseWorld, store: DatabaseStore
) -> None:
    gate = Gate(store)
    async with EventProcessor(gate) as processor:
        gate.close()
        waiting = asyncio.create_task(processor.process(step("e1")))
        await gate.reached.wait()
        other = await world.open()
        await other.process_events(await other.pending_events("1", "counters"))
        gate.open()

        assert (await waiting).outcome.code == CODES.Ok

    assert await history_of(store) == ["e1"]


async def test_hot_machine_does_not_hold_up_others(store: DatabaseStore) -> None:
    gate = Gate(store, only="1")
    async with EventProcessor(gate) as processor:
        gate.close()
        slow = asyncio.create_task(processor.process(step("e1")))
        await gate.reached.wait()

        assert (await processor.process(step("e2", machine="2"))).outcome.code == CODES.Ok

        assert not slow.done()
        gate.open()
        assert (await slow).outcome.code == CODES.Ok


async def test_machines_are_processed_at_the_same_time(store: DatabaseStore) -> None:
    gate = Gate(store)
    async with EventProcessor(gate) as processor:
        gate.close()
        tasks = [asyncio.create_task(processor.process(step(f"e{n}", machine=str(n)))) for n in (1, 2, 3)]
        await gate.all_reached(3)

        assert not any(task.done() for task in tasks)
        gate.open()
        await asyncio.gather(*tasks)


async def test_failing_store_is_tried_again(store: DatabaseStore, caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    broken = Failing(store, [GenericStoreError("down"), GenericStoreError("still down")])
    async with EventProcessor(broken, clock=clock) as processor:
        waiting = asyncio.create_task(processor.process(step("e1")))
        while broken.errors:
            await clock.skip(timedelta(seconds=1))
        while not waiting.done():
            await clock.skip(timedelta(seconds=1))

        assert (await waiting).outcome.code == CODES.Ok
    assert "still down" in caplog.text


async def test_event_that_can_never_be_processed_gets_an_outcome(store: DatabaseStore) -> None:
    poison = Failing(store, [], poison="bad")
    async with EventProcessor(poison) as processor:
        responses = await asyncio.gather(*(processor.process(step(id_)) for id_ in ("a", "bad", "c")))

        assert [response.outcome.code for response in responses] == [CODES.Ok, CODES.GenericError, CODES.Ok]
    assert await history_of(store) == ["a", "c"]
    assert await pending_of(store) == {}


async def test_closing_processes_what_was_accepted(store: DatabaseStore) -> None:
    async with EventProcessor(store, ProcessorOptions(workers=1, batch=2)) as processor:
        for number in range(20):
            await processor.submit(step(f"e{number}", machine=str(1 + number % 3)))

    assert await pending_of(store) == {}
    with pytest.raises(BusyError, match="not running"):
        await processor.submit(step("late"))


async def test_closing_in_a_hurry_leaves_events_pending(
    world: DatabaseWorld, store: DatabaseStore, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate(store)
    processor = EventProcessor(gate)
    async with processor:
        gate.close()
        waiting = asyncio.create_task(processor.process(step("e1")))
        await gate.reached.wait()

        await processor.aclose(timeout=timedelta(milliseconds=1))

        with pytest.raises(BusyError, match="pending"):
            await waiting
    assert "events to 1 machines stay pending" in caplog.text
    assert await pending_of(store) == {("counters", "1"): ["e1"]}
    async with EventProcessor(await world.open()):
        pass
    assert await history_of(store) == ["e1"]


async def test_who_is_accepted_while_it_closes_does_not_wait_for_ever(store: DatabaseStore) -> None:
    slow = SlowToAccept(store)
    async with EventProcessor(slow) as processor:
        waiting = asyncio.create_task(processor.process(step("e1")))
        await slow.reached.wait()
    slow.go_on.set()

    with pytest.raises(BusyError, match="pending"):
        await waiting
    assert await pending_of(store) == {("counters", "1"): ["e1"]}


async def test_sweeps_go_on_after_one_that_failed(
    world: DatabaseWorld, store: DatabaseStore, caplog: pytest.LogCaptureFixture
) -> None:
    clock = FakeClock()
    broken = Failing(store, [])
    async with EventProcessor(broken, clock=clock) as processor:
        broken.sweeps = [RuntimeError("a defect")]
        await clock.skip(timedelta(seconds=31))
        await (await world.open()).accept_event(step("left"))
        await clock.skip(timedelta(seconds=31))

        assert (await processor.process(step("e2"))).outcome.code == CODES.Ok
        assert await history_of(store) == ["left", "e2"]
    assert "a defect" in caplog.text


async def test_event_whose_sender_gave_up_is_processed_soon(store: DatabaseStore) -> None:
    clock = FakeClock()
    silent = AnswersNothing(store)
    ends = (asyncio.CancelledError(), StoreTimeoutError("slow"), GenericStoreError("gone"))
    async with EventProcessor(silent, clock=clock) as processor:
        for end in ends:
            silent.end = end
            with pytest.raises(type(end)):
                await processor.submit(step(type(end).__name__))
        silent.end = None
        assert await history_of(store) == []

        await clock.skip(timedelta(seconds=1))  # far less than a sweep
        last = await processor.process(step("last", machine="2"))

        assert last.outcome.code == CODES.Ok
    assert await history_of(store) == [type(end).__name__ for end in ends]


async def test_retry_of_an_earlier_run_does_not_disturb_the_next_one(store: DatabaseStore) -> None:
    clock = FakeClock()
    gate = FailsOnce(store)
    processor = EventProcessor(gate, clock=clock)
    async with processor:
        await processor.submit(step("e1"))
        await gate.failed.wait()
        await processor.aclose(timeout=timedelta())

    async with processor:
        gate.close()
        await gate.reached.wait()
        await clock.skip(timedelta(seconds=1))

        assert gate.count == 1  # and nobody else works on the machine
        gate.open()
    assert await history_of(store) == ["e1"]


class FailsOnce(Gate):
    """A store whose first call fails."""

    def __init__(self, store: DatabaseStore) -> None:
        super().__init__(store)
        self.failed = asyncio.Event()

    async def process_events(self, events: Sequence[AcceptedEvent]) -> Sequence[EventOutcome]:
        if not self.failed.is_set():
            self.failed.set()
            raise GenericStoreError("down")
        return await super().process_events(events)


class AnswersNothing(DatabaseStore):
    """A store that accepts events, but whoever sends one learns something else."""

    def __init__(self, store: DatabaseStore) -> None:
        self.__dict__.update(store.__dict__)
        self.end: BaseException | None = None

    async def accept_event(self, request: EventRequest) -> Acceptance:
        acceptance = await super().accept_event(request)
        if self.end is not None:
            raise self.end
        return acceptance
