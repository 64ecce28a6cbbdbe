"""Fifty destinations of which five hang: what the other forty-five keep of their throughput.

An execution is a start, one outbound task, and the success that the task reports, on SQLite with full sync. Two
clients for each of the forty-five start one after the other, each when the one before has ended. In the one case
there is nothing else; in the other the five have more tasks than their queues hold, as many as may run hang, and
the rest waits.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from typing import Final

from hsm import Environment, ExecutionKey, Node, Ref, Registry
from hsm.engine import Engine
from persistence import EngineStore, connect, require
from tests.benchmarks.deliveries import Delivery, Send, new_registry, schedule, send
from tests.benchmarks.harness import (
    Line,
    Size,
    Table,
    alternate,
    at_least,
    isolated,
    median_ratio,
)

__all__ = ["measure"]

_ANSWERING: Final = 45
_HANGING: Final = 5
_CLIENTS_EACH: Final = 2
_NAMESPACE: Final = "benchmark"
# Rounds, executions of those that answer, and tasks that wait for each of those that hang.
_EFFORT: Final = {Size.FULL: (5, 9000, 2000), Size.QUICK: (3, 2700, 1200), Size.TINY: (1, 90, 5)}
_PATIENCE_SECONDS: Final = 120.0


def measure(size: Size) -> list[Table]:
    """One table: with those that hang, and without."""
    rounds, executions, waiting = _EFFORT[size]
    with tempfile.TemporaryDirectory() as name:
        cases = {
            case: isolated(partial(_on_a_new_file, Path(name), executions, hanging))
            for case, hanging in (("none hangs", 0), ("five hang", waiting))
        }
        figures = alternate(cases, rounds)
    alone, beside = figures["none hangs"], figures["five hang"]
    lines = [
        Line("forty-five destinations, and nothing else", _rate(alone)),
        Line(
            f"the same beside five that hang, with {waiting} tasks each",
            _rate(beside),
            median_ratio(beside, alone),
            at_least(0.9),
        ),
    ]
    return [Table("Executions a second while some destinations hang", "keeps", lines)]


class _Destinations:
    """The executor of `Send`, and the clients that wait for those that answer."""

    def __init__(self) -> None:
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._numbers = count()
        self.registry: Registry = new_registry()
        self.registry.register_executor(Send, self._send)

    async def _send(self, environment: Environment, ref: Ref, task: Send) -> None:
        if task.destination.startswith("hangs"):
            await asyncio.get_running_loop().create_future()
        await environment.update(ref, _succeed)
        self._waiting.pop(ref.execution.id).set_result(None)

    async def client(self, engine: Engine, destination: str, executions: int) -> None:
        for _ in range(executions):
            key = self._new_key()
            ended = self._waiting[key.id] = asyncio.get_running_loop().create_future()
            await self._start(engine, key, destination)
            await ended

    async def fill(self, engine: Engine, destination: str, executions: int) -> None:
        for _ in range(executions):
            await self._start(engine, self._new_key(), destination)

    async def _start(self, engine: Engine, key: ExecutionKey, destination: str) -> None:
        await engine.start(key, Delivery(), on_start=lambda root: root.apply(schedule, destination))

    def _new_key(self) -> ExecutionKey:
        return ExecutionKey(_NAMESPACE, f"delivery-{next(self._numbers)}")


def _succeed(root: Node) -> None:
    root.apply(send, 1)


def _on_a_new_file(directory: Path, executions: int, hanging: int) -> float:
    url = f"sqlite:///{directory / f'{time.time_ns()}.db'}"
    return asyncio.run(_rate_beside(url, executions, hanging))


async def _rate_beside(url: str, executions: int, hanging: int) -> float:
    destinations = _Destinations()
    try:
        async with (
            require(connect(url), EngineStore) as store,
            Engine(destinations.registry, store) as engine,
            asyncio.timeout(_PATIENCE_SECONDS),
        ):
            async with asyncio.TaskGroup() as group:
                for number in range(_HANGING):
                    group.create_task(destinations.fill(engine, f"hangs-{number}", hanging))
            start = time.perf_counter()
            async with asyncio.TaskGroup() as group:
                for number in range(_ANSWERING * _CLIENTS_EACH):
                    share = executions // (_ANSWERING * _CLIENTS_EACH)
                    destination = f"answers-{number % _ANSWERING}"
                    group.create_task(destinations.client(engine, destination, share))
            rate = executions / (time.perf_counter() - start)
            # Those that hang need not be waited for.
            raise _Measured(rate)
    except _Measured as measured:
        return measured.rate


class _Measured(Exception):  # noqa: N818 - it is the way out of an engine with tasks that hang, no error
    def __init__(self, rate: float) -> None:
        super().__init__(rate)
        self.rate = rate


def _rate(rates: Sequence[float]) -> str:
    return f"{median(rates):,.0f}/s"
