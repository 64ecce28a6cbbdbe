"""Events to configured machines on Valkey: the store, against the commands of the layout one after the other.

The store changes machine, state sets, event and outcome in one transaction, and looks first whether the event
came before. The peer does neither: see `peers.valkey_sequence`. Both talk to the server through redis-py.
Nothing is on disk: it is the work that is compared.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from functools import partial
from statistics import median
from typing import Final, Protocol, TypeAlias

from hsm.fsm import new_event, new_state_machine
from hsm.fsm.redis import RedisStore
from persistence.proto.statemachine_pb2 import Event, EventOutcome
from tests.benchmarks.harness import (
    Line,
    Size,
    Table,
    alternate,
    at_least,
    isolated_at,
    load_peer,
    median_ratio,
)
from tests.support.fsm.configurations import counter
from tests.support.raw_redis import RawRedis
from tests.support.servers import MissingServerError, Server, running

__all__ = ["compare", "measure"]

# Rounds, and seconds of one measurement.
_EFFORT: Final = {Size.FULL: (5, 1.5), Size.QUICK: (3, 0.6), Size.TINY: (1, 0.05)}
_CONCURRENCIES: Final = {Size.FULL: (1, 10, 100), Size.QUICK: (1, 10, 100), Size.TINY: (5,)}
_MACHINES: Final = 200
_NAME: Final = "counters"
_TIMEOUT: Final = timedelta(seconds=10)
_TITLE: Final = (
    "Events a second to configured machines on Valkey; peer: the commands of the layout in sequence"
)


PeerEvents: TypeAlias = Callable[
    [int, int], AbstractAsyncContextManager[Callable[[str, str, Event], Awaitable[EventOutcome]]]
]


class _Events(Protocol):
    """Events a second at an address."""

    def __call__(self, port: str, concurrency: int, seconds: float) -> float: ...


def measure(size: Size) -> Iterator[Table]:
    """One table."""
    try:
        with running("valkey") as server:
            yield compare(server, size)
    except MissingServerError as error:
        yield Table(_TITLE, "", (), (f"Left out: {error}.",))


def compare(server: Server, size: Size) -> Table:
    """Measure on a running server, each time with new machines; it must have nothing else in it."""
    peer = load_peer("valkey_sequence", "redis", [])
    assert peer is not None
    rounds, seconds = _EFFORT[size]
    concurrencies = _CONCURRENCIES[size]
    contestants: dict[str, _Events] = {
        "the store": _store_events,
        "the peer": partial(_peer_events, peer.sequence),
    }

    def place() -> str:
        raw = RawRedis(server)
        raw.clear()
        asyncio.run(_fill(raw.address))
        return str(server.port)

    cases = {
        f"{name}, {concurrency}": isolated_at(
            place, partial(events, concurrency=concurrency, seconds=seconds)
        )
        for concurrency in concurrencies
        for name, events in contestants.items()
    }
    figures = alternate(cases, rounds)
    lines: list[Line] = []
    for concurrency in concurrencies:
        own, others = (figures[f"{name}, {concurrency}"] for name in contestants)
        figure = f"{_rate(own)}, peer {_rate(others)}"
        lines.append(Line(f"{concurrency} at once", figure, median_ratio(own, others), at_least(1)))
    return Table(_TITLE, "the store is faster by", lines)


async def _fill(address: str) -> None:
    async with RedisStore(address, timeout=_TIMEOUT) as store:
        configuration = counter(_NAME)
        await store.put_config(configuration)
        machine = new_state_machine(configuration)
        await asyncio.gather(*(store.put_state_machine(f"{number}", machine) for number in range(_MACHINES)))


def _store_events(port: str, concurrency: int, seconds: float) -> float:
    async def run() -> float:
        async with RedisStore(f"127.0.0.1:{port}", timeout=_TIMEOUT) as store:
            await store.health()

            async def send(id_: str) -> None:
                await store.tx_process_event(id_, _NAME, new_event("next"))

            return await _rate_of(send, concurrency, seconds)

    return asyncio.run(run())


def _peer_events(peer: PeerEvents, port: str, concurrency: int, seconds: float) -> float:
    async def run() -> float:
        async with peer(int(port), concurrency) as process:

            async def send(id_: str) -> None:
                await process(id_, _NAME, new_event("next"))

            return await _rate_of(send, concurrency, seconds)

    return asyncio.run(run())


async def _rate_of(send: Callable[[str], Awaitable[None]], concurrency: int, seconds: float) -> float:
    """Events a second of so many callers, each with machines of its own."""
    begin = time.perf_counter()
    done = 0

    async def caller(number: int) -> None:
        nonlocal done
        machine = number
        while time.perf_counter() < begin + seconds:
            await send(f"{machine}")
            machine = (machine + concurrency) % _MACHINES
            done += 1

    await asyncio.gather(*(caller(number) for number in range(concurrency)))
    return done / (time.perf_counter() - begin)


def _rate(rates: Sequence[float]) -> str:
    return f"{median(rates):,.0f}/s"
