"""A million pending timers: the memory of a process that opens them, and how soon the first one fires.

The database is filled by one process: executions with ten timers each, spread over the days to come. Another one
opens it, with one timer that is due, and is measured until that has fired, and then until some thousands
more have, which come due one after the other while it runs.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import ClassVar, Final

import attrs

from hsm import (
    Environment,
    ExecutionKey,
    MachineType,
    Node,
    Registry,
    TaskKind,
    TaskType,
    TimerKind,
    TransitionOutput,
    attrs_definition,
)
from hsm.engine import Engine, EngineOptions
from persistence import EngineStore, connect, require
from tests.benchmarks.harness import Line, Size, Table, at_most, render
from tests.support.servers import MissingServerError, running

__all__ = ["measure"]

_TIMERS: Final = {Size.FULL: 1_000_000, Size.QUICK: 100_000, Size.TINY: 200}
_TIMERS_OF_AN_EXECUTION: Final = 10
_STARTS_AT_ONCE: Final = 200
# As many as come due while the process runs, at this rate.
_SOON: Final = {Size.FULL: 3000, Size.QUICK: 1000, Size.TINY: 10}
_SOON_A_SECOND: Final = 500
_MOST_MEGABYTES: Final = 200
_MOST_SECONDS: Final = 5
_PATIENCE_SECONDS: Final = 120


@attrs.define
class Reminder:
    """Counts the timers that have fired."""

    fired: int = 0
    state: str = "waiting"


@attrs.frozen
class Remind:
    """A timer that stays valid whatever else its machine does."""

    type: ClassVar[TaskType] = TaskType(1, "remind")
    deadline: datetime

    @property
    def kind(self) -> TaskKind:
        return TimerKind(self.deadline)

    def validate(self, ref: object, node: Node) -> None:
        """Nothing makes it stale."""


@attrs.frozen
class Figures:
    """What one process has measured.

    Attributes:
        first_seconds: from the opening of the store to the first timer fired.
        latest_seconds: how late the latest of the others has fired.
        megabytes: the most memory that the process has had, code included.
        before_megabytes: the same before it has opened anything.
    """

    first_seconds: float
    latest_seconds: float
    megabytes: float
    before_megabytes: float


def measure(size: Size) -> Iterator[Table]:
    """One table for SQLite, and one for PostgreSQL."""
    with tempfile.TemporaryDirectory() as directory:
        yield compare("SQLite", f"sqlite:///{Path(directory) / 'timers.db'}", size)
    try:
        with running("postgresql", durable=True) as server:
            yield compare("PostgreSQL", server.fresh_url(), size)
    except MissingServerError as error:
        yield Table(_title("PostgreSQL", size), "", (), (f"Left out: {error}.",))


def compare(name: str, url: str, size: Size) -> Table:
    """Fill an empty store and measure a process that opens it."""
    timers, soon = _TIMERS[size], _SOON[size]
    _in_new_process(partial(_fill, url, timers))
    figures = _in_new_process(partial(_open, url, soon))
    lines = [
        Line(
            "until the first timer has fired",
            f"{figures.first_seconds:.2f} s",
            figures.first_seconds / _MOST_SECONDS,
            at_most(1),
        ),
        Line(
            "the most memory of the process",
            f"{figures.megabytes:.0f} MB",
            figures.megabytes / _MOST_MEGABYTES,
            at_most(1),
        ),
        Line("of which before the store was opened", f"{figures.before_megabytes:.0f} MB"),
        Line(
            f"lateness of the latest of {soon} more, {_SOON_A_SECOND} of them a second",
            f"{figures.latest_seconds:.2f} s",
        ),
    ]
    return Table(_title(name, size), f"of {_MOST_SECONDS} s, {_MOST_MEGABYTES} MB", lines)


def _title(name: str, size: Size) -> str:
    return f"{_TIMERS[size]:,} pending timers on {name}"


def _in_new_process(function: partial[Figures]) -> Figures:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function).result()


class _Fired:
    """The executor of `Remind`: how late each timer was, and when so many have fired."""

    def __init__(self, wanted: int = 0) -> None:
        self.lateness: list[float] = []
        self.first = asyncio.Event()
        self._wanted = wanted
        self.all = asyncio.Event()
        self.registry = Registry()
        self.registry.register_machine(attrs_definition(MachineType(1, "reminder"), Reminder))
        self.registry.register_task(Remind)
        self.registry.register_timer_executor(Remind, self._fire)

    def _fire(self, environment: Environment, node: Node, task: Remind) -> None:
        node.transition(Reminder, _count)
        self.lateness.append((datetime.now(UTC) - task.deadline).total_seconds())
        self.first.set()
        if len(self.lateness) >= self._wanted:
            self.all.set()


def _count(reminder: Reminder) -> None:
    reminder.fired += 1


def _asked(deadlines: list[datetime]) -> TransitionOutput:
    return TransitionOutput(tuple(Remind(deadline) for deadline in deadlines))


def _fill(url: str, timers: int) -> Figures:
    asyncio.run(_write(url, timers))
    return Figures(0, 0, _megabytes(), 0)


async def _write(url: str, timers: int) -> None:
    fired = _Fired()
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    numbers = iter(range(timers // _TIMERS_OF_AN_EXECUTION))

    async def starter(engine: Engine) -> None:
        for number in numbers:
            deadlines = [
                tomorrow + timedelta(seconds=number, hours=hour) for hour in range(_TIMERS_OF_AN_EXECUTION)
            ]
            await _start(engine, f"reminder-{number}", deadlines)

    async with (
        require(connect(url), EngineStore) as store,
        Engine(fired.registry, store, EngineOptions(cached_executions=100), run_tasks=False) as engine,
        asyncio.TaskGroup() as group,
    ):
        for _ in range(_STARTS_AT_ONCE):
            group.create_task(starter(engine))


async def _start(engine: Engine, name: str, deadlines: list[datetime]) -> None:
    await engine.start(
        ExecutionKey("benchmark", name),
        Reminder(),
        on_start=lambda root: root.transition(Reminder, lambda _: _asked(deadlines)),
    )


def _open(url: str, soon: int) -> Figures:
    before = _megabytes()
    first, latest = asyncio.run(_run(url, soon))
    return Figures(first, latest, _megabytes(), before)


async def _run(url: str, soon: int) -> tuple[float, float]:
    fired = _Fired(soon + 1)
    async with (
        require(connect(url), EngineStore) as store,
        Engine(fired.registry, store, run_tasks=False) as writer,
    ):
        await _start(writer, "due", [datetime.now(UTC)])
        # These come due while the process that is measured runs.
        begin = datetime.now(UTC) + timedelta(seconds=2)
        for number in range(0, soon, _TIMERS_OF_AN_EXECUTION):
            offsets = range(number, number + _TIMERS_OF_AN_EXECUTION)
            deadlines = [begin + timedelta(seconds=offset / _SOON_A_SECOND) for offset in offsets]
            await _start(writer, f"soon-{number}", deadlines)
    start = time.perf_counter()
    async with (
        require(connect(url), EngineStore) as store,
        Engine(fired.registry, store) as engine,
        asyncio.timeout(_PATIENCE_SECONDS),
    ):
        await fired.first.wait()
        seconds = time.perf_counter() - start
        await fired.all.wait()
        await engine.drain()
    return seconds, max(fired.lateness[1:])


def _megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """One store by its URL, which is empty: `python -m tests.benchmarks.many_timers --url URL`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--url", required=True)
    arguments = parser.parse_args()
    print(render(compare("the store", arguments.url, Size.FULL)))


if __name__ == "__main__":
    main()
