"""Histories of machines in a database: no row of one is left for ever, whatever dies when."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from hsm.fsm import DatabaseOptions, DatabaseStore, EventProcessor, FSMStoreError, new_state_machine
from hsm.fsm._rows import machine_partition
from hsm.testing import FakeClock
from hsm.testing.faults import FaultyStore
from persistence.store import SetRequest
from persistence.stores.memory import MemoryStore
from tests.support.fsm.asking import event
from tests.support.fsm.configurations import counter
from tests.support.fsm.small import small

PARTITION = machine_partition("default", "counters")
LENGTH = 100


@pytest.fixture
async def memory() -> AsyncIterator[MemoryStore]:
    async with MemoryStore() as memory:
        yield memory


async def keys_of(memory: MemoryStore, kind: str) -> list[str]:
    return [item.key async for item in memory.scan(PARTITION, f"{kind}/", f"{kind}0")]


async def fill(memory: MemoryStore) -> None:
    """A machine whose history is too long for the transaction that deletes it, on a small database."""
    async with DatabaseStore(memory) as store:
        await store.put_config(counter())
        await store.put_state_machine("a/1", new_state_machine(counter()))
        for number in range(LENGTH):
            await store.tx_process_event("a/1", "counters", event("next", f"e{number}"))


async def test_forgotten_history_is_swept_little_by_little(memory: MemoryStore) -> None:
    async with DatabaseStore(memory) as store:
        await store.put_config(counter())
        history = [event("next", str(number)) for number in range(LENGTH)]
        start = new_state_machine(counter())
        start.history.extend(history)
        await store.put_state_machine("1", start)

        await store.reset_state_machine("1", "counters")
        assert len(await keys_of(memory, "h")) == 84
        for number in range(6):
            await store.tx_process_event("1", "counters", event("next", f"e{number}"))
            await store.reset_state_machine("1", "counters")

        assert len(await keys_of(memory, "h")) <= 1
        assert (await store.get_state_machine("1", "counters")).history == []


async def test_deleted_machine_leaves_no_row_but_its_events(memory: MemoryStore) -> None:
    await fill(memory)

    await DatabaseStore(small(memory, operations=30)).delete_state_machine("a/1", "counters")

    assert {item.key[:2] async for item in memory.scan(PARTITION, "", "")} == {"o/"}


async def test_short_history_is_deleted_with_its_machine(memory: MemoryStore) -> None:
    await fill(memory)
    faulty = FaultyStore(memory)

    await DatabaseStore(faulty).delete_state_machine("a/1", "counters")

    assert faulty.writes == 1
    assert await keys_of(memory, "h") == []


@pytest.mark.parametrize("carried_out", [False, True])
async def test_deletion_that_broke_off_is_finished_by_the_next_sweep(carried_out: bool) -> None:
    left: set[int] = set()
    for write in range(1, 8):
        async with MemoryStore() as memory:
            await fill(memory)
            faulty = FaultyStore(small(memory, operations=30))
            faulty.cut_off_at(write, carried_out=carried_out)
            try:
                await DatabaseStore(faulty).delete_state_machine("a/1", "counters")
            except FSMStoreError:
                left.add(len(await keys_of(memory, "h")))

            store = DatabaseStore(small(memory, operations=30))
            deleted = not await store.get_all_machines("counters")
            assert deleted == (write > 1 or carried_out)
            # The id may be taken again before anybody sweeps.
            await store.put_state_machine("a/1", new_state_machine(counter()))
            await store.tx_process_event("a/1", "counters", event("next", "new"))
            await store.sweep()

            assert await keys_of(memory, "g") == []
            if deleted:
                machine = await store.get_state_machine("a/1", "counters")
                assert [each.event_id for each in machine.history] == ["new"]
                assert len(await keys_of(memory, "h")) == 1
    assert len(left) > 3  # it broke off at different places


async def test_processor_sweeps(memory: MemoryStore) -> None:
    await fill(memory)
    faulty = FaultyStore(small(memory, operations=30))
    faulty.cut_off_at(3, carried_out=False)
    with pytest.raises(FSMStoreError):
        await DatabaseStore(faulty).delete_state_machine("a/1", "counters")
    assert await keys_of(memory, "h")
    clock = FakeClock()

    async with EventProcessor(DatabaseStore(memory), clock=clock):
        await clock.skip(timedelta(seconds=31))

    assert await keys_of(memory, "h") == []


async def test_damaged_rest_of_a_deletion_holds_up_no_other(memory: MemoryStore) -> None:
    await fill(memory)
    await memory.set(SetRequest(partition=PARTITION, key="g/0/1", value=b"\xff"))
    faulty = FaultyStore(small(memory, operations=30))
    faulty.cut_off_at(3, carried_out=False)
    with pytest.raises(FSMStoreError):
        await DatabaseStore(faulty).delete_state_machine("a/1", "counters")

    await DatabaseStore(memory).sweep()

    assert await keys_of(memory, "h") == []
    assert await keys_of(memory, "g") == ["g/0/1"]


async def test_long_deletion_makes_progress_though_each_sweep_is_cut_short(memory: MemoryStore) -> None:
    await fill(memory)
    faulty = FaultyStore(small(memory, operations=30))
    faulty.cut_off_at(2, carried_out=False)
    with pytest.raises(FSMStoreError):
        await DatabaseStore(faulty).delete_state_machine("a/1", "counters")

    sweeps = 0
    while await keys_of(memory, "g"):
        sweeps += 1
        again = FaultyStore(small(memory, operations=30))
        again.cut_off_at(2, carried_out=False)
        try:
            await DatabaseStore(again, options=DatabaseOptions()).sweep()
        except FSMStoreError:
            continue

    assert 1 < sweeps < 10
    assert await keys_of(memory, "h") == []
