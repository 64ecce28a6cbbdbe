"""A million scheduled entities: the deadline queue beside what one would use instead, and the engine above it.

Each case has a process of its own. The ids exist before the measurement begins, deadlines are spread by chance
over some hours, and re-enqueueing gives each item another one. Memory is what the process grows by.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Final, Protocol

import attrs

from hsm.engine import DeadlineQueue
from hsm.engine.clock import from_nanos
from hsm.goalstate import Action, ActionList, Engine, Options, Run, Standing
from tests.benchmarks.harness import Line, Size, Table, _settle, at_most, load_peer, render

__all__ = ["measure"]

_ENTITIES: Final = {Size.FULL: 1_000_000, Size.QUICK: 100_000, Size.TINY: 2000}
_GROWTH: Final = {
    Size.FULL: (10_000, 100_000, 1_000_000),
    Size.QUICK: (10_000, 100_000),
    Size.TINY: (100, 1000),
}
_JOBS: Final = {Size.FULL: 10_000, Size.QUICK: 2000, Size.TINY: 50}
_ROUNDS: Final = {Size.FULL: 3, Size.QUICK: 1, Size.TINY: 1}
_SPREAD: Final = 10**13
_WORKERS: Final = 100
_SORTED: Final = "sortedcontainers"
_LOOP: Final = "asyncio call_at"


class Queue(Protocol):
    def put(self, item: str, deadline: int, /) -> None: ...

    def pop_due(self, now: int, /) -> str | None: ...


@attrs.frozen
class Figures:
    """Operations a second, and bytes an entity: after enqueueing, and after enqueueing everything once more."""

    enqueue: float
    reenqueue: float
    pop: float
    bytes: float
    bytes_after: float


def measure(size: Size) -> Iterator[Table]:
    yield _queues(size)
    yield _jobs(size)
    yield _engines(size)


# The queue


def _queues(size: Size) -> Table:
    count, notes = _ENTITIES[size], list[str]()
    cases: dict[str, Callable[[], Figures]] = {
        "DeadlineQueue": partial(_own_queue, count),
        _LOOP: partial(_loop_queue, count),
    }
    if load_peer("sorted_queue", "sortedcontainers", notes) is not None:
        cases[_SORTED] = partial(_sorted_queue, count)
    found: dict[str, list[Figures]] = {name: [] for name in cases}
    for _ in range(_ROUNDS[size]):
        for name, case in cases.items():
            found[name].append(_alone(case))
    figures = {name: _median(rounds) for name, rounds in found.items()}
    peer = figures.get(_SORTED, figures[_LOOP])
    lines: list[Line] = []
    for name, own in figures.items():
        lines += [
            Line(f"{name}: enqueue", f"{own.enqueue:,.0f} /s", own.enqueue / peer.enqueue),
            Line(f"{name}: re-enqueue", f"{own.reenqueue:,.0f} /s", own.reenqueue / peer.reenqueue),
            Line(f"{name}: pop", f"{own.pop:,.0f} /s", own.pop / peer.pop),
            Line(f"{name}: all three", f"{_all_three(own):,.0f} /s", _all_three(own) / _all_three(peer)),
            Line(f"{name}: memory", f"{own.bytes:.0f} bytes each", _ratio(own.bytes, peer.bytes)),
            Line(
                f"{name}: memory after re-enqueueing all",
                f"{own.bytes_after:.0f} bytes each",
                _ratio(own.bytes_after, peer.bytes_after),
            ),
        ]
    return Table(
        f"A queue of {count:,} deadlines", f"of {_SORTED if _SORTED in figures else _LOOP}", lines, notes
    )


def _all_three(figures: Figures) -> float:
    """Entities a second that are enqueued, moved and popped."""
    return 1 / (1 / figures.enqueue + 1 / figures.reenqueue + 1 / figures.pop)


def _median(rounds: list[Figures]) -> Figures:
    return Figures(*(statistics.median(values) for values in zip(*map(attrs.astuple, rounds), strict=True)))


def _own_queue(count: int) -> Figures:
    queue: DeadlineQueue[str] = DeadlineQueue()
    return _drive(queue, count)


def _sorted_queue(count: int) -> Figures:
    from tests.benchmarks.peers.sorted_queue import SortedQueue

    return _drive(SortedQueue(), count)


def _drive(queue: Queue, count: int) -> Figures:
    items, first, second = _inputs(count)
    before, began = _memory(), time.perf_counter()
    for item, deadline in zip(items, first, strict=True):
        queue.put(item, deadline)
    enqueued, held = time.perf_counter(), _memory()
    for item, deadline in zip(items, second, strict=True):
        queue.put(item, deadline)
    moved, held_after = time.perf_counter(), _memory()
    popped = 0
    while queue.pop_due(2 * 10**18) is not None:
        popped += 1
    ended = time.perf_counter()
    assert popped == count
    return Figures(
        count / (enqueued - began),
        count / (moved - enqueued),
        count / (ended - moved),
        (held - before) / count,
        (held_after - before) / count,
    )


def _loop_queue(count: int) -> Figures:
    return asyncio.run(_drive_loop(count))


async def _drive_loop(count: int) -> Figures:
    """Timers of the event loop, which is what a pop is here: the call of one that is due."""
    items, first, second = _inputs(count)
    loop = asyncio.get_running_loop()
    handles: dict[str, asyncio.TimerHandle] = {}
    done = asyncio.Event()

    def fire(item: str) -> None:
        del handles[item]
        if not handles:
            done.set()

    later, before, began = loop.time() + 10**6, _memory(), time.perf_counter()
    for item, deadline in zip(items, first, strict=True):
        handles[item] = loop.call_at(later + (deadline % _SPREAD) / 1e9, fire, item)
    enqueued, held = time.perf_counter(), _memory()
    past = loop.time() - 10**6
    for item, deadline in zip(items, second, strict=True):
        handles[item].cancel()
        handles[item] = loop.call_at(past + (deadline % _SPREAD) / 1e9, fire, item)
    moved, held_after = time.perf_counter(), _memory()
    await done.wait()
    ended = time.perf_counter()
    return Figures(
        count / (enqueued - began),
        count / (moved - enqueued),
        count / (ended - moved),
        (held - before) / count,
        (held_after - before) / count,
    )


def _inputs(count: int) -> tuple[list[str], list[int], list[int]]:
    chance = random.Random(1)
    base = 1_900_000_000_000_000_000 // _SPREAD * _SPREAD
    items = [f"entity-{number}" for number in range(count)]
    return (
        items,
        [base + chance.randrange(_SPREAD) for _ in items],
        [base + chance.randrange(_SPREAD) for _ in items],
    )


def _memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def _ratio(own: float, peer: float) -> float | None:
    """None where there is too little to measure."""
    return own / peer if peer else None


def _alone(case: Callable[[], Figures]) -> Figures:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_settle) as pool:
        return pool.submit(case).result()


# APScheduler


def _jobs(size: Size) -> Table:
    count, notes = _JOBS[size], list[str]()
    title = f"{count:,} entities beside jobs of APScheduler"
    if load_peer("apscheduler_jobs", "apscheduler", notes) is None:
        return Table(title, "", (), notes)
    own, peer = _alone(partial(_run_engine, count)), _alone(partial(_run_jobs, count))
    return Table(
        title,
        "of APScheduler",
        [
            Line("enqueue", f"{own.enqueue:,.0f} /s", own.enqueue / peer.enqueue),
            Line("re-enqueue", f"{own.reenqueue:,.0f} /s", own.reenqueue / peer.reenqueue),
            Line("run", f"{own.pop:,.0f} /s", own.pop / peer.pop),
            Line("APScheduler: enqueue", f"{peer.enqueue:,.0f} /s"),
            Line("APScheduler: re-enqueue", f"{peer.reenqueue:,.0f} /s"),
            Line("APScheduler: run", f"{peer.pop:,.0f} /s"),
        ],
        notes,
    )


def _run_jobs(count: int) -> Figures:
    from tests.benchmarks.peers.apscheduler_jobs import run

    return Figures(*run(count), 0, 0)


# The engine


@attrs.define
class Lamp:
    id: str
    on: bool = False

    def read(self) -> Standing[bool, bool]:
        return Standing(self.on, True)

    def action_list(self, state: bool, goal: bool, /) -> ActionList[Lamp]:
        return _SWITCH if state != goal else _NOTHING


async def _switch(lamp: Lamp, run: Run) -> None:
    lamp.on = True


_NOTHING: Final[ActionList[Lamp]] = ActionList()
_SWITCH: Final[ActionList[Lamp]] = ActionList([Action("switch", _switch)])


def _engines(size: Size) -> Table:
    figures = {count: _alone(partial(_run_engine, count)) for count in _GROWTH[size]}
    smallest = min(figures)
    lines: list[Line] = []
    for count, own in figures.items():
        growth = figures[smallest].pop / own.pop * math.log(smallest) / math.log(count)
        lines += [
            Line(f"{count:,}: evaluations", f"{own.pop:,.0f} /s", growth, at_most(1)),
            Line(f"{count:,}: enqueue", f"{own.enqueue:,.0f} /s"),
            Line(f"{count:,}: re-enqueue", f"{own.reenqueue:,.0f} /s"),
            Line(f"{count:,}: memory", f"{own.bytes:.0f} bytes each"),
        ]
    return Table(
        f"Evaluations of entities with {_WORKERS} workers", f"time, of n log n from {smallest:,} on", lines
    )


def _run_engine(count: int) -> Figures:
    return asyncio.run(_drive_engine(count))


async def _drive_engine(count: int) -> Figures:
    """Entities that are all due, one after the other in the past; the growth of the time is that of n."""
    items, first, second = _inputs(count)
    lamps = [Lamp(item) for item in items]
    engine = Engine(Options(workers=_WORKERS))
    now = time.time_ns()
    early = [from_nanos(now - _SPREAD + deadline % _SPREAD) for deadline in first]
    earlier = [from_nanos(now - 3 * _SPREAD + deadline % _SPREAD) for deadline in second]
    before, began = _memory(), time.perf_counter()
    for lamp, deadline in zip(lamps, early, strict=True):
        engine.enqueue(lamp, deadline)
    enqueued, held = time.perf_counter(), _memory()
    for lamp, deadline in zip(lamps, earlier, strict=True):
        engine.enqueue(lamp, deadline)
    moved, held_after = time.perf_counter(), _memory()
    async with engine:
        await engine.drain()
        ended = time.perf_counter()
    assert all(lamp.on for lamp in lamps)
    return Figures(
        count / (enqueued - began),
        count / (moved - enqueued),
        count / (ended - moved),
        (held - before) / count,
        (held_after - before) / count,
    )


def main() -> None:
    """The queue and the engine at full size."""
    for table in measure(Size.FULL):
        print(render(table))


if __name__ == "__main__":
    main()
