"""Repair: what the machines wait for is the truth, and queue rows that were lost are written anew."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from hypothesis import given, settings, strategies as st

from hsm import BusyError, Environment, ExecutionNotFoundError, Ref, Task, TerminalError
from hsm.engine import Backoff
from hsm.testing import Call as StoreCall, FakeClock, FaultyStore, TestEngine
from persistence.proto.execution_pb2 import DeadLetterRow
from persistence.store import DeleteRequest
from tests.support.databases import Database
from tests.support.jobs import (
    Alarm,
    First,
    Lasting,
    Newest,
    Ring,
    Soon,
    Step,
    World,
    ask,
    failing,
    job,
    log,
    note,
    noted,
    pending,
    small,
    started,
    step,
)

SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
HOURLY = Backoff(initial=HOUR, maximum=HOUR, jitter=0)


async def lose(database: Database, *prefixes: str) -> int:
    """Delete queue rows behind the engine's back; how many."""
    rows = [row for prefix in prefixes for row in await database.rows(prefix)]
    for partition, item in rows:
        await database.store.delete(DeleteRequest(partition=partition, key=item.key))
    return len(rows)


async def everything(engine: TestEngine, clock: FakeClock) -> Ref:
    """An execution that waits for a task of each kind, in its root and in a child."""
    later = clock.now() + HOUR
    tasks: list[Task] = [Lasting("call"), Soon("soon"), Alarm("alarm", later), Ring("ring", later)]
    ref = await started(engine, "job", *tasks)
    await engine.update(ref, lambda root: ask(*tasks)(root.add_child(step("a"), Step())))
    return ref


async def test_lost_rows_are_written_anew_and_their_tasks_run(
    world: World, database: Database, clock: FakeClock
) -> None:
    async with TestEngine(world.registry, database.store, clock=clock, run_tasks=False) as engine:
        ref = await everything(engine, clock)
        assert await lose(database, "o/", "i/", "t/") == 8
    async with TestEngine(world.registry, database.store, clock=clock) as engine:
        await engine.skip(2 * HOUR)
        assert world.runs == []
        assert await engine.repair(ref.execution) == 8
        await database.check()
        await engine.skip(SECOND)
        expected = ["alarm", "call", "ring", "soon"]
        assert sorted(await engine.read(ref, log)) == expected
        assert sorted(await engine.read(Ref(ref.execution, (step("a"),)), log)) == expected
        assert await engine.repair(ref.execution) == 0
    assert await database.queued() == []


async def test_timer_that_was_lost_keeps_its_deadline(
    world: World, database: Database, clock: FakeClock
) -> None:
    async with TestEngine(world.registry, database.store, small(), clock=clock) as engine:
        deadline = clock.now() + HOUR
        await started(engine, "job", Ring("ring", deadline))
        assert await lose(database, "t/") == 1
        assert await engine.repair(job()) == 1
        await engine.skip(2 * HOUR)
        assert [run.time for run in world.runs] == [deadline]
    assert await database.queued() == []


async def test_all_executions_are_looked_at(world: World, database: Database, clock: FakeClock) -> None:
    async with TestEngine(world.registry, database.store, small(), clock=clock, run_tasks=False) as engine:
        refs = [await started(engine, str(number), Soon("soon"), First("first")) for number in range(30)]
        for ref in refs[::3]:
            await engine.update(ref, lambda root: ask(Lasting("x"))(root.add_child(step("a"), Step())))
        before = await database.queued()
        lost = await lose(database, "o/")
        assert lost == 40
        assert await engine.repair() == lost
        assert len(await database.queued()) == len(before)
        await database.check()
        assert await engine.repair() == 0
    async with TestEngine(world.registry, database.store, small(), clock=clock) as engine:
        await engine.drain()
    assert len(world.runs) == 70


async def test_engine_that_takes_a_shard_over_can_look_for_lost_rows(
    world: World, database: Database, clock: FakeClock
) -> None:
    async with TestEngine(world.registry, database.store, small(), clock=clock, run_tasks=False) as engine:
        ref = await started(engine, "job", Soon("soon"))
        await lose(database, "i/")
    async with TestEngine(world.registry, database.store, small(), clock=clock) as engine:
        await engine.drain()
        assert world.runs == []
    options = small(repair_shards=True)
    async with TestEngine(world.registry, database.store, options, clock=clock) as engine:
        await engine.drain()
        assert await engine.read(ref, log) == ["soon"]


async def test_owner_of_the_shard_runs_what_another_process_has_repaired(
    world: World, database: Database, clock: FakeClock
) -> None:
    options = small(poll_interval=SECOND)
    async with (
        TestEngine(world.registry, database.store, options, clock=clock) as engine,
        TestEngine(world.registry, await database.open(), options, clock=clock, run_tasks=False) as other,
    ):
        await engine.skip(10 * SECOND)
        ref = await started(other, "job", Soon("soon"))
        await lose(database, "i/")
        assert await other.repair(ref.execution) == 1
        await engine.skip(SECOND)
        assert await engine.read(ref, log) == ["soon"]


async def test_rows_that_are_elsewhere_are_not_lost(
    world: World, database: Database, clock: FakeClock
) -> None:
    """They wait for their next try, are dead, or are due and had no room."""
    free = asyncio.Event()

    async def hang(env: Environment, ref: Ref, task: Alarm) -> None:
        await free.wait()
        await noted(env, ref, task)

    world.on(Lasting, failing(OSError()))
    world.on(Soon, failing(TerminalError("x")))
    world.on(Alarm, hang)
    options = small(backoff=HOURLY, queue_buffer=1, concurrency=1, shard_count=1, task_timeout=None)
    async with (
        TestEngine(world.registry, database.store, options, clock=clock) as engine,
        TestEngine(world.registry, await database.open(), options, clock=clock, run_tasks=False) as other,
    ):
        now = clock.now()
        tasks: list[Task] = [Lasting("call"), Soon("soon"), Alarm("1", now), Alarm("2", now), Alarm("3", now)]
        ref = await started(engine, "job", *tasks)
        kinds: list[str] = []
        while sorted(kinds) != ["d", "i", "i", "t", "t"]:
            await asyncio.sleep(0.001)
            kinds = [key[0] for key in [*await database.queued(), *await database.keys("d/")]]
        assert await engine.repair(ref.execution) == await other.repair(ref.execution) == 0
        assert await engine.repair() == await other.repair() == 0
        described = await other.describe(ref.execution)
        assert {task.kind: task.failures for node in described.nodes for task in node.tasks}[
            Lasting("call").kind
        ] == 1
        free.set()
        await engine.drain()


async def test_lost_row_of_a_task_in_memory_is_written_anew(
    world: World, database: Database, clock: FakeClock
) -> None:
    free = asyncio.Event()

    async def hang(env: Environment, ref: Ref, task: Lasting) -> None:
        if task.name == "first":
            await free.wait()
        await noted(env, ref, task)

    world.on(Lasting, hang)
    options = small(poll_interval=SECOND, concurrency=1, task_timeout=None)
    async with TestEngine(world.registry, database.store, options, clock=clock) as engine:
        ref = await started(
            engine, "job", Lasting("first"), Lasting("second"), Ring("ring", clock.now() + HOUR)
        )
        assert await lose(database, "o/", "t/") == 3
        assert await engine.repair(ref.execution) == 3
        await database.check()
        free.set()
        await engine.drain()
        await engine.skip(2 * SECOND)
        assert sorted(await engine.read(ref, log)) == ["first", "second"]
        await engine.skip(HOUR)
        assert sorted(await engine.read(ref, log)) == ["first", "ring", "second"]
    assert await database.queued() == []


async def test_task_that_ends_while_it_is_looked_for_is_not_written_anew(
    world: World, database: Database
) -> None:
    async with TestEngine(world.registry, database.store, small(), run_tasks=False) as engine:
        ref = await started(engine, "job", Lasting("call"))
    store = FaultyStore(database.store)
    async with (
        TestEngine(world.registry, store, small(), run_tasks=False) as other,
        TestEngine(world.registry, database.store, small(), run_tasks=False) as writer,
    ):
        await lose(database, "o/")

        async def end(call: StoreCall) -> None:
            if call.method == "multi":
                store.before = None
                await writer.update(ref, note("end"))

        store.before = end
        assert await other.repair(ref.execution) == 0
    assert await database.queued() == []


async def test_two_processes_that_find_one_row_missing_write_it_once(
    world: World, database: Database, clock: FakeClock
) -> None:
    store = FaultyStore(database.store)
    async with (
        TestEngine(world.registry, store, small(), clock=clock, run_tasks=False) as one,
        TestEngine(world.registry, database.store, small(), clock=clock, run_tasks=False) as other,
    ):
        ref = await started(other, "job", Lasting("call"), Soon("soon"))
        assert await lose(database, "o/", "i/") == 2

        async def be_faster(call: StoreCall) -> None:
            if call.method == "multi":
                store.before = None
                clock.advance(SECOND)
                assert await other.repair(ref.execution) == 2

        store.before = be_faster
        assert await one.repair(ref.execution) == 0
        assert len(await database.queued()) == 2
        await database.check()


async def test_tasks_below_an_unknown_type_of_machine_are_repaired_too(database: Database) -> None:
    known, unknown = World(), World(without=(Step,))
    async with TestEngine(known.registry, database.store, small(), run_tasks=False) as engine:
        ref = await started(engine)
        await engine.update(ref, lambda root: ask(Lasting("x"))(root.add_child(step("a"), Step())))
        await lose(database, "o/")
    async with TestEngine(unknown.registry, database.store, small(), run_tasks=False) as engine:
        assert await engine.repair(ref.execution) == 1
    async with TestEngine(known.registry, database.store, small()) as engine:
        await engine.drain()
        assert await engine.read(Ref(ref.execution, (step("a"),)), log) == ["x"]


async def test_terminated_execution_has_lost_nothing(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store, small(), run_tasks=False) as engine:
        ref = await started(engine, "job", Lasting("call"))
        await engine.terminate(ref.execution)
        assert await engine.repair(ref.execution) == await engine.repair() == 0
    assert await database.queued() == []


async def test_execution_that_is_not_there_cannot_be_repaired(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store, small()) as engine:
        with pytest.raises(ExecutionNotFoundError):
            await engine.repair(job())


@settings(max_examples=25)
@given(data=st.data())
async def test_whatever_is_lost_runs_once_after_a_repair(data: st.DataObject) -> None:
    world, clock = World(), FakeClock()
    async with Database(f"memory://repair-{id(data)}-{data.draw(st.integers(0, 2**60))}") as database:
        async with TestEngine(
            world.registry, database.store, small(), clock=clock, run_tasks=False
        ) as engine:
            refs = [await started(engine, str(number), Soon("soon"), Lasting("call")) for number in range(4)]
            keys = await database.queued()
            for key in data.draw(st.lists(st.sampled_from(keys), unique=True)):
                await database.remove(key)
        async with TestEngine(world.registry, database.store, small(), clock=clock) as engine:
            await engine.repair()
            await engine.drain()
            assert [sorted(await engine.read(ref, log)) for ref in refs] == [["call", "soon"]] * 4
            assert len(world.runs) == 8
        assert await database.queued() == []


# Dead letters and singletons


async def test_dead_letter_does_not_stand_for_the_next_singleton(world: World, database: Database) -> None:
    world.on(First, failing(TerminalError("x"), None))
    async with TestEngine(world.registry, database.store, small()) as engine:
        ref = await started(engine, "job", First("first"))
        await engine.drain()
        await engine.update(ref, ask(First("second"), First("third")))
        await engine.drain()
        assert await engine.read(ref, log) == ["second"]
        assert await pending(engine, ref) == ["first"]


async def test_replayed_singleton_stands_for_the_next_one_again(world: World, database: Database) -> None:
    world.on(First, failing(TerminalError("x"), OSError("once"), None))
    async with TestEngine(world.registry, database.store, small(backoff=HOURLY)) as engine:
        ref = await started(engine, "job", First("first"))
        await engine.drain()
        (dead,) = [dead async for dead in engine.dead_letters()]
        await engine.replay(dead)
        await engine.drain()
        await engine.update(ref, ask(First("ignored")))
        await engine.run_until_idle()
        assert await engine.read(ref, log) == ["first"]
        assert await pending(engine, ref) == []


async def test_replacing_a_dead_singleton_leaves_the_new_one_alone(world: World, database: Database) -> None:
    world.on(Newest, failing(TerminalError("x"), None))
    async with TestEngine(world.registry, database.store, small()) as engine:
        ref = await started(engine, "job", Newest("old"))
        await engine.drain()
        await engine.update(ref, ask(Newest("new")))
        await engine.drain()
        assert await engine.read(ref, log) == ["new"]
        (dead,) = [dead async for dead in engine.dead_letters()]
        await engine.replay(dead)
        await engine.drain()
        assert await engine.read(ref, log) == ["new"]
    assert await database.queued() == []


async def test_death_of_a_task_is_written_with_its_machine_or_without_it(
    world: World, database: Database
) -> None:
    """An execution that is gone keeps nothing from being dead-lettered, nor from being replayed."""
    world.on(Lasting, failing(TerminalError("x")))
    async with TestEngine(world.registry, database.store, small(), run_tasks=False) as engine:
        await started(engine, "job", Lasting("call"))
    ((partition, item),) = await database.rows("e/")
    async with TestEngine(world.registry, database.store, small()) as engine:
        await engine.drain()
        ((_, letter),) = await database.rows("d/")
        assert DeadLetterRow.FromString(letter.value).task.failures == 1
        (dead,) = [dead async for dead in engine.dead_letters()]
    await database.store.delete(DeleteRequest(partition=partition, key=item.key))
    async with TestEngine(world.registry, database.store, small()) as engine:
        await engine.replay(dead)
        await engine.drain()
    assert await database.queued() == []
    assert await database.keys("d/") == []


async def test_lost_rows_are_found_when_their_execution_is_read(
    world: World, database: Database, clock: FakeClock
) -> None:
    async with TestEngine(world.registry, database.store, small(), clock=clock, run_tasks=False) as engine:
        ref = await everything(engine, clock)
        lost = await lose(database, "i/", "t/", "o/")
        assert lost == 8
    async with TestEngine(world.registry, database.store, small(), clock=clock) as engine:
        await engine.drain()
        assert world.runs == []
        await engine.read(ref, log)
        await engine.drain()
        await database.check()
        assert sorted(world.names()) == ["call", "call", "soon", "soon"]
        await engine.skip(HOUR)
        assert len(world.runs) == 8
    assert await database.queued() == []
    await database.check()


async def test_rows_that_were_lost_during_a_pause_are_found_when_it_is_over(
    world: World, database: Database
) -> None:
    async with TestEngine(world.registry, database.store, small(), run_tasks=False) as engine:
        ref = await started(engine, "job", Lasting("call"))
        other = await started(engine, "other")
        await engine.pause(ref.execution)
        await lose(database, "o/")
    async with TestEngine(world.registry, database.store, small(cached_executions=1)) as engine:
        await engine.drain()
        await engine.read(ref, log)
        await engine.resume(ref.execution)
        await engine.read(other, log)
        await engine.read(ref, log)
        await engine.drain()
        assert await engine.read(ref, log) == ["call"]
    assert await database.queued() == []


async def test_reading_an_execution_looks_for_rows_once_and_only_where_they_may_be_lost(
    world: World, database: Database, clock: FakeClock
) -> None:
    store = FaultyStore(database.store)
    looked: list[StoreCall] = []

    async def watch(call: StoreCall) -> None:
        if call.method == "bulk_get":
            looked.append(call)

    async with TestEngine(world.registry, database.store, small(), clock=clock, run_tasks=False) as engine:
        ref = await started(engine, "job", Soon("soon"), Alarm("alarm", clock.now() + HOUR))
        other = await started(engine, "other", Soon("soon"))
    world.on(Soon, failing(BusyError("not now")))
    store.before = watch
    options = small(cached_executions=1)
    async with TestEngine(world.registry, store, options, clock=clock) as engine:
        await engine.drain()
        for _ in range(3):
            await engine.read(ref, log)
            await engine.read(other, log)
        await engine.drain()
        # Every one of their tasks is in memory.
        assert looked == []
    looked.clear()
    options = small(repair_loaded=False)
    await lose(database, "i/", "t/")
    async with TestEngine(world.registry, store, options, clock=clock) as engine:
        await engine.read(ref, log)
        await engine.drain()
        assert looked == []
        assert await database.queued() == []
    async with TestEngine(world.registry, store, small(cached_executions=1), clock=clock) as engine:
        for _ in range(5):
            await engine.read(ref, log)
            await engine.drain()
            await engine.read(other, log)
            await engine.drain()
        # Each execution was looked at once, and once more by the repair that came of it, in two reads.
        assert len(looked) == 2 * 3


async def test_tasks_in_a_pause_beyond_memory_are_not_taken_for_lost(
    world: World, database: Database, clock: FakeClock
) -> None:
    """Their rows are anywhere among the timers, of which not all are in memory."""
    world.on(Lasting, failing(RuntimeError("no")))
    options = small(shard_count=1, queue_buffer=3, timer_window=4, backoff=HOURLY, cached_executions=2)
    async with TestEngine(world.registry, database.store, options, clock=clock) as engine:
        refs = [
            await started(engine, str(number), *(Lasting(f"{number}{letter}") for letter in "abc"))
            for number in range(6)
        ]
        await engine.drain()
        for ref in refs * 2:
            await engine.read(ref, log)
            await engine.drain()
        await database.check()
        assert len(await database.queued()) == 18
    async with TestEngine(world.registry, database.store, options, clock=clock) as engine:
        for ref in refs:
            await engine.read(ref, log)
            await engine.drain()
        await database.check()
        assert len(await database.queued()) == 18
        assert len(world.runs) == 18
