"""Events to configured machines on SQLite, against the sequence of single commands that does the same without a transaction.

The sequence is: store the event; read the machine; read its configuration; take the machine out of the set of its
state, put it into the other; write the machine; store the outcome. It goes through the client of the database as it
is, and through our own store of the storage contract, whose group commit single writes share, too.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final, Protocol, TypeAlias

import persistence
from hsm.fsm import ConfiguredStateMachine, DatabaseStore, new_state_machine
from hsm.fsm.keys import (
    new_key_for_config,
    new_key_for_event,
    new_key_for_machine,
    new_key_for_machines_by_state,
    new_key_for_outcome,
)
from persistence.proto.statemachine_pb2 import (
    Configuration,
    Event,
    EventOutcome,
    FiniteStateMachine,
    Transition,
)
from persistence.store import DeleteRequest, EngineStore, GetRequest, SetRequest
from tests.benchmarks.harness import (
    Line,
    Measure,
    Size,
    Table,
    alternate,
    at_least,
    isolated_at,
    median_ratio,
)
from tests.benchmarks.peers import naive_sqlite
from tests.support.fsm.configurations import counter

__all__ = ["measure"]

# Rounds, and seconds of one measurement.
_EFFORT: Final = {Size.FULL: (5, 2.0), Size.QUICK: (1, 0.7), Size.TINY: (1, 0.05)}
_CONCURRENCIES: Final = {Size.FULL: (1, 10, 100), Size.QUICK: (100,), Size.TINY: (5,)}
_MACHINES_A_CLIENT: Final = 4
_NAME: Final = "counters"

Contestant: TypeAlias = tuple[Callable[[str], Awaitable[None]], Callable[[str, Event], Awaitable[None]]]
"""How a machine is made, and how an event is sent to it: both return when everything is stored."""
Opening: TypeAlias = AbstractAsyncContextManager[Contestant]


class Commands(Protocol):
    """A client that carries out one command at a time."""

    async def get(self, key: str) -> bytes: ...
    async def set(self, key: str, value: bytes) -> None: ...
    async def add(self, key: str, member: str) -> None: ...
    async def remove(self, key: str, member: str) -> None: ...


def measure(size: Size) -> Iterator[Table]:
    """One table."""
    directory = Path(tempfile.mkdtemp(prefix="machines-benchmark-"))
    numbers = itertools.count()
    try:
        yield _compare(
            "SQLite",
            size,
            lambda: f"sqlite:///{directory / f'{next(numbers)}.db'}",
            {"commands through sqlite3": through_sqlite3, "commands through the store": through_store},
        )
    finally:
        shutil.rmtree(directory)


class _EventsASecond(Protocol):
    def __call__(self, url: str, concurrency: int, seconds: float) -> float: ...


def _compare(where: str, size: Size, place: Callable[[], str], peers: dict[str, _EventsASecond]) -> Table:
    rounds, seconds = _EFFORT[size]
    lines: list[Line] = []
    for concurrency in _CONCURRENCIES[size]:
        contestants: dict[str, _EventsASecond] = {"hsm": in_one_transaction, **peers}
        cases: dict[str, Measure] = {
            name: isolated_at(place, partial(run, concurrency=concurrency, seconds=seconds))
            for name, run in contestants.items()
        }
        figures = alternate(cases, rounds)
        own = figures["hsm"]
        lines.append(Line(f"hsm, {concurrency} at once", f"{median(own):,.0f}/s"))
        for number, name in enumerate(peers):
            target = at_least(5) if where == "SQLite" and number == 0 and concurrency == 100 else None
            theirs = figures[name]
            lines.append(
                Line(
                    f"{name}, {concurrency} at once",
                    f"{median(theirs):,.0f}/s",
                    median_ratio(own, theirs),
                    target,
                )
            )
    return Table(f"Events to configured machines on {where}", "hsm is faster by", lines)


def in_one_transaction(url: str, concurrency: int, seconds: float) -> float:
    """Events a second of our own store."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Contestant]:
        async with DatabaseStore(url) as store:
            await store.put_config(counter())

            async def create(machine: str) -> None:
                await store.put_state_machine(machine, new_state_machine(counter()))

            async def send(machine: str, event: Event) -> None:
                outcome = await store.tx_process_event(machine, _NAME, event)
                assert outcome.code == EventOutcome.Ok

            yield create, send

    return asyncio.run(_events_a_second(opened(), concurrency, seconds))


def through_store(url: str, concurrency: int, seconds: float) -> float:
    """Events a second of the sequence of commands through our store of the storage contract."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Contestant]:
        async with (
            persistence.connect(url) as store,
            commands_of(_StoreCommands(persistence.require(store, EngineStore))) as contestant,
        ):
            yield contestant

    return asyncio.run(_events_a_second(opened(), concurrency, seconds))


def through_sqlite3(url: str, concurrency: int, seconds: float) -> float:
    """Events a second of the sequence of commands through the module `sqlite3`, a transaction each."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Contestant]:
        async with (
            naive_sqlite.commands(url.removeprefix("sqlite:///")) as commands,
            commands_of(commands) as contestant,
        ):
            yield contestant

    return asyncio.run(_events_a_second(opened(), concurrency, seconds))


@asynccontextmanager
async def commands_of(
    commands: Commands,
) -> AsyncIterator[Contestant]:
    """The sequence of commands, through any client."""
    await commands.set(new_key_for_config("counters:v1"), counter().SerializeToString())

    async def create(machine: str) -> None:
        state = new_state_machine(counter())
        await commands.set(new_key_for_machine(machine, _NAME), state.SerializeToString())
        await commands.add(new_key_for_machines_by_state(_NAME, state.state), machine)

    async def send(machine: str, event: Event) -> None:
        await commands.set(new_key_for_event(event.event_id, _NAME), event.SerializeToString())
        key = new_key_for_machine(machine, _NAME)
        state = FiniteStateMachine.FromString(await commands.get(key))
        configuration = Configuration.FromString(await commands.get(new_key_for_config(state.config_id)))
        before = state.state
        ConfiguredStateMachine(configuration, state).send_event(event)
        await commands.remove(new_key_for_machines_by_state(_NAME, before), machine)
        await commands.add(new_key_for_machines_by_state(_NAME, state.state), machine)
        await commands.set(key, state.SerializeToString())
        outcome = EventOutcome(id=machine, config=_NAME)
        await commands.set(new_key_for_outcome(event.event_id, _NAME), outcome.SerializeToString())

    yield create, send


class _StoreCommands:
    def __init__(self, store: EngineStore) -> None:
        self._store = store

    async def get(self, key: str) -> bytes:
        data = (await self._store.get(GetRequest(partition=_NAME, key=key))).data
        assert data is not None
        return data

    async def set(self, key: str, value: bytes) -> None:
        await self._store.set(SetRequest(partition=_NAME, key=key, value=value))

    async def add(self, key: str, member: str) -> None:
        await self._store.set(SetRequest(partition=_NAME, key=f"{key}/{member}", value=b""))

    async def remove(self, key: str, member: str) -> None:
        await self._store.delete(DeleteRequest(partition=_NAME, key=f"{key}/{member}"))


async def _events_a_second(opening: Opening, concurrency: int, seconds: float) -> float:
    """As many clients as are at once, each with machines of its own."""
    async with opening as (create, send):
        machines = [f"machine-{number}" for number in range(concurrency * _MACHINES_A_CLIENT)]
        await asyncio.gather(*map(create, machines))
        numbers = itertools.count()
        done = 0

        async def client(own: list[str], end: float) -> None:
            nonlocal done
            for machine in itertools.cycle(own):
                event = Event(event_id=f"event-{next(numbers)}", transition=Transition(event="next"))
                event.timestamp.GetCurrentTime()
                await send(machine, event)
                done += 1
                if time.perf_counter() >= end:
                    return

        start = time.perf_counter()
        await asyncio.gather(
            *(client(machines[number::concurrency], start + seconds) for number in range(concurrency))
        )
        return done / (time.perf_counter() - start)
