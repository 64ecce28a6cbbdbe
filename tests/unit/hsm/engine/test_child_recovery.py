"""Child executions: one is started, and its end heard of once, whatever crashes, stands still or gets lost."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta

import pytest

from hsm import (
    ExecutionKey,
    Lifecycle,
    Ref,
    Registry,
    StorageUnavailableError,
)
from hsm.engine import (
    ChildState,
    EngineOptions,
)
from hsm.testing import Call as StoreCall, FakeClock, FaultyStore, TestEngine
from persistence.store import DeleteRequest
from tests.support.databases import Database
from tests.support.families import (
    BOSS,
    CANCEL,
    CLOSED,
    LAZY,
    Boss,
    Worker,
    child_states,
    dead,
    divided,
    end,
    family_registry,
    heard,
    hire,
    started_by,
    statuses,
    work_off,
)
from tests.support.jobs import small


@pytest.fixture
def registry() -> Registry:
    return family_registry()


@pytest.mark.parametrize("carried_out", [True, False])
@pytest.mark.parametrize("write", range(1, 12))
async def test_one_child_is_started_and_reported_once_wherever_the_process_dies(
    registry: Registry, database: Database, clock: FakeClock, write: int, carried_out: bool
) -> None:
    store = FaultyStore(database.store)
    async with TestEngine(registry, store, small(), clock=clock, run_tasks=False) as engine:
        await engine.start(BOSS, Boss())
    before = store.writes
    async with TestEngine(registry, store, small(), clock=clock) as engine:
        first = store.writes
        store.cut_off_at(first + write, carried_out=carried_out)
        with_error = asyncio.gather(engine.update(Ref(BOSS), hire("a")), return_exceptions=True)
        await with_error
        with_timeout = asyncio.create_task(store.until_cut_off())
        await asyncio.wait([with_timeout], timeout=0.2)
        with_timeout.cancel()
        store.cut_off()
    assert store.writes > before
    async with TestEngine(registry, database.store, small(), clock=clock) as engine:
        if not await engine.children(BOSS):
            await engine.update(Ref(BOSS), hire("a"))
        await engine.run_until_idle()
        assert await heard(engine) == ["a COMPLETED DONE"]
        assert await engine.count() == 2
        (child,) = await engine.children(BOSS)
        assert await engine.read(Ref(child.child.execution), lambda node: node.data(Worker).started) == 1
        assert await dead(engine) == []
    assert await database.queued() == []
    await database.check()


async def test_parent_that_is_terminated_while_its_child_is_being_started(
    registry: Registry, database: Database
) -> None:
    """The task that starts it is on its way, and comes too late."""
    store = FaultyStore(database.store)
    async with TestEngine(registry, store) as engine:
        await engine.start(BOSS, Boss())

        async def terminate_first(call: StoreCall) -> None:
            if (started_by(call) or "").startswith("c/tests/boss%2F"):
                store.before = None
                await engine.terminate(BOSS)
                while (await statuses(engine)).get("a") is not Lifecycle.TERMINATED:  # noqa: ASYNC110 - by a process that tells nobody
                    await asyncio.sleep(0)

        store.before = terminate_first
        await engine.update(Ref(BOSS), hire("a"))
        await engine.run_until_idle()
        assert await statuses(engine) == {"a": Lifecycle.TERMINATED}
        assert await engine.count() == 2
        assert await dead(engine) == []
    assert await database.queued() == []


@pytest.mark.parametrize("dies", [False, True])
async def test_child_that_is_started_when_its_parent_was_told_otherwise_ends(
    registry: Registry, database: Database, clock: FakeClock, dies: bool
) -> None:
    """A process is stopped before it starts a child, another one finds the name taken, and then it is free."""
    taken = ExecutionKey("tests", "taken")
    store, standing_still = FaultyStore(database.store), FakeClock(clock.now())
    stopped, continued = asyncio.Event(), asyncio.Event()

    async def stop(call: StoreCall) -> None:
        if started_by(call) == "c/tests/taken":
            store.before = None
            if dies:
                store.cut_off_at(call.write, carried_out=True)
            stopped.set()
            await continued.wait()

    async with TestEngine(registry, store, small(), clock=standing_still) as engine:
        store.before = stop
        await engine.start(BOSS, Boss(), on_start=hire("a", key=taken, data=LAZY))
        await stopped.wait()
        # It stands still for so long that its lease runs out.
        async for item in database.store.scan("exec", "m/", "m0"):
            await database.store.delete(DeleteRequest(partition="exec", key=item.key))
        async with TestEngine(registry, database.store, small(), clock=clock) as other:
            await other.start(taken, Worker(works=False))
            await other.skip(timedelta(hours=12))
            assert await heard(other) == ["a NOT STARTED"]
            await other.delete(taken, force=True)
        continued.set()
        if dies:
            await store.until_cut_off()
        else:
            await engine.skip(timedelta(hours=24))
    async with TestEngine(registry, database.store, small(), clock=clock) as engine:
        await engine.skip(timedelta(hours=24))
        assert await heard(engine) == ["a NOT STARTED"]
        child = (await engine.describe(taken)).info
        assert child.status is Lifecycle.TERMINATED
        assert child.close_reason == "its parent tests/boss does not wait for it"
        assert await child_states(engine) == [CLOSED]
        assert await dead(engine) == []
    assert await database.queued() == []
    await database.check()


async def test_child_that_has_ended_with_its_parent_is_not_started_again(
    registry: Registry, database: Database, clock: FakeClock
) -> None:
    """The end of another child has to be tried again, and again, when this one is long forgotten."""
    options = small(retention=timedelta(seconds=1), poll_interval=timedelta(seconds=1), max_attempts=100)
    store = FaultyStore(database.store)
    async with TestEngine(registry, database.store, options, clock=clock, run_tasks=False) as engine:
        boss = await engine.start(BOSS, Boss(), on_start=hire("a", data=LAZY, policy=CANCEL))
        await engine.update(boss, hire("b", data=LAZY, policy=CANCEL))
        await engine.terminate(BOSS)
    begun: list[str] = []

    async def refuse_b(call: StoreCall) -> None:
        name = started_by(call)
        if name is not None:
            begun.append("a" if "%2Fa%2F" in name else "b")
            if 0 < begun.count("b") < 5:
                raise RuntimeError("b is not to be started yet")

    store.before = refuse_b
    async with TestEngine(registry, store, options, clock=clock) as engine:
        await engine.skip(timedelta(hours=4))
        assert sorted(begun) == ["a", *"bbbbb"]
        assert await engine.count() == 0
        assert await dead(engine) == []
    assert await database.queued() == []


async def test_lost_rows_of_families_are_written_anew(registry: Registry, database: Database) -> None:
    async with TestEngine(registry, database.store, run_tasks=False) as engine:
        await engine.start(BOSS, Boss(), on_start=hire("a", data=LAZY))
        for key in await database.queued():
            await database.remove(key)
    async with TestEngine(registry, database.store) as engine:
        assert await engine.repair() == 1
        await engine.drain()
        assert await child_states(engine) == [ChildState.STARTED]
    async with TestEngine(registry, database.store, run_tasks=False) as engine:
        await engine.terminate(BOSS)
        (key,) = await database.queued()
        await database.remove(key)
    async with TestEngine(registry, database.store) as engine:
        assert await engine.repair() == 1
        await engine.drain()
        assert await statuses(engine) == {"a": Lifecycle.TERMINATED}


async def test_lost_rows_of_a_child_are_written_anew(registry: Registry, database: Database) -> None:
    """Those of the tasks by which it makes sure of its parent, and tells of its end."""
    async with TestEngine(registry, database.store) as engine:
        await engine.start(BOSS, Boss())
        await engine.pause(BOSS)
        await engine.update(Ref(BOSS), hire("a", data=LAZY))
        await engine.drain()
    store = FaultyStore(database.store)
    async with TestEngine(registry, store) as engine:

        async def cut_off(call: StoreCall) -> None:
            if started_by(call):
                store.cut_off_at(call.write, carried_out=True)

        store.before = cut_off
        with contextlib.suppress(StorageUnavailableError):
            await engine.resume(BOSS)
        await store.until_cut_off()
    for lost in ("hsm.ConfirmStart", "hsm.ReportClose"):
        async with TestEngine(registry, database.store, run_tasks=False) as engine:
            (child,) = [info.key async for info in engine.list() if info.key.id != "boss"]
            if lost == "hsm.ReportClose":
                await engine.update(Ref(child), end())
            (root,) = (await engine.describe(child)).nodes
            assert [task.name for task in root.tasks] == [lost]
            await database.remove(next(key for key in await database.queued() if root.tasks[0].id in key))
        async with TestEngine(registry, database.store) as engine:
            assert await engine.repair() == 1
            await engine.run_until_idle()
    assert await database.queued() == []
    await database.check()
    async with TestEngine(registry, database.store) as engine:
        assert await heard(engine) == ["a COMPLETED DONE"]


async def test_families_are_spread_over_processes_and_shards(
    registry: Registry, database: Database, clock: FakeClock
) -> None:
    options = EngineOptions(shard_count=8)
    async with (
        TestEngine(registry, database.store, options, clock=clock) as one,
        TestEngine(registry, await database.open(), options, clock=clock) as other,
    ):
        await divided(clock, one, other)
        names = [str(number) for number in range(30)]
        await one.start(BOSS, Boss(), on_start=hire(*names))
        await work_off(clock, database)
        assert sorted(await heard(other)) == sorted(f"{name} COMPLETED DONE" for name in names)
        assert await one.count() == 31


async def test_parent_knows_of_its_children_also_where_an_older_tree_of_it_is_in_memory(
    registry: Registry, database: Database, clock: FakeClock
) -> None:
    options = EngineOptions(shard_count=8)
    async with (
        TestEngine(registry, database.store, options, clock=clock) as one,
        TestEngine(registry, await database.open(), options, clock=clock) as other,
    ):
        await divided(clock, one, other)
        for engine in (one, other):
            await engine.start(BOSS, Boss(), request_id="once")
            await engine.read(Ref(BOSS), lambda _: None)
        # Some of the children are run by the other one, which has not seen the parent since.
        owner = one if one._executions.partition(BOSS) in one._shards.loader else other
        await owner.update(Ref(BOSS), hire(*map(str, range(12)), data=LAZY))
        await work_off(clock, database)
        assert await child_states(owner) == 12 * [ChildState.STARTED]
