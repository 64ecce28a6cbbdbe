"""Rows of machines that hold what they should not: named, and in nobody's way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest

from hsm.fsm import (
    DatabaseOptions,
    DatabaseStore,
    EventProcessor,
    InvalidDataError,
    new_state_machine,
)
from hsm.fsm._rows import machine_partition
from persistence.proto.statemachine_pb2 import EventOutcome, EventResponse
from persistence.store import DeleteRequest, Operation, SetRequest
from persistence.stores.memory import MemoryStore
from tests.support.fsm.asking import event, pending_of, request as asking
from tests.support.fsm.configurations import orders

PARTITION = machine_partition("default", "orders")


@pytest.fixture
async def memory() -> AsyncIterator[MemoryStore]:
    async with MemoryStore() as memory:
        yield memory


@pytest.fixture
async def store(memory: MemoryStore) -> AsyncIterator[DatabaseStore]:
    async with DatabaseStore(memory, options=DatabaseOptions(notify=True)) as store:
        await store.put_config(orders())
        await store.put_state_machine("1", new_state_machine(orders()))
        yield store


async def damage(memory: MemoryStore, key: str) -> None:
    await memory.set(SetRequest(partition=PARTITION, key=key, value=b"\xff"))


async def keys_of(memory: MemoryStore, kind: str) -> list[str]:
    return [item.key async for item in memory.scan(PARTITION, f"{kind}/", f"{kind}0")]


@pytest.mark.parametrize(
    ("key", "read"),
    [
        ("m/1", lambda store: store.get_state_machine("1", "orders")),
        ("e/e1", lambda store: store.get_event("e1", "orders")),
        ("o/e1", lambda store: store.get_outcome_for_event("e1", "orders")),
    ],
)
async def test_damaged_row_is_named(
    store: DatabaseStore, memory: MemoryStore, key: str, read: Callable[[DatabaseStore], Awaitable[object]]
) -> None:
    await store.tx_process_event("1", "orders", event("accept", "e1"))
    await memory.set(SetRequest(partition=PARTITION, key=key, value=b"\xff"))

    with pytest.raises(InvalidDataError, match="cannot be decoded"):
        await read(store)


async def test_lost_event_of_a_history_is_noticed(store: DatabaseStore, memory: MemoryStore) -> None:
    await store.tx_process_event("1", "orders", event("accept", "e1"))
    (row,) = [item async for item in memory.scan(PARTITION, "h/", "h0")]
    await memory.multi([*deletes([row.key])])

    with pytest.raises(InvalidDataError, match="lacks events"):
        await store.get_state_machine("1", "orders")


def deletes(keys: Sequence[str]) -> list[Operation]:
    return [DeleteRequest(partition=PARTITION, key=key) for key in keys]


async def test_machine_with_a_damaged_row_gives_its_events_an_outcome(
    store: DatabaseStore, memory: MemoryStore
) -> None:
    await memory.set(SetRequest(partition=PARTITION, key="m/1", value=b"\xff"))
    async with EventProcessor(DatabaseStore(memory)) as processor:
        response = await processor.process(asking("accept", "e1"))

    assert response.outcome.code == EventOutcome.GenericError
    assert await pending_of(store) == {}


async def test_event_with_a_damaged_outcome_holds_up_no_other(
    store: DatabaseStore, memory: MemoryStore
) -> None:
    for number, name in enumerate(["accept", "ship"]):
        await store.accept_event(asking(name, f"e{number}"))
    await damage(memory, "o/e0")

    async with EventProcessor(store) as processor:
        response = await processor.process(asking("accept", "e2"))

    assert response.outcome.code == EventOutcome.Ok
    assert await pending_of(store) == {}
    with pytest.raises(InvalidDataError):
        await store.get_outcome_for_event("e0", "orders")


async def test_damaged_notification_is_made_again_from_its_outcome(
    store: DatabaseStore, memory: MemoryStore
) -> None:
    for number in range(3):
        await store.accept_event(asking("explode", f"e{number}"))
    await store.process_events(await store.pending_events("1", "orders"))
    told = [each async for each in store.notifications()]
    await damage(memory, f"x/{told[1].position}")

    assert [each async for each in store.notifications()] == told


async def test_notification_that_is_lost_holds_up_no_other(store: DatabaseStore, memory: MemoryStore) -> None:
    """Not even where a whole page of them is lost."""
    for number in range(250):
        await store.accept_event(asking("explode", f"e{number:03}"))
    await store.process_events(await store.pending_events("1", "orders"))
    for key in (await keys_of(memory, "x"))[:240]:
        await damage(memory, key)
        await damage(memory, f"o/{key.rpartition('/')[2]}")
    told: list[EventResponse] = []

    async def publish(response: EventResponse) -> None:
        told.append(response)

    async with EventProcessor(store, publish=publish):
        pass

    assert [each.event_id for each in told] == [f"e{number}" for number in range(240, 250)]
    assert len(await keys_of(memory, "x")) == 240
