"""What every store of machines does with machines."""

from __future__ import annotations

import asyncio

import pytest

from hsm.fsm import (
    ConfigurationNotFoundError,
    InvalidDataError,
    NotFoundError,
    RevisionMismatchError,
    new_state_machine,
)
from persistence.proto.statemachine_pb2 import (
    EventOutcome,
    FiniteStateMachine,
)
from tests.support.fsm.asking import event, states_of, with_order
from tests.support.fsm.configurations import counter, orders
from tests.support.fsm.world import World


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
