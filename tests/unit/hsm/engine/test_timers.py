"""Timers: at or after their deadline, never before, in order, also after a restart and beyond the window."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import attrs
import pytest

from hsm import Environment, Node, Ref, SerializationError, StaleReferenceError
from hsm.testing import FakeClock, TestEngine
from tests.support.databases import Database
from tests.support.jobs import (
    Alarm,
    Job,
    Ring,
    Step,
    World,
    ask,
    failing,
    log,
    note,
    pending,
    small,
    started,
    step,
    write,
)

SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)


async def test_timer_fires_at_its_deadline_and_not_before(
    world: World, database: Database, clock: FakeClock
) -> None:
    async with TestEngine(world.registry, database.store, clock=clock) as engine:
        deadline = clock.now() + 10 * SECOND
        await started(engine, "job", Alarm("a", deadline), Ring("b", deadline))
        await engine.skip(10 * SECOND - timedelta(microseconds=1))
        assert world.runs == []
        await engine.skip(timedelta(microseconds=1))
        assert {(run.name, run.time) for run in world.runs} == {("a", deadline), ("b", deadline)}


async def test_timers_fire_in_order_of_their_deadlines(
    world: World, database: Database, clock: FakeClock
) -> None:
    async with TestEngine(world.registry, database.store, clock=clock) as engine:
        start = clock.now()
        for seconds in (5, 1, 4, 2, 3):
            await started(engine, str(seconds), Ring(str(seconds), start + seconds * SECOND))
        await engine.skip(HOUR)

    assert [(run.name, run.time) for run in world.runs] == [
        (str(seconds), start + seconds * SECOND) for seconds in range(1, 6)
    ]


@pytest.mark.parametrize("deadline", [datetime(1960, 1, 1, tzinfo=UTC), datetime(2029, 12, 31, tzinfo=UTC)])
async def test_timer_of_the_past_fires_at_once(world: World, database: Database, deadline: datetime) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine, "job", Alarm("past", deadline))
        await engine.drain()
        assert await engine.read(ref, log) == ["past"]


async def test_timer_too_far_ahead_is_refused(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine)
        with pytest.raises(SerializationError, match="2262"):
            await engine.update(ref, note("never", Alarm("x", datetime.max.replace(tzinfo=UTC))))
        assert await engine.read(ref, log) == []
        await engine.update(ref, note("after", Alarm("far", datetime(2262, 1, 1, tzinfo=UTC))))
        assert await pending(engine, ref) == ["alarm"]


async def test_timers_survive_a_restart(world: World, database: Database, clock: FakeClock) -> None:
    async with TestEngine(world.registry, database.store, clock=clock) as engine:
        start = clock.now()
        tasks = [Ring(str(number), start + number * SECOND) for number in range(1, 4)]
        ref = await started(engine, "job", *tasks)
        await engine.skip(SECOND)
    clock.advance(SECOND)  # nobody is there
    assert world.names() == ["1"]

    async with TestEngine(world.registry, database.store, clock=clock) as engine:
        await engine.drain()
        assert world.names() == ["1", "2"]
        assert await engine.skip_to_next() == start + 3 * SECOND
        assert await engine.read(ref, log) == ["1", "2", "3"]
        assert await engine.skip_to_next() is None


async def test_timer_of_another_process_fires_in_time(
    world: World, database: Database, clock: FakeClock
) -> None:
    options = small(poll_interval=SECOND)
    async with (
        TestEngine(world.registry, database.store, options, clock=clock) as engine,
        TestEngine(world.registry, await database.open(), clock=clock, run_tasks=False) as other,
    ):
        await engine.drain()
        start = clock.now()
        for seconds in (1.5, 2.25, 60):
            await started(other, str(seconds), Ring(str(seconds), start + seconds * SECOND))
        await engine.skip(61 * SECOND)

    assert [(run.name, run.time - start) for run in world.runs] == [
        ("1.5", 1.5 * SECOND),
        ("2.25", 2.25 * SECOND),
        ("60", 60 * SECOND),
    ]


@pytest.mark.parametrize("window", [1, 3, 8])
async def test_more_timers_than_the_window_holds(
    world: World, database: Database, clock: FakeClock, window: int
) -> None:
    options = small(timer_window=window, shard_count=1)
    numbers = [17 * number % 40 + 1 for number in range(40)]  # 1 to 40, out of order
    async with TestEngine(world.registry, database.store, options, clock=clock) as engine:
        start = clock.now()
        for number in numbers:
            await started(engine, str(number), Ring(str(number), start + number * SECOND))
            assert len(engine._dispatcher) <= 2 * window + 1
        for _ in range(40):
            await engine.skip(SECOND)
            assert len(engine._dispatcher) <= 2 * window + 1

    assert [(run.name, run.time) for run in world.runs] == [
        (str(number), start + number * SECOND) for number in range(1, 41)
    ]
    assert await database.queued() == []


@pytest.mark.parametrize("window", [1, 3, 8])
async def test_more_timers_than_the_window_holds_after_a_restart(
    world: World, database: Database, clock: FakeClock, window: int
) -> None:
    options = small(timer_window=window)
    async with TestEngine(world.registry, database.store, options, clock=clock, run_tasks=False) as engine:
        start = clock.now()
        for number in range(40, 0, -1):
            await started(engine, str(number), Ring(str(number), start + number * SECOND))
    clock.advance(10 * SECOND)

    async with TestEngine(world.registry, database.store, options, clock=clock) as engine:
        await engine.drain()
        assert sorted(world.names(), key=int) == [str(number) for number in range(1, 11)]
        while await engine.skip_to_next() is not None:
            assert len(engine._dispatcher) <= 2 * (2 * window + 1)

    assert world.names()[10:] == [str(number) for number in range(11, 41)]
    assert all(run.time == start + int(run.name) * SECOND for run in world.runs[10:])


async def test_timer_that_moves_before_a_full_window_fires_first(
    world: World, database: Database, clock: FakeClock
) -> None:
    options = small(timer_window=2, shard_count=1)
    async with TestEngine(world.registry, database.store, options, clock=clock) as engine:
        start = clock.now()
        for number in range(10, 20):
            await started(engine, str(number), Ring(str(number), start + number * SECOND))
        await started(engine, "early", Ring("1", start + SECOND))
        await engine.run_until_idle()

    assert world.names() == ["1", *map(str, range(10, 20))]


async def test_timers_that_hang_do_not_keep_later_ones_from_being_read(
    world: World, database: Database, clock: FakeClock
) -> None:
    reached, release = asyncio.Event(), asyncio.Event()

    async def hang(env: Environment, ref: Ref, task: Alarm) -> None:
        if task.name == "last":
            reached.set()
        await release.wait()

    world.on(Alarm, hang)
    options = small(timer_window=2, shard_count=1)
    async with TestEngine(world.registry, database.store, options, clock=clock) as engine:
        start = clock.now()
        for number, name in enumerate(("1", "2", "3", "4", "5", "6", "last"), 1):
            await started(engine, name, Alarm(name, start + number * SECOND))
        clock.advance(10 * SECOND)
        await asyncio.wait_for(reached.wait(), timeout=30)
        release.set()
        await engine.drain()


async def test_failing_timer_does_not_hold_up_the_others(
    world: World, database: Database, clock: FakeClock
) -> None:
    def ring(env: Environment, node: Node, task: Ring) -> None:
        node.transition(Job, write(task.name))
        if task.name == "broken":
            raise ZeroDivisionError

    world.ring = ring
    async with TestEngine(world.registry, database.store, clock=clock) as engine:
        start = clock.now()
        names = ("a", "broken", "b", "c")
        tasks = [Ring(name, start + number * SECOND) for number, name in enumerate(names, 1)]
        ref = await started(engine, "job", *tasks)
        await engine.skip(5 * SECOND)
        assert await engine.read(ref, log) == ["a", "b", "c"]
        assert await pending(engine, ref) == ["ring"]
        assert world.names().count("broken") > 1
    await database.check()


async def test_timers_due_together_each_commit_alone(
    world: World, database: Database, clock: FakeClock
) -> None:
    def ring(env: Environment, node: Node, task: Ring) -> None:
        node.transition(Job, write(task.name))
        if task.name == "end":
            raise ZeroDivisionError

    world.ring = ring
    async with TestEngine(world.registry, database.store, small(max_attempts=1), clock=clock) as engine:
        due = clock.now() + SECOND
        ref = await started(engine, "job", Ring("a", due), Ring("end", due), Ring("b", due))
        await engine.skip(SECOND)
        assert sorted(await engine.read(ref, log)) == ["a", "b"]
        assert [dead.error_type async for dead in engine.dead_letters()] == ["ZeroDivisionError"]


async def test_timer_under_the_lock_is_stale_after_the_machine_is_gone(
    world: World, database: Database, clock: FakeClock
) -> None:
    def ring(env: Environment, node: Node, task: Ring) -> None:
        parent = node.parent
        assert parent is not None
        parent.delete_child(step("a"))
        parent.transition(Job, write("deleted by its own timer"))

    world.ring = ring
    async with TestEngine(world.registry, database.store, clock=clock) as engine:
        due = clock.now() + SECOND
        ref = await started(engine)
        await engine.update(
            ref, lambda root: ask(Ring("x", due), Ring("y", due))(root.add_child(step("a"), Step()))
        )
        await engine.skip(SECOND)
        assert await engine.read(ref, log) == ["deleted by its own timer"]
        assert len(world.runs) == 1
    assert await database.queued() == []
    assert await database.keys("d/") == []


async def test_timer_may_set_the_next_one(world: World, database: Database, clock: FakeClock) -> None:
    def ring(env: Environment, node: Node, task: Ring) -> None:
        following = attrs.evolve(task, name=task.name + "'", deadline=task.deadline + HOUR)
        node.transition(Job, write(task.name, *([following] if len(task.name) < 5 else [])))

    world.ring = ring
    async with TestEngine(world.registry, database.store, clock=clock) as engine:
        ref = await started(engine, "job", Ring("a", clock.now() + HOUR))
        await engine.run_until_idle()
        assert await engine.read(ref, log) == ["a", "a'", "a''", "a'''", "a''''"]


async def test_timer_that_waits_for_a_retry_keeps_its_failures_in_sight(
    world: World, database: Database, clock: FakeClock
) -> None:
    world.on(Alarm, failing(OSError("no luck")))
    async with TestEngine(world.registry, database.store, clock=clock) as engine:
        ref = await started(engine, "job", Alarm("a", clock.now() + SECOND))
        await engine.skip(SECOND)
        ((task,),) = [node.tasks for node in (await engine.describe(ref.execution)).nodes]
        assert (task.failures, task.last_error) == (1, "OSError: no luck")
        assert task.not_before is not None


async def test_withdrawn_timer_that_waits_for_a_retry_leaves_no_row(
    world: World, database: Database, clock: FakeClock
) -> None:
    world.on(Alarm, failing(OSError()))
    async with TestEngine(world.registry, database.store, clock=clock) as engine:
        ref = await started(engine, "job", Alarm("a", clock.now() + SECOND))
        await engine.skip(SECOND)
        await engine.update(ref, note("end"))
        await engine.run_until_idle()
    assert await database.queued() == []
    assert world.names() == ["a"]


async def test_timer_executor_that_finds_itself_stale_is_dropped(
    world: World, database: Database, clock: FakeClock
) -> None:
    def ring(env: Environment, node: Node, task: Ring) -> None:
        raise StaleReferenceError("not needed any more")

    world.ring = ring
    async with TestEngine(world.registry, database.store, clock=clock) as engine:
        ref = await started(engine, "job", Ring("a", clock.now()))
        await engine.drain()
        assert await pending(engine, ref) == []
        assert await engine.read(Ref(ref.execution), log) == []
    assert await database.queued() == []
