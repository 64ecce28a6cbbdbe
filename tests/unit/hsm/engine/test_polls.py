"""Polls: what other processes write is found soon, and what is in memory is not read again and again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from hypothesis import given, strategies as st

from hsm import Environment, Ref
from hsm.engine._cursors import ROWS_BEFORE_A_JUMP, Cursors
from hsm.testing import FakeClock, FaultyStore, TestEngine
from persistence.store import Item, SetRequest
from tests.support.databases import Database
from tests.support.jobs import Lasting, Soon, World, ask, job, log, noted, small, started

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)


class CountingStore(FaultyStore):
    """Counts the rows that are read from queues."""

    rows = 0

    async def scan(
        self, partition: str, start: str, end: str, *, limit: int | None = None, reverse: bool = False
    ) -> AsyncIterator[Item]:
        async for item in super().scan(partition, start, end, limit=limit, reverse=reverse):
            self.rows += item.key.startswith(("i/", "o/"))
            yield item


class Line:
    """An executor that everybody waits for."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    async def __call__(self, env: Environment, ref: Ref, task: Lasting) -> None:
        await self.open.wait()
        await noted(env, ref, task)


async def some_time(turns: int = 100) -> None:
    """What hangs cannot be waited for."""
    for _ in range(turns):
        await asyncio.sleep(0.001)


async def test_waiting_tasks_are_not_read_again_at_each_poll(
    world: World, database: Database, clock: FakeClock
) -> None:
    line = Line()
    world.on(Lasting, line)
    store = CountingStore(database.store)
    options = small(concurrency=1, poll_interval=SECOND, shard_count=1, task_timeout=None)
    async with (
        TestEngine(world.registry, store, options, clock=clock) as engine,
        TestEngine(world.registry, await database.open(), options, clock=clock, run_tasks=False) as other,
    ):
        for number in range(300):
            await started(engine, str(number), Lasting("x", destination=str(number % 2)))
        clock.advance(SECOND)
        await some_time()
        assert store.rows >= 300
        clock.advance(15 * SECOND)
        await some_time()
        store.rows = 0
        clock.advance(SECOND)
        await some_time()
        assert 0 < store.rows < 100

        await started(other, "late", Lasting("late", destination="0"))
        await started(other, "new", Lasting("new", destination="2"))
        clock.advance(SECOND)
        await some_time()
        assert world.names().count("new") == 1
        assert len(engine._dispatcher) == 302
        line.open.set()
        await engine.drain()
    assert len(world.runs) == 302
    assert await database.queued() == []


@pytest.mark.parametrize(("late", "polls"), [(8, 1), (15, 35)])
async def test_row_that_comes_late_is_found(
    world: World, database: Database, clock: FakeClock, late: int, polls: int
) -> None:
    """Its id was made long ago, or by a clock that is behind."""
    line = Line()
    world.on(Lasting, line)
    options = small(concurrency=1, poll_interval=SECOND, shard_count=1, task_timeout=None)
    slow = FakeClock(clock.now() - timedelta(seconds=late))
    async with (
        TestEngine(world.registry, database.store, options, clock=clock) as engine,
        TestEngine(world.registry, await database.open(), options, clock=slow, run_tasks=False) as other,
    ):
        for number in range(100):
            await started(engine, str(number), Lasting("x"))
        for _ in range(20):
            clock.advance(SECOND)
            slow.advance(SECOND)
            await some_time(10)
        for number in range(40):
            await started(engine, f"newer-{number}", Lasting("x"))
        clock.advance(SECOND)
        slow.advance(SECOND)
        await some_time(10)
        await started(other, "late", Lasting("late"))
        for _ in range(polls):
            clock.advance(SECOND)
            await some_time(10)
        await some_time()
        assert len(engine._dispatcher) == 141
        line.open.set()
        await engine.drain()
    assert "late" in world.names()


async def test_old_task_that_another_process_puts_back_is_found_at_once(
    world: World, database: Database, clock: FakeClock
) -> None:
    """Its id is older than those of the tasks that a poll looks for."""
    line = Line()
    world.on(Lasting, line)
    options = small(concurrency=51, poll_interval=SECOND, shard_count=1, task_timeout=None)
    async with (
        TestEngine(world.registry, database.store, options, clock=clock) as engine,
        TestEngine(world.registry, await database.open(), options, clock=clock, run_tasks=False) as other,
    ):
        for number in range(50):
            await started(engine, f"older-{number}", Lasting("x"))
        ref = await started(engine, "paused")
        await engine.pause(ref.execution)
        await engine.update(ref, ask(Lasting("old")))
        await some_time()
        assert len(engine._dispatcher) == 50
        for number in range(100):
            await started(engine, str(number), Lasting("x"))
        for _ in range(20):
            clock.advance(SECOND)
            await some_time(10)
        await other.resume(ref.execution)
        for _ in range(2):
            clock.advance(SECOND)
            await some_time(50)
        assert len(engine._dispatcher) == 151
        line.open.set()
        await engine.drain()
        assert await engine.read(ref, log) == ["old"]
    assert await database.queued() == []


async def test_full_queue_of_one_shard_does_not_starve_those_of_others(
    world: World, database: Database
) -> None:
    options = small(queue_buffer=4, concurrency=2, shard_count=4)
    async with TestEngine(world.registry, database.store, options, run_tasks=False) as engine:
        for number in range(200):
            await started(engine, str(number), Lasting(str(number)))
    async with TestEngine(world.registry, database.store, options) as engine:
        await engine.drain()
    half = {engine._executions.partition(job(name)) for name in world.names()[:100]}
    assert len(world.runs) == 200
    assert len(half) == 4


async def test_rows_of_several_queues_are_all_found(
    world: World, database: Database, clock: FakeClock
) -> None:
    options = small(poll_interval=SECOND, queue_buffer=3, concurrency=1, shard_count=1)
    async with (
        TestEngine(world.registry, database.store, options, clock=clock) as engine,
        TestEngine(world.registry, await database.open(), options, clock=clock, run_tasks=False) as other,
    ):
        for turn in range(3):
            for number in range(40):
                await started(other, f"{turn}-{number}", Lasting("x", destination=str(number % 7)), Soon("y"))
            await engine.skip(SECOND)
        assert len(world.runs) == 240
    assert await database.queued() == []


@given(st.lists(st.lists(st.integers(0, 40), max_size=60), max_size=8), st.integers(0, 15))
def test_no_row_of_the_last_seconds_is_skipped(polls: list[list[int]], overlap: int) -> None:
    """Whatever is new since the poll before is met, if its id is not older than the overlap."""
    second = 10**9
    cursors = Cursors()
    rows: set[int] = set()
    met: set[int] = set()
    for number, new in enumerate(polls, start=1):
        now = (1_000_000 + number) * second
        rows |= {(1_000_000 + number) * 1000 - min(overlap, 9) * 1000 + milli for milli in new}
        cursors.begin(now)
        position = ""
        while True:
            further = None
            left = [row for row in sorted(f"{row:012x}" for row in rows) if "q/" + row >= position]
            for count, row in enumerate(left, start=1):
                met.add(int(row, 16))
                if count >= ROWS_BEFORE_A_JUMP:
                    further = cursors.passed("q/", row)
                if further is not None:
                    break
            if further is None:
                break
            assert further > position
            position = further
        cursors.end()
        assert met == rows


async def test_foreign_row_in_a_queue_harms_nobody(world: World, database: Database) -> None:
    await database.store.set(SetRequest(partition="exec/0", key="i/x", value=b"?"))
    async with TestEngine(world.registry, database.store, small(shard_count=1)) as engine:
        await started(engine, "job", Soon("x"))
        await engine.drain()
        assert world.names() == ["x"]
