"""Events, requests and what is asked of stores of machines, for tests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from hsm.fsm import (
    NotFoundError,
    StoreManager,
    new_state_machine,
)
from persistence.proto.statemachine_pb2 import (
    Configuration,
    Event,
    EventRequest,
    Transition,
)
from tests.support.fsm.configurations import orders
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
