"""Deleting executions: from one moment on nobody finds them, and in the end no row is left."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from hsm import (
    Environment,
    ExecutionNotFoundError,
    ExecutionRunningError,
    Node,
    Ref,
    StorageUnavailableError,
    TerminalError,
)
from hsm.engine import Engine, ReusePolicy
from hsm.testing import FaultyStore, TestEngine
from tests.support.databases import Database
from tests.support.jobs import (
    Alarm,
    Call,
    Job,
    Lasting,
    Soon,
    State,
    Step,
    World,
    ask,
    failing,
    finish,
    job,
    log,
    note,
    small,
    started,
    step,
)

SECOND = timedelta(seconds=1)
DAY = timedelta(days=1)
FAR = datetime(2100, 1, 1, tzinfo=UTC)
ROWS = ("c/", "d/", "e/", "h/", "i/", "n/", "o/", "p/", "q/", "t/", "x/", "z/")


async def ids(engine: Engine) -> list[str]:
    return sorted([info.key.id async for info in engine.list()])


def grow(node: Node) -> None:
    """Some children with timers that are far away."""
    for number in range(5):
        child = node.add_child(step(str(number)), Step())
        note("made", Alarm("alarm", FAR))(child)


async def test_nothing_is_left_of_a_deleted_execution(world: World, database: Database) -> None:
    world.on(Lasting, failing(TerminalError("dead")))
    async with TestEngine(world.registry, database.store, small(delete_rows=2)) as engine:
        ref = await engine.start(job(), Job(), on_start=note("start", Lasting("dies")))
        await engine.update(ref, grow)
        await engine.drain()
        await engine.pause(job())
        await engine.update(ref, ask(Soon("parked")))
        await engine.drain()
        await engine.update(ref, finish())
        assert len(await database.keys("d/", "q/")) == 2

        await engine.delete(job())
        assert await database.keys(*ROWS) == []
        assert await ids(engine) == []
        for one in (ref, Ref(job())):
            with pytest.raises(ExecutionNotFoundError):
                await engine.read(one, log)
            with pytest.raises(ExecutionNotFoundError):
                await engine.update(one, note("late"))


async def test_others_are_not_touched(world: World, database: Database) -> None:
    world.on(Lasting, failing(TerminalError("dead")))
    async with TestEngine(world.registry, database.store, small(shard_count=1)) as engine:
        for id_ in ("job", "job2", "jo", "a/b"):
            ref = await engine.start(job(id_), Job(), on_start=note("start", Lasting("dies")))
            await engine.update(ref, grow)
            await engine.drain()
        await engine.delete(job(), force=True)

        assert await ids(engine) == ["a/b", "jo", "job2"]
        assert len(await database.keys("d/")) == 3
        assert len(await database.keys("n/")) == len(await database.keys("t/")) == 15
        await database.check()


async def test_running_execution_is_deleted_only_by_force(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        await started(engine)
        with pytest.raises(ExecutionRunningError, match="tests/job"):
            await engine.delete(job())
        await engine.delete(job(), force=True)
        assert await ids(engine) == []
        with pytest.raises(ExecutionNotFoundError):
            await engine.delete(job())


async def test_id_of_a_deleted_execution_is_free(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        await engine.start(job(), Job(), request_id="r")
        await engine.delete(job(), force=True)
        await engine.start(job(), Job(log=["new"]), request_id="r")
        assert await engine.read(Ref(job()), log) == ["new"]


async def test_older_run_is_deleted_without_the_current_one(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        old = await started(engine)
        await engine.update(old, finish())
        new = await engine.start(job(), Job(), reuse=ReusePolicy.ALLOW)
        await engine.delete(old.execution)

        assert await engine.read(Ref(job()), log) == []
        assert [info.key async for info in engine.list()] == [new.execution]


async def test_another_process_finds_it_no_more(world: World, database: Database) -> None:
    async with (
        TestEngine(world.registry, database.store) as engine,
        TestEngine(world.registry, await database.open(), run_tasks=False) as other,
    ):
        ref = await started(engine)
        await other.delete(job(), force=True)
        with pytest.raises(ExecutionNotFoundError):
            await engine.update(ref, note("late"))
        with pytest.raises(ExecutionNotFoundError):
            await engine.read(ref, log)
    assert await database.keys(*ROWS) == []


async def test_task_that_runs_while_its_execution_is_deleted_is_dropped(
    world: World, database: Database
) -> None:
    running, going_on = asyncio.Event(), asyncio.Event()

    async def slow(env: Environment, ref: Ref, task: Call) -> None:
        running.set()
        await going_on.wait()
        await env.update(ref, note("late"))

    world.on(Call, slow)
    async with TestEngine(world.registry, database.store) as engine:
        await started(engine, "job", Call("call"))
        await running.wait()
        await engine.delete(job(), force=True)
        going_on.set()
        await engine.drain()
        assert world.names() == ["call"]
    assert await database.keys(*ROWS) == []


async def test_task_that_fails_for_good_after_its_execution_was_deleted_leaves_no_dead_letter(
    world: World, database: Database
) -> None:
    async with TestEngine(world.registry, database.store) as engine:

        async def delete_and_die(env: Environment, ref: Ref, task: Call) -> None:
            if ref.attempt == 1:
                # Its row is elsewhere from now on, where no deletion looks for it.
                raise OSError("try again")
            await engine.delete(job(), force=True)
            raise TerminalError("too late")

        world.on(Call, delete_and_die)
        await started(engine, "job", Call("call"))
        await engine.skip(timedelta(minutes=1))
        assert world.names() == ["call", "call"]
    assert await database.keys(*ROWS) == []


@pytest.mark.parametrize("carried_out", [False, True])
@pytest.mark.parametrize("write", range(1, 6))
async def test_deletion_that_is_cut_off_is_completed_by_the_next_process(
    world: World, database: Database, write: int, carried_out: bool
) -> None:
    async with TestEngine(world.registry, database.store, run_tasks=False) as engine:
        ref = await started(engine, "job", Alarm("alarm", engine.now() + DAY))
        await engine.update(ref, grow)
    store = FaultyStore(await database.open())
    async with TestEngine(world.registry, store, run_tasks=False) as engine:
        store.cut_off_at(store.writes + write, carried_out=carried_out)
        gone = True
        try:
            await engine.delete(job(), force=True)
        except StorageUnavailableError:
            gone = carried_out
        store.reconnect()
        assert await ids(engine) == ([] if gone else ["job"])
    async with TestEngine(world.registry, database.store) as engine:
        await engine.drain()
        if not gone:
            await engine.delete(job(), force=True)
    assert await database.keys(*ROWS) == []


async def test_execution_of_a_type_that_nobody_knows_is_deleted(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        await started(engine, "job", Alarm("alarm", FAR))
    async with TestEngine(World(without=(Job, Alarm)).registry, database.store) as engine:
        await engine.delete(job(), force=True)
    assert await database.keys(*ROWS) == []


# Retention


async def test_execution_that_cannot_be_read_does_not_keep_others_from_being_deleted(
    world: World, database: Database
) -> None:
    async with TestEngine(world.registry, database.store, small(retention=DAY, shard_count=1)) as engine:
        for id_ in ("broken", "closed"):
            await engine.update(await started(engine, id_), finish())
        await database.overwrite("e/tests/broken/", b"\xff")
        await engine.skip(2 * DAY)
        assert await ids(engine) == ["broken"]


async def test_closed_execution_is_deleted_when_its_time_is_over(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store, small(retention=DAY)) as engine:
        for id_ in ("closed", "terminated", "running"):
            await started(engine, id_)
        await engine.update(Ref(job("closed")), finish(State.FAILED))
        await engine.terminate(job("terminated"))
        await engine.skip(DAY - timedelta(hours=2))
        assert len(await ids(engine)) == 3
        await engine.skip(timedelta(hours=4))
        assert await ids(engine) == ["running"]
        assert await database.keys("x/", "z/") == []


async def test_closed_execution_that_is_not_to_be_kept_is_deleted_at_once(
    world: World, database: Database
) -> None:
    options = small(retention=timedelta(), poll_interval=timedelta(minutes=1))
    async with TestEngine(world.registry, database.store, options) as engine:
        ref = await started(engine)
        await engine.update(ref, finish())
        await engine.skip(timedelta(minutes=2))
        assert await ids(engine) == []
        assert await database.keys("e/", "x/", "z/") == []


async def test_execution_that_was_opened_again_is_kept(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store, small(retention=DAY)) as engine:
        ref = await started(engine)
        await engine.update(ref, finish())
        await engine.skip(timedelta(hours=3))
        await engine.update(ref, finish(State.OPEN))
        assert await database.keys("x/") == []
        await engine.skip(3 * DAY)
        assert await ids(engine) == ["job"]

        await engine.update(ref, finish())
        await engine.skip(DAY - timedelta(hours=2))
        assert await ids(engine) == ["job"]
        await engine.skip(timedelta(hours=4))
        assert await ids(engine) == []


async def test_retention_survives_a_restart(world: World, database: Database) -> None:
    options = small(retention=DAY)
    async with TestEngine(world.registry, database.store, options) as engine:
        for number in range(150):
            ref = await started(engine, str(number))
            await engine.update(ref, finish())
        clock = engine.clock
    async with TestEngine(world.registry, database.store, options, clock=clock) as engine:
        await engine.skip(DAY + timedelta(hours=2))
        assert await ids(engine) == []
    assert await database.keys(*ROWS) == []


async def test_without_retention_nothing_is_deleted(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine)
        await engine.update(ref, finish())
        await engine.skip(400 * DAY)
        assert await ids(engine) == ["job"]
        assert await database.keys("x/") == []
