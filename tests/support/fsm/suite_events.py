"""What every store of machines does with events and outcomes."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from functools import partial

import pytest

from hsm.fsm import (
    AcceptedEvent,
    AlreadyExistsError,
    InvalidDataError,
    MissingConfigurationNameError,
    MissingDestinationError,
    MissingEventNameError,
    NotFoundError,
    OutcomePendingError,
    new_event,
    new_state_machine,
    source_of,
)
from persistence.proto.statemachine_pb2 import (
    Event,
    EventOutcome,
    EventRequest,
    FiniteStateMachine,
    Transition,
)
from tests.support.fsm.asking import event, gone, request, states_of, with_order
from tests.support.fsm.configurations import configuration, counter, orders
from tests.support.fsm.world import World


class EventsSuite:
    """Events: one outcome each, with everything that belongs to it."""

    async def test_event_moves_machine_index_history_event_and_outcome(self, world: World) -> None:
        store = await with_order(world)
        sent = event("accept", "e1", originator="test", details="now")

        outcome = await store.tx_process_event("1", "orders", sent)

        assert outcome == EventOutcome(id="1", config="orders", revision=2)
        reader = await world.open()
        machine = await reader.get_state_machine("1", "orders")
        assert (machine.state, machine.revision) == ("accepted", 2)
        (made,) = machine.history
        assert (source_of(made.transition), made.transition.to) == ("start", "accepted")
        made.transition.CopyFrom(sent.transition)
        assert made == sent
        assert await states_of(reader, "1", orders()) == ["accepted"]
        assert await reader.get_event("e1", "orders") == sent
        assert await reader.get_outcome_for_event("e1", "orders") == outcome

    @pytest.mark.parametrize(
        ("name", "code", "details"),
        [
            ("explode", EventOutcome.EventNotAllowed, "explode"),
            ("ship", EventOutcome.TransitionNotAllowed, "start"),
        ],
    )
    async def test_refused_event_has_an_outcome_and_changes_nothing(
        self, world: World, name: str, code: EventOutcome.StatusCode.ValueType, details: str
    ) -> None:
        store = await with_order(world)
        before = await store.get_state_machine("1", "orders")

        outcome = await store.tx_process_event("1", "orders", event(name, "e1"))

        assert outcome.code == code
        assert details in outcome.details
        assert await store.get_state_machine("1", "orders") == before
        assert await states_of(store, "1", orders()) == ["start"]
        assert await store.get_outcome_for_event("e1", "orders") == outcome
        assert await store.get_event("e1", "orders") == event(name, "e1")

    async def test_event_in_a_final_state_is_refused(self, world: World) -> None:
        store = await world.open()
        await store.put_config(orders())
        done = FiniteStateMachine(config_id="orders:v1", state="delivered")
        await store.put_state_machine("1", done)

        outcome = await store.tx_process_event("1", "orders", event("ship", "e1"))

        assert outcome.code == EventOutcome.TransitionNotAllowed
        assert "final state 'delivered'" in outcome.details

    async def test_event_to_nobody_has_an_outcome(self, world: World) -> None:
        store = await with_order(world)

        outcome = await store.tx_process_event("with blanks", "orders", event("accept", "e1"))

        assert outcome.code == EventOutcome.FsmNotFound
        assert "fsm:" not in outcome.details
        assert await store.get_outcome_for_event("e1", "orders") == outcome

    async def test_event_to_an_unknown_configuration_has_an_outcome(self, world: World) -> None:
        store = await world.open()
        await store.put_state_machine("1", FiniteStateMachine(config_id="orders:v9", state="start"))

        of_version = await store.tx_process_event("1", "orders", event("accept", "e1"))
        of_name = await store.tx_process_event("1", "nothing", event("accept", "e1"))

        assert of_version.code == EventOutcome.ConfigurationNotFound
        assert of_name.code == EventOutcome.ConfigurationNotFound
        assert await store.get_outcome_for_event("e1", "orders") == of_version

    @pytest.mark.parametrize(
        ("id_", "config", "sent", "error"),
        [
            ("", "orders", event("accept", "e1"), MissingDestinationError),
            ("1", "", event("accept", "e1"), MissingConfigurationNameError),
            ("1", "orders", event("", "e1"), MissingEventNameError),
            ("1", "orders", Event(event_id="e1"), MissingEventNameError),
            ("1", "orders", event("accept", ""), InvalidDataError),
        ],
    )
    async def test_request_that_says_too_little_is_refused(
        self, world: World, id_: str, config: str, sent: Event, error: type[Exception]
    ) -> None:
        store = await with_order(world)

        with pytest.raises(error):
            await store.tx_process_event(id_, config, sent)
        with pytest.raises(error):
            await store.accept_event(EventRequest(event=sent, config=config, id=id_))
        with pytest.raises(error):
            await store.process_events([AcceptedEvent(EventRequest(event=sent, config=config, id=id_))])

        assert (await store.get_state_machine("1", "orders")).revision == 1

    async def test_event_that_comes_again_is_answered_with_its_first_outcome(self, world: World) -> None:
        stores = [await with_order(world), await world.open()]
        first = await stores[0].tx_process_event("1", "orders", event("accept", "e1"))

        for store in stores:
            assert await store.tx_process_event("1", "orders", event("accept", "e1")) == first
            assert await store.tx_process_event("1", "orders", event("ship", "e1")) == first
            assert await store.tx_process_event("2", "orders", event("accept", "e1")) == first

        assert (await stores[0].get_state_machine("1", "orders")).revision == 2
        assert await stores[0].get_event("e1", "orders") == event("accept", "e1")

    async def test_refusal_stays_when_the_event_comes_again(self, world: World) -> None:
        store = await with_order(world)
        refused = await store.tx_process_event("1", "orders", event("ship", "e1"))
        await store.tx_process_event("1", "orders", event("accept", "e2"))

        assert await store.tx_process_event("1", "orders", event("ship", "e1")) == refused
        assert (await store.get_state_machine("1", "orders")).state == "accepted"

    async def test_loop_counts_once_however_often_its_event_comes(self, world: World) -> None:
        stores = [await world.open() for _ in range(3)]
        await stores[0].put_config(counter())
        await stores[0].put_state_machine("1", new_state_machine(counter()))

        outcomes = await asyncio.gather(
            *(store.tx_process_event("1", "counters", event("stay", "e1")) for store in stores * 4)
        )

        assert all(outcome == outcomes[0] for outcome in outcomes)
        assert len((await stores[0].get_state_machine("1", "counters")).history) == 1

    async def test_event_expects_a_revision(self, world: World) -> None:
        store = await with_order(world)

        refused = await store.tx_process_event("1", "orders", event("accept", "e1"), expected_revision=2)
        taken = await store.tx_process_event("1", "orders", event("accept", "e2"), expected_revision=1)

        assert refused.code == EventOutcome.RevisionMismatch
        assert taken.code == EventOutcome.Ok

    async def test_machine_keeps_to_its_version(self, world: World) -> None:
        store = await with_order(world)
        await store.put_config(configuration([("start", "gone", "accept")], name="orders", version="v2"))
        await store.put_state_machine("2", FiniteStateMachine(config_id="orders:v2", state="start"))

        await store.tx_process_event("1", "orders", event("accept", "e1"))
        await store.tx_process_event("2", "orders", event("accept", "e2"))

        assert (await store.get_state_machine("1", "orders")).state == "accepted"
        assert (await store.get_state_machine("2", "orders")).state == "gone"

    async def test_several_events_in_one_go_are_taken_in_order(self, world: World) -> None:
        store = await with_order(world)
        names = ["accept", "ship", "ship", "deliver", "return"]
        events = [AcceptedEvent(request(name, f"e{number}")) for number, name in enumerate(names)]

        outcomes = await store.process_events(events)

        refused = EventOutcome.TransitionNotAllowed
        assert [outcome.code for outcome in outcomes] == [0, 0, refused, 0, refused]
        machine = await store.get_state_machine("1", "orders")
        assert [each.event_id for each in machine.history] == ["e0", "e1", "e3"]
        assert await store.process_events(events) == outcomes
        assert await states_of(store, "1", orders()) == ["delivered"]

    async def test_events_in_one_go_are_for_one_machine(self, world: World) -> None:
        store = await with_order(world)

        assert list(await store.process_events([])) == []
        with pytest.raises(InvalidDataError, match="one machine"):
            await store.process_events(
                [AcceptedEvent(request("accept", "e1")), AcceptedEvent(request("accept", "e2", "2"))]
            )

    async def test_events_to_one_machine_at_once_are_taken_in_order_of_their_calls(
        self, world: World
    ) -> None:
        store = await world.open()
        await store.put_config(counter())
        await store.put_state_machine("1", new_state_machine(counter()))
        ids = [f"e{number:03}" for number in range(100)]

        async with asyncio.TaskGroup() as group:
            for id_ in ids:
                group.create_task(store.tx_process_event("1", "counters", event("next", id_)))

        machine = await store.get_state_machine("1", "counters")
        assert sorted(each.event_id for each in machine.history) == ids
        assert machine.revision == 101
        assert machine.state == "s1"

    async def test_machines_of_several_processes_stay_whole(self, world: World) -> None:
        stores = [await world.open() for _ in range(3)]
        await stores[0].put_config(counter())
        machines = [str(number) for number in range(4)]
        for machine in machines:
            await stores[0].put_state_machine(machine, new_state_machine(counter()))

        async def send(number: int) -> None:
            name = "stay" if number % 3 == 0 else "next"
            sent = event(name, f"e{number}")
            outcome = await stores[number % 3].tx_process_event(machines[number % 4], "counters", sent)
            assert outcome.code == EventOutcome.Ok

        async with asyncio.TaskGroup() as group:
            for number in range(96):
                group.create_task(send(number))

        for machine in machines:
            read = await stores[0].get_state_machine(machine, "counters")
            assert len(read.history) == 24
            assert read.revision == 25
            state = "s0"
            for made in read.history:
                assert source_of(made.transition) == state
                state = made.transition.to
            assert state == read.state
            assert await states_of(stores[1], machine, counter()) == [state]

    async def test_event_without_a_time_is_given_one(self, world: World) -> None:
        store = await with_order(world)

        sent = Event(event_id="e1", transition=Transition(event="accept"))
        await store.tx_process_event("1", "orders", sent)

        assert not sent.HasField("timestamp")
        assert (await store.get_event("e1", "orders")).HasField("timestamp")

    async def test_event_is_put_once(self, world: World) -> None:
        store = await world.open()
        await store.put_event(event("accept", "e1"), "orders")
        await store.put_event(event("accept", "e1"), "orders")

        with pytest.raises(AlreadyExistsError):
            await store.put_event(event("ship", "e1"), "orders")

        assert await store.get_event("e1", "orders") == event("accept", "e1")
        with pytest.raises(InvalidDataError):
            await store.put_event(event("accept", ""), "orders")

    async def test_event_that_was_processed_is_known(self, world: World) -> None:
        store = await with_order(world)
        await store.tx_process_event("1", "orders", event("accept", "e1"))

        await store.put_event(event("accept", "e1"), "orders")
        with pytest.raises(AlreadyExistsError):
            await store.put_event(event("ship", "e1"), "orders")

        assert await store.get_event("e1", "orders") == event("accept", "e1")
        acceptance = await store.accept_event(request("ship", "e1"))
        assert (acceptance.pending, acceptance.outcome is not None) == (None, True)

    async def test_event_may_come_after_its_outcome(self, world: World) -> None:
        store = await with_order(world)
        outcome = EventOutcome(code=EventOutcome.GenericError, id="1", config="orders")
        for id_ in ("e1", "e2"):
            await store.add_event_outcome(id_, "orders", outcome)

        await store.put_event(event("accept", "e1"), "orders")

        assert await store.get_event("e1", "orders") == event("accept", "e1")
        assert await store.get_outcome_for_event("e1", "orders") == outcome
        assert await store.tx_process_event("1", "orders", event("accept", "e1")) == outcome
        assert (await store.accept_event(request("accept", "e2"))).outcome == outcome
        assert (await store.get_state_machine("1", "orders")).state == "start"

    async def test_outcome_is_added_once(self, world: World) -> None:
        store = await world.open()
        ok, failed = EventOutcome(id="1"), EventOutcome(code=EventOutcome.InternalError, id="1")
        await store.add_event_outcome("e1", "orders", ok)
        await store.add_event_outcome("e1", "orders", ok)

        with pytest.raises(AlreadyExistsError):
            await store.add_event_outcome("e1", "orders", failed)

        assert await store.get_outcome_for_event("e1", "orders") == ok

    async def test_pending_is_told_from_unknown(self, world: World) -> None:
        store = await world.open()
        await store.put_event(event("accept", "e1"), "orders")

        with pytest.raises(OutcomePendingError, match="pending"):
            await store.get_outcome_for_event("e1", "orders")
        with pytest.raises(NotFoundError) as caught:
            await store.get_outcome_for_event("e2", "orders")
        assert not isinstance(caught.value, OutcomePendingError)
        with pytest.raises(NotFoundError):
            await store.get_event("e2", "orders")

    async def test_put_event_can_be_processed(self, world: World) -> None:
        store = await with_order(world)
        await store.put_event(event("accept", "e1"), "orders")

        outcome = await store.tx_process_event("1", "orders", event("accept", "e1"))

        assert outcome.code == EventOutcome.Ok
        assert await store.get_outcome_for_event("e1", "orders") == outcome

    async def test_events_and_outcomes_expire_when_they_were_given_a_time(self, world: World) -> None:
        store = await world.open()
        await store.put_event(event("accept", "short"), "orders", timedelta(seconds=1))
        await store.put_event(event("accept", "long"), "orders")
        await store.add_event_outcome("short", "orders", EventOutcome(), timedelta(seconds=1))
        await store.add_event_outcome("long", "orders", EventOutcome())

        await gone(world, lambda: store.get_event("short", "orders"))
        await gone(world, lambda: store.get_outcome_for_event("short", "orders"))
        await store.get_event("long", "orders")
        await store.get_outcome_for_event("long", "orders")

    async def test_processed_events_expire_as_the_store_was_told(self, world: World) -> None:
        second = timedelta(seconds=1)
        keeper = await with_order(world)
        store = await world.open(event_ttl=second, outcome_ttl=second)
        await store.tx_process_event("1", "orders", event("accept", "e1"))
        await store.accept_event(request("ship", "e2"))
        (accepted,) = await store.pending_events("1", "orders")

        await gone(world, lambda: store.get_outcome_for_event("e1", "orders"))
        with pytest.raises(OutcomePendingError):
            await store.get_outcome_for_event("e2", "orders")
        await store.process_events([accepted])
        await store.get_outcome_for_event("e2", "orders")
        await gone(world, lambda: keeper.get_event("e1", "orders"))
        await gone(world, lambda: keeper.get_event("e2", "orders"))
        assert len((await keeper.get_state_machine("1", "orders")).history) == 2

    async def test_outcome_outlives_its_event(self, world: World) -> None:
        await with_order(world)
        store = await world.open(event_ttl=timedelta(seconds=1))
        await store.tx_process_event("1", "orders", event("accept", "e1"))
        await store.accept_event(request("ship", "e2"))
        await store.process_events(await store.pending_events("1", "orders"))

        for id_ in ("e1", "e2"):
            await gone(world, partial(store.get_event, id_, "orders"))
            assert (await store.get_outcome_for_event(id_, "orders")).code == EventOutcome.Ok

    async def test_event_is_forgotten_with_its_outcome(self, world: World) -> None:
        await with_order(world)
        store = await world.open(outcome_ttl=timedelta(seconds=1))
        await store.tx_process_event("1", "orders", event("accept", "e1"))
        await store.accept_event(request("ship", "e2"))
        await store.process_events(await store.pending_events("1", "orders"))

        for id_ in ("e1", "e2"):
            await gone(world, partial(store.get_outcome_for_event, id_, "orders"))
            # It would be taken for pending otherwise.
            with pytest.raises(NotFoundError) as caught:
                await store.get_outcome_for_event(id_, "orders")
            assert not isinstance(caught.value, OutcomePendingError)

    async def test_time_to_live_is_at_least_a_moment(self, world: World) -> None:
        store = await world.open()

        with pytest.raises(InvalidDataError):
            await store.put_event(new_event("accept"), "orders", timedelta(seconds=-1))
