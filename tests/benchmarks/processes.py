"""One, two and four processes on one PostgreSQL: what they carry out, and how soon work moves after a SIGKILL.

An execution is a start, one outbound task, and the success that the task reports. The processes are there and have
divided the shards before the executions are started, by somebody who runs no tasks; the executors wait for a word
until all have been started. What is measured is the time from that word to the last success: so each process carries
out executions that it has never seen. The executors do nothing, or wait 20 ms with at most 50 at once in a process.

For the SIGKILL, executions are started all the time, and one process is killed. What is measured is the longest time
that any of them has had to wait.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection
from statistics import median
from typing import Final

import attrs

from hsm import Environment, ExecutionKey, Node, Ref
from hsm.engine import Engine, EngineOptions
from persistence import EngineStore, connect, require
from persistence.executions import SETTINGS_PARTITION
from persistence.proto.execution_pb2 import ShardOwnerRow
from tests.benchmarks.deliveries import Delivery, Send, new_registry, schedule, send
from tests.benchmarks.harness import (
    Line,
    Measure,
    Size,
    Table,
    alternate,
    at_least,
    at_most,
    median_ratio,
)
from tests.support.servers import MissingServerError, running

__all__ = ["compare", "measure"]

# Rounds, executions of a round with executors that do nothing, and with those that wait.
_EFFORT: Final = {Size.FULL: (5, 12_000, 12_000), Size.QUICK: (1, 1000, 1000), Size.TINY: (1, 20, 20)}
_KILL_SECONDS: Final = {Size.FULL: 15.0, Size.QUICK: 5.0, Size.TINY: 3.0}
_COUNTS: Final = {Size.FULL: (1, 2, 4), Size.QUICK: (1, 2), Size.TINY: (1, 2)}
# So many that each of four processes has a share, whatever they are called.
_SHARDS: Final = 64
_CONCURRENCY: Final = 50
_WAIT_SECONDS: Final = 0.02
_STARTS_AT_ONCE: Final = 100
_STARTS_A_SECOND: Final = 50
# What engines have unless they are told otherwise.
_LEASE_SECONDS: Final = EngineOptions().lease_seconds
_MOST_SECONDS: Final = 10
_PATIENCE_SECONDS: Final = 300.0
_NAMESPACE: Final = "benchmark"


@attrs.frozen
class _Load:
    """What a process is told.

    Attributes:
        url: of the database.
        wait: seconds that an executor waits.
        concurrency: how many of them at once.
        lease_seconds: of its shards; short where nobody is killed, so that they are divided soon.
    """

    url: str
    wait: float = 0.0
    concurrency: int = 100
    lease_seconds: int = 3


def measure(size: Size) -> Iterator[Table]:
    """One table: throughput, and the longest wait after a SIGKILL."""
    try:
        with running("postgresql", durable=True) as server:
            yield compare(server.fresh_url, size)
    except MissingServerError as error:
        yield Table(_title(size), "", (), (f"Left out: {error}.",))


def compare(new_url: Callable[[], str], size: Size) -> Table:
    """Measure on a running PostgreSQL, each time in an empty place."""
    rounds, empty, waiting = _EFFORT[size]
    counts = _COUNTS[size]

    def case(count: int, executions: int, wait: float, concurrency: int) -> float:
        return _rate(_Load(new_url(), wait, concurrency), count, executions)

    cases: dict[str, Measure] = {}
    for count in counts:
        cases[f"empty {count}"] = partial(case, count, empty, 0.0, 100)
        cases[f"waiting {count}"] = partial(case, count, waiting, _WAIT_SECONDS, _CONCURRENCY)
    figures = alternate(cases, rounds)
    lines: list[Line] = []
    for kind, words, bound in (
        ("empty", "executors that do nothing", 0.95),
        ("waiting", f"executors that wait 20 ms, {_CONCURRENCY} at once in each", 1.5),
    ):
        alone = figures[f"{kind} 1"]
        lines.append(Line(f"one process, {words}", _text(alone)))
        for count in counts[1:]:
            rates = figures[f"{kind} {count}"]
            target = at_least(bound) if count == 2 else None
            lines.append(
                Line(f"{count} processes, {words}", _text(rates), median_ratio(rates, alone), target)
            )
    for count in counts[1:]:
        seconds = _longest_wait(_Load(new_url(), lease_seconds=_LEASE_SECONDS), count, _KILL_SECONDS[size])
        name = f"longest wait after a SIGKILL of one of {count}, of {_MOST_SECONDS} s"
        lines.append(Line(name, f"{seconds:.2f} s", seconds / _MOST_SECONDS, at_most(1)))
    return Table(_title(size), "of one process", lines)


def _title(size: Size) -> str:
    return f"Tasks a second by several processes on one PostgreSQL, {_EFFORT[size][1]:,} executions"


def _text(rates: Sequence[float]) -> str:
    return f"{median(rates):,.0f}/s"


# The processes


class _Crew:
    """Some processes with an engine each, that have divided the shards."""

    def __init__(self, load: _Load, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.load = load
        self.pipes: list[Connection] = []
        self.processes = []
        for _ in range(count):
            here, there = context.Pipe()
            process = context.Process(target=_work, args=(load, there), daemon=True)
            process.start()
            there.close()
            self.pipes.append(here)
            self.processes.append(process)

    def say(self, word: str) -> None:
        for pipe in self.pipes:
            with contextlib.suppress(OSError):
                pipe.send(word)

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()
        for pipe in self.pipes:
            pipe.close()

    async def until_ready(self, store: EngineStore) -> None:
        """Return when every process has its part of the shards."""
        count = len(self.processes)
        while True:
            owners = [
                ShardOwnerRow.FromString(item.value).member
                async for item in store.scan(SETTINGS_PARTITION, "s/", "s0")
            ]
            if len(owners) == _SHARDS and len(set(owners)) == min(count, _SHARDS):
                return
            await asyncio.sleep(0.1)


def _work(load: _Load, pipe: Connection) -> None:
    asyncio.run(_run(load, pipe))


async def _run(load: _Load, pipe: Connection) -> None:
    """Carry out tasks once the word is given, and tell when each of them is done."""
    loop = asyncio.get_running_loop()
    go, end = asyncio.Event(), asyncio.Event()
    done: list[tuple[str, float]] = []

    def listen() -> None:
        try:
            word = pipe.recv()
        except EOFError:
            word = "end"
        if word == "go":
            go.set()
        elif word == "end":
            end.set()
        else:
            pipe.send(list(done))
            done.clear()

    async def execute(environment: Environment, ref: Ref, task: Send) -> None:
        await go.wait()
        if load.wait:
            await asyncio.sleep(load.wait)
        await environment.update(ref, _succeed)
        done.append((ref.execution.id, time.monotonic()))

    registry = new_registry()
    registry.register_executor(Send, execute)
    loop.add_reader(pipe.fileno(), listen)
    options = EngineOptions(
        concurrency=load.concurrency,
        shard_count=_SHARDS,
        drain_timeout=timedelta(),
        lease_seconds=load.lease_seconds,
    )
    async with require(connect(load.url), EngineStore) as store, Engine(registry, store, options):
        await end.wait()


def _succeed(root: Node) -> None:
    root.apply(send, 1)


def _collect(crew: _Crew) -> list[tuple[str, float]]:
    """What the processes that are alive have done since the last time."""
    done: list[tuple[str, float]] = []
    for pipe in crew.pipes:
        try:
            pipe.send("tell")
            done += pipe.recv()
        except (OSError, EOFError):
            continue
    return done


# Throughput


def _rate(load: _Load, count: int, executions: int) -> float:
    crew = _Crew(load, count)
    try:
        return asyncio.run(_measure_rate(crew, executions))
    finally:
        crew.end()


async def _measure_rate(crew: _Crew, executions: int) -> float:
    options = EngineOptions(shard_count=_SHARDS)
    numbers = iter(range(executions))

    async def starter(engine: Engine) -> None:
        for number in numbers:
            await _start(engine, f"{number}")

    async with (
        require(connect(crew.load.url), EngineStore) as store,
        Engine(new_registry(), store, options, run_tasks=False) as engine,
        asyncio.timeout(_PATIENCE_SECONDS),
    ):
        await crew.until_ready(store)
        async with asyncio.TaskGroup() as group:
            for _ in range(_STARTS_AT_ONCE):
                group.create_task(starter(engine))
        began = time.monotonic()
        crew.say("go")
        done: dict[str, float] = {}
        while len(done) < executions:
            await asyncio.sleep(0.25)
            done.update(_collect(crew))
        return executions / (max(done.values()) - began)


async def _start(engine: Engine, name: str) -> None:
    await engine.start(
        ExecutionKey(_NAMESPACE, name), Delivery(), on_start=lambda root: root.apply(schedule, "destination")
    )


# A SIGKILL


def _longest_wait(load: _Load, count: int, seconds: float) -> float:
    crew = _Crew(load, count)
    try:
        return asyncio.run(_measure_wait(crew, seconds))
    finally:
        crew.end()


async def _measure_wait(crew: _Crew, seconds: float) -> float:
    options = EngineOptions(shard_count=_SHARDS)
    started: dict[str, float] = {}
    done: dict[str, float] = {}
    async with (
        require(connect(crew.load.url), EngineStore) as store,
        Engine(new_registry(), store, options, run_tasks=False) as engine,
        asyncio.timeout(_PATIENCE_SECONDS),
    ):
        await crew.until_ready(store)
        crew.say("go")
        victim = crew.processes[0]
        begin = time.monotonic()
        for number in itertools.count():
            now = time.monotonic() - begin
            if now > seconds:
                break
            if now > 1 and victim.is_alive():
                # What it has done by now is known; what it does in the next moment may be done again.
                done.update(_collect(crew))
                victim.kill()
                victim.join()
            name = f"{number}"
            await _start(engine, name)
            started[name] = time.monotonic()
            await asyncio.sleep(1 / _STARTS_A_SECOND)
        while True:
            done.update(_collect(crew))
            left = [name for name in started if name not in done and not await _is_sent(engine, name)]
            if not left:
                break
            await asyncio.sleep(0.25)
    return max(done[name] - since for name, since in started.items() if name in done)


async def _is_sent(engine: Engine, name: str) -> bool:
    """Whether an execution has succeeded; the process that was killed cannot tell any more."""
    return await engine.read(
        Ref(ExecutionKey(_NAMESPACE, name)), lambda node: node.data(Delivery).attempts > 0
    )


def main() -> None:
    """One database by its URL, which is empty: `python -m tests.benchmarks.processes --url URL`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--executions", type=int, default=3000)
    parser.add_argument("--wait", type=float, default=0.0)
    arguments = parser.parse_args()
    concurrency = _CONCURRENCY if arguments.wait else 100
    load = _Load(arguments.url, arguments.wait, concurrency)
    print(f"{_rate(load, arguments.processes, arguments.executions):,.0f}/s")


if __name__ == "__main__":
    main()
