"""Telling of outcomes: at least once each, in order per machine, and apart from the processing."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from datetime import timedelta

from hsm.fsm import DatabaseStore, EventProcessor, Notification
from hsm.testing import FakeClock
from persistence.proto.statemachine_pb2 import EventOutcome, EventResponse
from tests.support.fsm.processing import step

CODES = EventOutcome.StatusCode


async def test_refusals_are_told_and_successes_are_not(store: DatabaseStore) -> None:
    told: list[EventResponse] = []

    async def publish(response: EventResponse) -> None:
        told.append(response)

    async with EventProcessor(store, publish=publish) as processor:
        await processor.process(step("e1"))
        refused = await processor.process(step("e2", name="explode"))

    assert told == [refused]
    assert [each async for each in store.notifications()] == []


async def test_slow_publisher_holds_up_nothing(store: DatabaseStore) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def publish(response: EventResponse) -> None:
        begun.set()
        await go_on.wait()

    async with EventProcessor(store, publish=publish) as processor:
        await processor.process(step("e1", name="explode"))
        await begun.wait()

        assert (await processor.process(step("e2"))).outcome.code == CODES.Ok
        go_on.set()


async def test_failing_publisher_is_tried_again(store: DatabaseStore) -> None:
    clock = FakeClock()
    attempts: list[str] = []

    async def publish(response: EventResponse) -> None:
        attempts.append(response.event_id)
        if len(attempts) < 3:
            raise ConnectionError("queue is down")

    async with EventProcessor(store, publish=publish, clock=clock) as processor:
        await processor.process(step("e1", name="explode"))
        while [each async for each in store.notifications()]:
            await clock.skip(timedelta(seconds=1))

    assert attempts == ["e1", "e1", "e1"]


async def test_refusals_of_the_past_are_told_at_the_start(store: DatabaseStore) -> None:
    async with EventProcessor(store) as silent:
        await silent.process(step("e1", name="explode"))
    told = asyncio.Event()

    async def publish(response: EventResponse) -> None:
        told.set()

    async with EventProcessor(store, publish=publish):
        await told.wait()


async def refuse(store: DatabaseStore, machines: int, events: int) -> dict[str, list[str]]:
    """Events that are refused; the ids, by machine, in their order."""
    ids: defaultdict[str, list[str]] = defaultdict(list)
    async with EventProcessor(store) as silent:
        for number in range(machines * events):
            machine = f"m{number % machines:03}"
            ids[machine].append(f"e{number:04}")
            await silent.submit(step(f"e{number:04}", machine=machine))
    return dict(ids)


async def test_machines_are_told_of_at_the_same_time(store: DatabaseStore) -> None:
    await refuse(store, machines=10, events=1)
    everybody = asyncio.Barrier(10)

    async def publish(response: EventResponse) -> None:
        await everybody.wait()

    async with EventProcessor(store, publish=publish):
        pass

    assert [each async for each in store.notifications()] == []


async def test_outcomes_of_a_machine_are_told_in_their_order(store: DatabaseStore) -> None:
    sent = await refuse(store, machines=7, events=30)
    told: defaultdict[str, list[str]] = defaultdict(list)
    busy: set[str] = set()

    async def publish(response: EventResponse) -> None:
        machine = response.outcome.id
        assert machine not in busy
        busy.add(machine)
        for _ in range(len(told[machine]) % 3):
            await asyncio.sleep(0)
        told[machine].append(response.event_id)
        busy.discard(machine)

    async with EventProcessor(store, publish=publish):
        pass

    assert told == sent


async def test_outcome_that_cannot_be_told_holds_up_its_machine_alone(store: DatabaseStore) -> None:
    """However many wait behind it, and for however long it cannot."""
    sent = await refuse(store, machines=3, events=100)
    told: defaultdict[str, list[str]] = defaultdict(list)

    async def publish(response: EventResponse) -> None:
        if response.outcome.id == "m000" and response.event_id != "e0000":
            raise ValueError("too large for the queue")
        told[response.outcome.id].append(response.event_id)

    async with EventProcessor(store, publish=publish, clock=FakeClock()):
        pass

    assert told == sent | {"m000": ["e0000"]}
    left = [each.response.event_id async for each in store.notifications()]
    assert left == sent["m000"][1:]


async def test_publisher_that_is_away_is_not_asked_for_each_outcome(store: DatabaseStore) -> None:
    await refuse(store, machines=100, events=10)
    asked = 0

    async def publish(response: EventResponse) -> None:
        nonlocal asked
        asked += 1
        raise ConnectionError("queue is down")

    async with EventProcessor(store, publish=publish, clock=FakeClock()):
        pass

    assert 0 < asked < 200
    assert len([each async for each in store.notifications()]) == 1000


async def test_only_those_of_the_name_are_looked_for(store: DatabaseStore) -> None:
    """Where there are many configurations, to look for all of them after each event would take the time of them all."""
    looks: list[str | None] = []

    class Watched(DatabaseStore):
        def __init__(self) -> None:
            self.__dict__.update(store.__dict__)

        def notifications(self, name: str | None = None) -> AsyncIterator[Notification]:
            looks.append(name)
            return super().notifications(name)

    async def publish(response: EventResponse) -> None: ...

    async with EventProcessor(Watched(), publish=publish) as processor:
        for number in range(5):
            await processor.process(step(f"e{number}", name="explode"))

    assert looks[0] is None
    assert set(looks[1:]) == {"counters"}
