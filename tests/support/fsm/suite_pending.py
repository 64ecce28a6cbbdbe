"""What every store of machines does with events that it has accepted."""

from __future__ import annotations

import asyncio

import pytest

from hsm.fsm import (
    ConfigurationNotFoundError,
    EventProcessor,
    NotFoundError,
    OutcomePendingError,
    new_state_machine,
)
from persistence.proto.statemachine_pb2 import (
    EventOutcome,
)
from tests.support.fsm.asking import event, pending_of, request, with_order
from tests.support.fsm.configurations import counter
from tests.support.fsm.world import World


class PendingSuite:
    """Accepted events: pending until they have their outcome, in order, whoever accepted them."""

    async def test_accepted_event_is_pending(self, world: World) -> None:
        store = await with_order(world)

        acceptance = await store.accept_event(request("accept", "e1"))

        assert acceptance.outcome is None
        assert acceptance.pending is not None
        assert acceptance.pending.request == request("accept", "e1")
        reader = await world.open()
        assert await reader.pending_events("1", "orders") == [acceptance.pending]
        assert await pending_of(reader) == {("orders", "1"): ["e1"]}
        assert await reader.get_event("e1", "orders") == event("accept", "e1")
        with pytest.raises(OutcomePendingError):
            await reader.get_outcome_for_event("e1", "orders")
        assert (await reader.get_state_machine("1", "orders")).state == "start"

    async def test_event_is_pending_no_more_when_it_has_its_outcome(self, world: World) -> None:
        store = await with_order(world)
        for number, name in enumerate(["accept", "explode", "ship"]):
            await store.accept_event(request(name, f"e{number}"))
        await store.accept_event(request("accept", "f", machine="nobody"))

        for machine in ("1", "nobody"):
            await store.process_events(await store.pending_events(machine, "orders"))

        assert await pending_of(store) == {}
        codes = [(await store.get_outcome_for_event(id_, "orders")).code for id_ in ("e0", "e1", "e2", "f")]
        assert codes == [0, EventOutcome.EventNotAllowed, 0, EventOutcome.FsmNotFound]

    async def test_pending_events_are_in_order_of_acceptance(self, world: World) -> None:
        stores = [await with_order(world), await world.open()]
        await stores[0].put_config(counter())
        ids = [f"{number * 7 % 10}" for number in range(10)]
        for number, id_ in enumerate(ids):
            await stores[number % 2].accept_event(request("accept", id_))
        await stores[0].accept_event(request("next", "other", machine="%", config="counters"))

        assert await pending_of(stores[1]) == {
            ("orders", "1"): ids,
            ("counters", "%"): ["other"],
        }
        first = await stores[1].pending_events("1", "orders", limit=3)
        assert [each.request.event.event_id for each in first] == ids[:3]

    async def test_every_machine_with_pending_events_is_found(self, world: World) -> None:
        store = await with_order(world)
        ids = ["a/b", "a%2Fb", "a", "a/", "1"]
        for id_ in ids:
            for number in range(2):
                await store.accept_event(request("accept", f"{id_} {number}", machine=id_))

        found = await pending_of(store)

        assert found == {("orders", id_): [f"{id_} 0", f"{id_} 1"] for id_ in ids}

    async def test_event_accepted_again_stays_where_it_stands(self, world: World) -> None:
        store, other = await with_order(world), await world.open()
        first = await store.accept_event(request("accept", "e1"))
        await store.accept_event(request("ship", "e2"))

        assert await other.accept_event(request("accept", "e1")) == first
        assert await other.accept_event(request("deliver", "e1", machine="2")) == first

        assert await pending_of(store) == {("orders", "1"): ["e1", "e2"]}

    async def test_event_with_an_outcome_is_not_accepted_again(self, world: World) -> None:
        store, other = await with_order(world), await world.open()
        outcome = await store.tx_process_event("1", "orders", event("accept", "e1"))

        acceptance = await other.accept_event(request("accept", "e1"))

        assert acceptance.pending is None
        assert acceptance.outcome == outcome
        assert await pending_of(store) == {}

    async def test_put_event_can_be_accepted(self, world: World) -> None:
        store = await with_order(world)
        await store.put_event(event("accept", "e1"), "orders")

        await store.accept_event(request("accept", "e1"))

        assert await pending_of(store) == {("orders", "1"): ["e1"]}

    async def test_event_to_an_unknown_configuration_is_not_accepted(self, world: World) -> None:
        store = await world.open()

        with pytest.raises(ConfigurationNotFoundError):
            await store.accept_event(request("accept", "e1"))

        with pytest.raises(NotFoundError):
            await store.get_event("e1", "orders")

    async def test_of_two_processes_with_one_event_one_processes_it(self, world: World) -> None:
        stores = [await world.open() for _ in range(3)]
        await stores[0].put_config(counter())
        await stores[0].put_state_machine("1", new_state_machine(counter()))
        for number in range(12):
            await stores[0].accept_event(request("next", f"e{number:02}", config="counters"))
        pending = [await store.pending_events("1", "counters") for store in stores]

        outcomes = await asyncio.gather(
            *(store.process_events(events) for store, events in zip(stores, pending, strict=True))
        )

        assert all(list(each) == list(outcomes[0]) for each in outcomes)
        machine = await stores[0].get_state_machine("1", "counters")
        assert [each.event_id for each in machine.history] == [f"e{number:02}" for number in range(12)]
        assert await pending_of(stores[1]) == {}

    async def test_event_that_cannot_be_processed_is_settled(self, world: World) -> None:
        store = await with_order(world)
        acceptance = await store.accept_event(request("accept", "e1"))
        assert acceptance.pending is not None
        outcome = EventOutcome(code=EventOutcome.InternalError, details="broken", id="1", config="orders")

        assert await store.settle_event(acceptance.pending, outcome) == outcome
        assert await store.settle_event(acceptance.pending, EventOutcome()) == outcome

        assert await pending_of(store) == {}
        assert await store.get_outcome_for_event("e1", "orders") == outcome
        assert await store.process_events([acceptance.pending]) == [outcome]
        assert (await store.get_state_machine("1", "orders")).state == "start"

    @pytest.mark.parametrize("stored", [b"\xff", b"", request("ship", "e1", machine="2").SerializeToString()])
    async def test_damaged_event_is_put_aside_and_holds_up_nothing(self, world: World, stored: bytes) -> None:
        await with_order(world)
        store = await world.open(notify=True)
        for number, name in enumerate(["accept", "deliver", "ship"]):
            await store.accept_event(request(name, f"e{number}"))
        await world.damage("orders", "1", "e1", stored)

        waiting = await store.pending_events("1", "orders")
        assert [each.damage for each in waiting] == [None, stored, None]
        async with EventProcessor(store):
            pass

        outcomes = [await store.get_outcome_for_event(f"e{number}", "orders") for number in range(3)]
        assert [each.code for each in outcomes] == [0, EventOutcome.GenericError, 0]
        assert outcomes[1].details == "the stored event cannot be read"
        assert await pending_of(store) == {}
        assert await store.get_event("e1", "orders") == event("deliver", "e1")
        assert [each.response.outcome async for each in store.notifications()] == [outcomes[1]]
        assert await world.set_apart("orders", "1", "e1") == stored

    async def test_damaged_event_that_comes_again_is_answered(self, world: World) -> None:
        store = await with_order(world)
        await store.accept_event(request("accept", "e1"))
        await world.damage("orders", "1", "e1", b"\xff")

        async with EventProcessor(store) as processor:
            response = await processor.process(request("accept", "e1"))

        assert response.outcome.code == EventOutcome.GenericError

    async def test_refusals_of_accepted_events_are_kept_until_somebody_was_told(self, world: World) -> None:
        await with_order(world)
        store = await world.open(notify=True)
        for number, name in enumerate(["ship", "accept", "explode"]):
            await store.accept_event(request(name, f"e{number}"))
        await store.process_events(await store.pending_events("1", "orders"))

        kept = [each async for each in (await world.open()).notifications()]

        assert [each.response.event_id for each in kept] == ["e0", "e2"]
        assert [each.response.outcome.code for each in kept] == [
            EventOutcome.TransitionNotAllowed,
            EventOutcome.EventNotAllowed,
        ]
        assert {each.config for each in kept} == {"orders"}
        await store.remove_notification(kept[0])
        await store.remove_notification(kept[0])
        assert [each.response.event_id async for each in store.notifications()] == ["e2"]

    async def test_nothing_is_kept_unless_it_was_asked_for(self, world: World) -> None:
        store = await with_order(world)
        await store.accept_event(request("ship", "e1"))
        await store.process_events(await store.pending_events("1", "orders"))

        assert [each async for each in store.notifications()] == []
