"""Durable executions a second on SQLite with full sync, against DBOS and against the store alone.

An execution is a start, one outbound task, and the success that the task reports: two commits, each on disk
before it is believed. As many clients as the concurrency says start one after the other, each when the one
before has ended.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import pstats
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

from hsm import Environment, ExecutionKey, Node, Ref, Registry
from hsm.engine import Engine
from persistence import CheckRequest, EngineStore, Operation, connect, require
from persistence.executions import SETTINGS_PARTITION
from persistence.stores.sqlite import SqliteStore
from tests.benchmarks.deliveries import Delivery, Send, new_registry, schedule, send
from tests.benchmarks.harness import (
    Line,
    Measure,
    Size,
    Table,
    alternate,
    at_least,
    isolated,
    load_peer,
    median_ratio,
)

__all__ = ["executions_a_second", "measure"]

# Rounds, executions of ours in a round, and workflows of DBOS.
_EFFORT: Final = {Size.FULL: (5, 10_000, 200), Size.QUICK: (3, 3000, 50), Size.TINY: (1, 20, 5)}
_CONCURRENCY: Final = {Size.FULL: 100, Size.QUICK: 100, Size.TINY: 5}
_PATIENCE_SECONDS: Final = 120.0
_NAMESPACE: Final = "benchmark"
_DESTINATION: Final = "example.org"


def measure(size: Size) -> list[Table]:
    """One table against DBOS, one against the store alone."""
    rounds, executions, workflows = _EFFORT[size]
    concurrency = _CONCURRENCY[size]
    notes: list[str] = []
    dbos = load_peer("dbos_workflows", "dbos", notes)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        cases: dict[str, Measure] = {
            "hsm": isolated(partial(_on_a_new_file, directory, executions, concurrency)),
            "the store alone": isolated(partial(_replays_a_second, directory, executions, concurrency)),
        }
        if dbos is not None:
            rate = partial(dbos.workflows_a_second_on_sqlite, directory, workflows, concurrency)
            cases["DBOS, as it configures SQLite"] = isolated(partial(rate, wal=False))
            cases["DBOS, its database in WAL mode"] = isolated(partial(rate, wal=True))
        figures = alternate(cases, rounds)
    own = figures.pop("hsm")
    alone = figures.pop("the store alone")
    first = Line("hsm", _rate(own))
    peers = [first]
    peers.extend(
        # DBOS leaves SQLite in its default mode; in WAL mode it is shown for whoever would set that.
        Line(peer, _rate(rates), median_ratio(own, rates), None if "WAL" in peer else at_least(50))
        for peer, rates in figures.items()
    )
    store = [
        first,
        Line(
            "the same transactions, replayed on the store",
            _rate(alone),
            median_ratio(own, alone),
            at_least(0.3),
        ),
    ]
    title = f"Durable executions a second on SQLite, {concurrency} at once"
    return [
        Table(title, "hsm is faster by", peers, notes),
        Table(f"{title}; what the engine leaves of the store's rate", "hsm does", store),
    ]


def executions_a_second(url: str, executions: int, concurrency: int) -> float:
    """What an engine does on the store of a URL, which is empty."""
    return asyncio.run(_engine_rate(url, executions, concurrency))


def _on_a_new_file(directory: Path, executions: int, concurrency: int) -> float:
    return executions_a_second(_new_database(directory), executions, concurrency)


def _replays_a_second(directory: Path, executions: int, concurrency: int) -> float:
    """Record the transactions of an engine, then measure the store with them alone."""
    recorded = asyncio.run(_record(directory, executions, concurrency))
    gc.collect()
    gc.freeze()
    return asyncio.run(_replay_rate(directory, recorded, concurrency))


class _Clients:
    """The executor of `Send`, and the clients that wait for what it reports."""

    def __init__(self) -> None:
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self.registry: Registry = new_registry()
        self.registry.register_executor(Send, self._send)

    async def _send(self, environment: Environment, ref: Ref, _: Send) -> None:
        await environment.update(ref, _succeed)
        self._waiting.pop(ref.execution.id).set_result(None)

    async def run(self, engine: Engine, executions: int, concurrency: int) -> None:
        numbers = iter(range(executions))
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(self._client(engine, numbers))

    async def _client(self, engine: Engine, numbers: Iterator[int]) -> None:
        loop = asyncio.get_running_loop()
        for number in numbers:
            key = ExecutionKey(_NAMESPACE, f"delivery-{number}")
            ended = self._waiting[key.id] = loop.create_future()
            await engine.start(key, Delivery(), on_start=_schedule)
            await ended


def _schedule(root: Node) -> None:
    root.apply(schedule, _DESTINATION)


def _succeed(root: Node) -> None:
    root.apply(send, 1)


async def _engine_rate(url: str, executions: int, concurrency: int) -> float:
    clients = _Clients()
    async with (
        require(connect(url), EngineStore) as store,
        Engine(clients.registry, store) as engine,
    ):
        await engine.drain()
        start = time.perf_counter()
        # An execution that never ends is a failure to see, not one to wait for.
        async with asyncio.timeout(_PATIENCE_SECONDS):
            await clients.run(engine, executions, concurrency)
        return executions / (time.perf_counter() - start)


# Replay


class _RecordingStore(SqliteStore):
    """Keeps every transaction and the etag that it was given."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.recorded: list[tuple[Sequence[Operation], str]] = []

    async def multi(self, operations: Sequence[Operation]) -> str:
        etag = await super().multi(operations)
        if operations[0].partition != SETTINGS_PARTITION:
            self.recorded.append((operations, etag))
        return etag


class _Recorded:
    """The transactions of one execution, each of them after the one before.

    Attributes:
        transactions: in order.
        conditions: for each, the operations whose etag is that of an earlier one, and which.
    """

    __slots__ = ("conditions", "transactions")

    def __init__(self) -> None:
        self.transactions: list[Sequence[Operation]] = []
        self.conditions: list[list[tuple[Operation, int]]] = []


async def _record(directory: Path, executions: int, concurrency: int) -> list[_Recorded]:
    clients = _Clients()
    store = _RecordingStore(directory / f"recorded-{time.time_ns()}.db")
    async with store, Engine(clients.registry, store) as engine:
        await engine.drain()
        store.recorded.clear()
        await clients.run(engine, executions, concurrency)
    # A transaction that depends on no earlier one starts an execution; the others follow what they depend on.
    made_by: dict[str, tuple[_Recorded, int]] = {}
    begun: list[_Recorded] = []
    for operations, etag in store.recorded:
        conditions = [
            (operation, operation.etag)
            for operation in operations
            if not isinstance(operation, CheckRequest) and operation.etag
        ]
        if conditions:
            recorded, _ = made_by[conditions[0][1]]
        else:
            recorded = _Recorded()
            begun.append(recorded)
        made_by[etag] = (recorded, len(recorded.transactions))
        recorded.transactions.append(operations)
        recorded.conditions.append([(operation, made_by[earlier][1]) for operation, earlier in conditions])
    assert len(begun) == executions
    assert {len(recorded.transactions) for recorded in begun} == {2}
    return begun


async def _replay_rate(directory: Path, recorded: Sequence[_Recorded], concurrency: int) -> float:
    queue = iter(recorded)
    async with require(connect(_new_database(directory)), EngineStore) as store:

        async def client() -> None:
            for execution in queue:
                etags: list[str] = []
                for operations, conditions in zip(execution.transactions, execution.conditions, strict=True):
                    for operation, earlier in conditions:
                        # Requests are frozen; making new ones would be the engine's work, not the store's.
                        object.__setattr__(operation, "etag", etags[earlier])
                    etags.append(await store.multi(operations))

        start = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(client())
        return len(recorded) / (time.perf_counter() - start)


def _new_database(directory: Path) -> str:
    return f"sqlite:///{directory / f'{time.time_ns()}.db'}"


def _rate(rates: Sequence[float]) -> str:
    return f"{median(rates):,.0f}/s"


def _profile(url: str, executions: int, concurrency: int) -> None:
    profiler = cProfile.Profile()
    profiler.enable()
    rate = executions_a_second(url, executions, concurrency)
    profiler.disable()
    print(f"{rate:,.0f} executions/s under the profiler")
    pstats.Stats(profiler, stream=sys.stdout).sort_stats("tottime").print_stats(45)


def main() -> None:
    """Where the event loop's thread spends its time: `python -m tests.benchmarks.durable_executions`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--url", help="an empty store; default: SQLite in a temporary directory")
    parser.add_argument("--executions", type=int, default=5000)
    parser.add_argument("--concurrency", type=int, default=100)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        url = arguments.url or _new_database(Path(directory))
        _profile(url, arguments.executions, arguments.concurrency)


if __name__ == "__main__":
    main()
