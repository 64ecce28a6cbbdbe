"""What every store of configurations, machines and events does: mix the classes into test classes.

A module that has a fixture `world` (see `tests.support.fsm.world`) runs them by subclassing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest

from hsm.fsm import (
    AcceptedEvent,
    AlreadyExistsError,
    ConfigStore,
    ConfigurationNotFoundError,
    EventStore,
    FSMStore,
    InvalidDataError,
    MalformedConfigurationError,
    MissingConfigurationNameError,
    MissingDestinationError,
    MissingEventNameError,
    NotFoundError,
    OutcomePendingError,
    RevisionMismatchError,
    StoreManager,
    new_event,
    new_state_machine,
    source_of,
)
from persistence.proto.statemachine_pb2 import (
    Configuration,
    Event,
    EventOutcome,
    EventRequest,
    FiniteStateMachine,
    Transition,
)
from tests.support.fsm.configurations import configuration, counter, orders
from tests.support.fsm.world import World

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


def event(name: str, event_id: str, *, originator: str = "", details: str = "") -> Event:
    made = Event(event_id=event_id, transition=Transition(event=name), originator=originator, details=details)
    made.timestamp.FromDatetime(NOON)
    return made


def request(name: str, event_id: str, machine: str = "1", config: str = "orders") -> EventRequest:
    return EventRequest(event=event(name, event_id), config=config, id=machine)


async def with_order(world: World, machine: str = "1") -> StoreManager:
    """A store with the configuration of orders and one order."""
    store = await world.open()
    await store.put_config(orders())
    await store.put_state_machine(machine, new_state_machine(orders()))
    return store


async def states_of(store: StoreManager, machine: str, config: Configuration) -> list[str]:
    """The states that the index has a machine in."""
    return [state for state in config.states if machine in await store.get_all_in_state(config.name, state)]


async def pending_of(store: StoreManager) -> dict[tuple[str, str], list[str]]:
    """Ids of all pending events, in order, by machine."""
    return {
        (name, id_): [each.request.event.event_id for each in await store.pending_events(id_, name)]
        async for name, id_ in store.pending_machines()
    }


async def gone(world: World, read: Callable[[], Awaitable[object]]) -> None:
    """Return when what is read has expired: the databases count time in their own ways."""
    while True:
        try:
            await read()
        except NotFoundError:
            return
        await world.wait(0.3)


class ManagerSuite:
    """The store as a whole."""

    async def test_store_is_all_it_should_be(self, world: World) -> None:
        store = await world.open()

        assert isinstance(store, ConfigStore)
        assert isinstance(store, FSMStore)
        assert isinstance(store, EventStore)
        assert isinstance(store, StoreManager)

    async def test_open_store_is_healthy(self, world: World) -> None:
        await (await world.open()).health()

    async def test_timeout_is_what_was_set(self, world: World) -> None:
        store = await world.open()

        store.set_timeout(timedelta(seconds=7))

        assert store.get_timeout() == timedelta(seconds=7)
        with pytest.raises(InvalidDataError, match="negative"):
            store.set_timeout(timedelta(seconds=-1))

    async def test_log_level_is_set(self, world: World) -> None:
        (await world.open()).set_log_level(logging.WARNING)

    async def test_closing_twice_does_nothing(self, world: World) -> None:
        store = await world.open()

        await store.aclose()
        await store.aclose()


class ConfigurationsSuite:
    """Configurations: immutable, listed by name and version."""

    async def test_configuration_is_read_as_it_was_put(self, world: World) -> None:
        store = await world.open()

        await store.put_config(orders())

        assert await store.get_config("orders:v1") == orders()
        assert await (await world.open()).get_config("orders:v1") == orders()

    @pytest.mark.parametrize("config_id", ["orders:v1", "orders", "", ":", "orders:", "with blanks:v1"])
    async def test_unknown_configuration_is_not_found(self, world: World, config_id: str) -> None:
        with pytest.raises(ConfigurationNotFoundError) as caught:
            await (await world.open()).get_config(config_id)
        assert caught.value.key == config_id

    async def test_configuration_is_never_replaced(self, world: World) -> None:
        store = await world.open()
        await store.put_config(orders())
        other = configuration([("a", "b", "go")], name="orders")

        for again in (other, orders()):
            with pytest.raises(AlreadyExistsError, match="orders:v1 already exists"):
                await store.put_config(again)

        assert await (await world.open()).get_config("orders:v1") == orders()

    async def test_one_of_many_writers_succeeds(self, world: World) -> None:
        stores = [await world.open() for _ in range(3)]
        variants = [configuration([("a", f"b{number}", "go")], name="race") for number in range(9)]

        answers = await asyncio.gather(
            *(stores[number % 3].put_config(variant) for number, variant in enumerate(variants)),
            return_exceptions=True,
        )

        (winner,) = [variants[number] for number, answer in enumerate(answers) if answer is None]
        assert all(isinstance(answer, AlreadyExistsError) for answer in answers if answer is not None)
        assert await stores[0].get_config("race:v1") == winner

    @pytest.mark.parametrize(
        "malformed",
        [
            Configuration(),
            orders(name=""),
            orders(version=""),
            orders(name="a:b"),
            orders(name="orders#v3"),
            orders(version="v:3"),
        ],
    )
    async def test_configuration_needs_an_identity(self, world: World, malformed: Configuration) -> None:
        store = await world.open()

        with pytest.raises(MalformedConfigurationError):
            await store.put_config(malformed)

        assert await store.get_all_configs() == []

    async def test_names_and_versions_are_listed_in_order(self, world: World) -> None:
        store = await world.open()
        for each in (orders("v2"), orders("v10"), orders("v1"), orders(name="test.orders"), counter("a")):
            await store.put_config(each)

        assert await store.get_all_configs() == ["a", "orders", "test.orders"]
        assert await store.get_all_versions("orders") == ["orders:v1", "orders:v10", "orders:v2"]
        assert await store.get_all_versions("unknown") == []

    async def test_every_listed_version_can_be_read(self, world: World) -> None:
        store, reader = await world.open(), await world.open()

        async def write() -> None:
            for number in range(20):
                await store.put_config(orders(f"v{number}"))

        writing = asyncio.create_task(write())
        while not writing.done():
            for config_id in await reader.get_all_versions("orders"):
                assert (await reader.get_config(config_id)).name == "orders"
            await asyncio.sleep(0)
        await writing

    async def test_what_is_read_can_be_changed_without_harm(self, world: World) -> None:
        store = await world.open()
        await store.put_config(orders())

        (await store.get_config("orders:v1")).states.append("mine")

        assert await store.get_config("orders:v1") == orders()


class MachinesSuite:
    """Machines: put, found by id and by state, never in two states."""

    async def test_machine_is_read_as_it_was_put(self, world: World) -> None:
        store = await world.open()
        history = [event("accept", "e1", details="yes"), event("ship", "e2")]
        machine = FiniteStateMachine(config_id="orders:v1", state="shipped", history=history)

        assert await store.put_state_machine("1", machine) == 1

        machine.revision = 1
        assert await store.get_state_machine("1", "orders") == machine
        assert await (await world.open()).get_state_machine("1", "orders") == machine

    @pytest.mark.parametrize("id_", ["unknown", "with blanks", "x:state#start"])
    async def test_unknown_machine_is_not_found(self, world: World, id_: str) -> None:
        with pytest.raises(NotFoundError):
            await (await world.open()).get_state_machine(id_, "orders")

    async def test_putting_again_replaces_state_history_and_index(self, world: World) -> None:
        store = await with_order(world)
        await store.tx_process_event("1", "orders", event("accept", "e1"))
        other = FiniteStateMachine(config_id="orders:v2", state="shipped", history=[event("ship", "e9")])

        assert await store.put_state_machine("1", other) == 3

        other.revision = 3
        assert await store.get_state_machine("1", "orders") == other
        assert await states_of(store, "1", orders()) == ["shipped"]

    @pytest.mark.parametrize(
        ("id_", "machine"),
        [
            ("1", FiniteStateMachine()),
            ("1", FiniteStateMachine(config_id="orders:v1")),
            ("1", FiniteStateMachine(state="start")),
            ("1", FiniteStateMachine(config_id="orders", state="start")),
            ("1", FiniteStateMachine(config_id=":v1", state="start")),
            ("", new_state_machine(orders())),
            ("a\nb", new_state_machine(orders())),
        ],
    )
    async def test_machine_that_says_too_little_is_refused(
        self, world: World, id_: str, machine: FiniteStateMachine
    ) -> None:
        store = await world.open()

        with pytest.raises(InvalidDataError):
            await store.put_state_machine(id_, machine)

        assert await store.get_all_machines("orders") == []

    async def test_machine_is_put_at_its_expected_revision_only(self, world: World) -> None:
        store, other = await world.open(), await world.open()
        start = new_state_machine(orders())

        assert await store.put_state_machine("1", start, expected_revision=0) == 1
        with pytest.raises(RevisionMismatchError) as caught:
            await other.put_state_machine("1", start, expected_revision=0)
        assert (caught.value.expected, caught.value.actual) == (0, 1)
        assert await other.put_state_machine("1", start, expected_revision=1) == 2
        with pytest.raises(RevisionMismatchError):
            await store.put_state_machine("1", start, expected_revision=1)

    async def test_one_of_many_creators_succeeds(self, world: World) -> None:
        stores = [await world.open() for _ in range(3)]
        start = new_state_machine(orders())

        answers = await asyncio.gather(
            *(stores[n % 3].put_state_machine("1", start, expected_revision=0) for n in range(9)),
            return_exceptions=True,
        )

        assert answers.count(1) == 1
        assert sum(isinstance(answer, RevisionMismatchError) for answer in answers) == 8

    async def test_ids_may_hold_what_separates_in_keys(self, world: World) -> None:
        store = await world.open()
        await store.put_config(orders())
        ids = ["a/b", "a%2Fb", "a:b#c", "x:state#start", "Zürich", "in transit"]
        for id_ in ids:
            await store.put_state_machine(id_, new_state_machine(orders()))
            outcome = await store.tx_process_event(id_, "orders", event("accept", f"event of {id_}"))
            assert outcome.code == EventOutcome.Ok

        assert await store.get_all_machines("orders") == sorted(ids)
        assert await store.get_all_in_state("orders", "accepted") == sorted(ids)
        assert len((await store.get_state_machine("a/b", "orders")).history) == 1

    async def test_machines_are_found_by_state(self, world: World) -> None:
        store = await world.open()
        for number in range(9):
            state = "start" if number < 4 else "shipped"
            machine = FiniteStateMachine(config_id="orders:v1", state=state)
            await store.put_state_machine(str(number), machine)

        assert await store.get_all_in_state("orders", "start") == ["0", "1", "2", "3"]
        assert await store.get_all_in_state("orders", "shipped") == ["4", "5", "6", "7", "8"]
        assert await store.get_all_in_state("orders", "returned") == []
        assert await store.get_all_in_state("unknown", "start") == []

    async def test_machines_are_listed_by_pages(self, world: World) -> None:
        store = await world.open()
        ids = sorted(f"m{number}" for number in range(12))
        for id_ in ids:
            await store.put_state_machine(id_, new_state_machine(orders()))

        found: list[str] = []
        while page := await store.get_all_in_state(
            "orders", "start", after=found[-1] if found else "", limit=5
        ):
            assert len(page) <= 5
            found += page
        assert found == ids
        assert await store.get_all_machines("orders", after="m11", limit=2) == ["m2", "m3"]
        assert await store.get_all_machines("orders", limit=0) == []
        assert await store.get_all_machines("orders", after="m1z") == ids[4:]

    async def test_update_of_states_has_nothing_left_to_do(self, world: World) -> None:
        store = await world.open()
        for number in range(9):
            await store.put_state_machine(str(number), new_state_machine(orders()))
        for number in range(3):
            moved = FiniteStateMachine(config_id="orders:v1", state="accepted")
            await store.put_state_machine(str(number), moved)
            await store.update_state("orders", str(number), "start", "accepted")
            await store.update_state("orders", str(number), "start", "")
            await store.update_state("orders", str(number), "", "accepted")

        assert await store.get_all_in_state("orders", "accepted") == ["0", "1", "2"]
        assert await store.get_all_in_state("orders", "start") == ["3", "4", "5", "6", "7", "8"]

    @pytest.mark.parametrize(("old", "new"), [("start", "accepted"), ("start", ""), ("", "accepted")])
    async def test_index_cannot_be_made_to_lie(self, world: World, old: str, new: str) -> None:
        store = await with_order(world)

        with pytest.raises(InvalidDataError, match="is in 'start'"):
            await store.update_state("orders", "1", old, new)

        assert await states_of(store, "1", orders()) == ["start"]

    async def test_nobody_is_put_into_a_set_who_does_not_exist(self, world: World) -> None:
        store = await world.open()

        with pytest.raises(NotFoundError):
            await store.update_state("orders", "nobody", "", "start")
        await store.update_state("orders", "nobody", "start", "")

        assert await store.get_all_in_state("orders", "start") == []

    async def test_reset_goes_back_to_the_start_and_forgets(self, world: World) -> None:
        store = await with_order(world)
        await store.tx_process_event("1", "orders", event("accept", "e1"))

        machine = await store.reset_state_machine("1", "orders")

        assert machine == FiniteStateMachine(config_id="orders:v1", state="start", revision=3)
        assert await store.get_state_machine("1", "orders") == machine
        assert await states_of(store, "1", orders()) == ["start"]
        await store.tx_process_event("1", "orders", event("accept", "e2"))
        assert [each.event_id for each in (await store.get_state_machine("1", "orders")).history] == ["e2"]

    async def test_reset_needs_a_machine_its_configuration_and_its_revision(self, world: World) -> None:
        store = await with_order(world)
        await store.put_state_machine("2", FiniteStateMachine(config_id="orders:v9", state="start"))

        with pytest.raises(NotFoundError):
            await store.reset_state_machine("nobody", "orders")
        with pytest.raises(ConfigurationNotFoundError):
            await store.reset_state_machine("2", "orders")
        with pytest.raises(RevisionMismatchError):
            await store.reset_state_machine("1", "orders", expected_revision=7)

    async def test_deleted_machine_leaves_index_and_history(self, world: World) -> None:
        store = await with_order(world)
        await store.tx_process_event("1", "orders", event("accept", "e1"))

        with pytest.raises(RevisionMismatchError):
            await store.delete_state_machine("1", "orders", expected_revision=1)
        await store.delete_state_machine("1", "orders", expected_revision=2)

        with pytest.raises(NotFoundError):
            await store.get_state_machine("1", "orders")
        with pytest.raises(NotFoundError):
            await store.delete_state_machine("1", "orders")
        assert await states_of(store, "1", orders()) == []
        assert await store.get_all_machines("orders") == []
        assert await store.put_state_machine("1", new_state_machine(orders())) == 1
        assert (await store.get_state_machine("1", "orders")).history == []

    async def test_history_may_be_capped(self, world: World) -> None:
        store = await world.open(history_cap=3)
        await store.put_config(counter())
        await store.put_state_machine("1", new_state_machine(counter()))
        for number in range(8):
            await store.tx_process_event("1", "counters", event("next", f"e{number}"))

        machine = await store.get_state_machine("1", "counters")

        assert [each.event_id for each in machine.history] == ["e5", "e6", "e7"]
        assert machine.history_dropped == 5
        assert machine.revision == 9

    async def test_namespaces_do_not_see_each_other(self, world: World) -> None:
        ours, theirs = await world.open(namespace="ours"), await world.open(namespace="ours/theirs")
        await ours.put_config(orders())
        await ours.put_state_machine("1", new_state_machine(orders()))
        await ours.tx_process_event("1", "orders", event("accept", "e1"))

        assert await theirs.get_all_configs() == []
        assert await theirs.get_all_machines("orders") == []
        with pytest.raises(NotFoundError):
            await theirs.get_event("e1", "orders")


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

    async def test_time_to_live_is_at_least_a_moment(self, world: World) -> None:
        store = await world.open()

        with pytest.raises(InvalidDataError):
            await store.put_event(new_event("accept"), "orders", timedelta(seconds=-1))


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
