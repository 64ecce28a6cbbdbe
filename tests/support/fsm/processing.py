"""What is processed in tests: counters, and stores of them that hold up, fail, or take their time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from hsm.fsm import Acceptance, AcceptedEvent, DatabaseStore, InvalidDataError, new_state_machine
from persistence.proto.statemachine_pb2 import EventOutcome, EventRequest
from tests.support.fsm.asking import request
from tests.support.fsm.configurations import counter, orders
from tests.support.fsm.world import DatabaseWorld

__all__ = ["Failing", "Gate", "SlowToAccept", "history_of", "prepared", "step"]


async def prepared(world: DatabaseWorld) -> DatabaseStore:
    store = await world.open(notify=True)
    for configuration in (orders(), counter()):
        await store.put_config(configuration)
        for number in range(1, 4):
            await store.put_state_machine(str(number), new_state_machine(configuration))
    return store


def step(event_id: str, machine: str = "1", name: str = "next") -> EventRequest:
    return request(name, event_id, machine, "counters")


async def history_of(store: DatabaseStore, machine: str = "1") -> list[str]:
    return [event.event_id for event in (await store.get_state_machine(machine, "counters")).history]


class Gate(DatabaseStore):
    """A store that holds up the processing of events while it is closed."""

    def __init__(self, store: DatabaseStore, only: str = "") -> None:
        self.__dict__.update(store.__dict__)
        self._only = only
        self._open = asyncio.Event()
        self._open.set()
        self.count = 0
        self.reached = asyncio.Event()
        self._more = asyncio.Condition()

    def close(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    async def all_reached(self, count: int) -> None:
        async with self._more:
            await self._more.wait_for(lambda: self.count >= count)

    async def process_events(self, events: Sequence[AcceptedEvent]) -> Sequence[EventOutcome]:
        if not self._open.is_set() and self._only in {"", events[0].request.id}:
            async with self._more:
                self.count += 1
                self._more.notify_all()
            self.reached.set()
            await self._open.wait()
        return await super().process_events(events)


class Failing(DatabaseStore):
    """A store that fails as often as it is told, and for ever with one event."""

    def __init__(self, store: DatabaseStore, errors: list[Exception], poison: str = "") -> None:
        self.__dict__.update(store.__dict__)
        self.errors = errors
        self._poison = poison
        self.sweeps: list[Exception] = []

    async def pending_machines(self) -> AsyncIterator[tuple[str, str]]:
        if self.sweeps:
            raise self.sweeps.pop()
        async for each in super().pending_machines():
            yield each

    async def process_events(self, events: Sequence[AcceptedEvent]) -> Sequence[EventOutcome]:
        if self.errors:
            raise self.errors.pop()
        if any(event.request.event.event_id == self._poison for event in events):
            raise InvalidDataError("poison")
        return await super().process_events(events)


class SlowToAccept(DatabaseStore):
    """A store that accepts no event before it is told to go on."""

    def __init__(self, store: DatabaseStore) -> None:
        self.__dict__.update(store.__dict__)
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()

    async def accept_event(self, request: EventRequest) -> Acceptance:
        self.reached.set()
        await self.go_on.wait()
        return await super().accept_event(request)
