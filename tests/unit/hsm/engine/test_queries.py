"""Listings, one tree in full, and waiting for a state."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from hsm import (
    ExecutionKey,
    ExecutionNotFoundError,
    Lifecycle,
    MachineType,
    Node,
    OutboundKind,
    Ref,
    Registry,
)
from hsm.engine import NodeInfo
from hsm.testing import FakeClock, FaultyStore, TestEngine
from tests.support.databases import Database
from tests.support.jobs import (
    Job,
    Lasting,
    State,
    Step,
    World,
    ask,
    finish,
    job,
    log,
    note,
    small,
    started,
    step,
)

SECOND = timedelta(seconds=1)


async def ids(engine: TestEngine, **filters: Any) -> list[str]:
    found = [info.key.id async for info in engine.list(**filters)]
    assert len(found) == await engine.count(**filters)
    return sorted(found)


async def test_executions_are_listed_by_namespace_status_and_state(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store, small(shard_count=4)) as engine:
        for id_ in ("a", "b", "c", "d"):
            await started(engine, id_)
        await engine.start(ExecutionKey("tests2", "other"), Job())
        await engine.update(Ref(job("b")), finish())
        await engine.update(Ref(job("c")), finish(State.FAILED))

        assert await ids(engine) == ["a", "b", "c", "d", "other"]
        assert await ids(engine, namespace="tests") == ["a", "b", "c", "d"]
        assert await ids(engine, namespace="test") == []
        assert await ids(engine, status=Lifecycle.RUNNING) == ["a", "d", "other"]
        assert await ids(engine, namespace="tests", status=Lifecycle.COMPLETED) == ["b"]
        assert await ids(engine, status=Lifecycle.FAILED) == ["c"]
        assert await ids(engine, state="DONE") == ["b"]
        assert await ids(engine, state="OPEN", namespace="tests2") == ["other"]


async def test_listing_tells_when_an_execution_started_and_closed(
    world: World, database: Database, clock: FakeClock
) -> None:
    async with TestEngine(world.registry, database.store, clock=clock) as engine:
        start = clock.now()
        ref = await started(engine)
        await engine.skip(SECOND)
        (info,) = [info async for info in engine.list()]
        assert (info.key, info.status, info.state) == (ref.execution, Lifecycle.RUNNING, "OPEN")
        assert (info.start_time, info.close_time) == (start, None)

        await engine.update(ref, finish())
        await engine.skip(SECOND)
        await engine.update(ref, note("a closed execution can be written"))
        (info,) = [info async for info in engine.list()]
        assert (info.status, info.state) == (Lifecycle.COMPLETED, "DONE")
        assert (info.start_time, info.close_time) == (start, start + SECOND)

        await engine.update(ref, finish(State.OPEN))
        (info,) = [info async for info in engine.list()]
        assert (info.status, info.close_time) == (Lifecycle.RUNNING, None)


async def test_tree_is_described_with_all_its_machines_and_tasks(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store, run_tasks=False) as engine:
        ref = await started(engine)
        await engine.update(ref, lambda root: ask(Lasting("call"))(root.add_child(step("a"), Step())))
        tree = await engine.describe(job())

        root, child = tree.nodes
        assert tree.info.key == ref.execution
        assert root == NodeInfo((), MachineType(1, "job"), "OPEN", 0, str(Job()), ())
        assert (child.path, child.machine_type.name, child.transition_count) == ((step("a"),), "step", 1)
        (task,) = child.tasks
        assert (task.name, task.kind, task.failures) == ("lasting", OutboundKind("there"), 0)
        with pytest.raises(ExecutionNotFoundError):
            await engine.describe(job("nobody"))


async def test_tree_with_many_tasks_is_described_by_a_few_reads(world: World, database: Database) -> None:
    def build(root: Node) -> None:
        for number in range(40):
            ask(Lasting("call"))(root.add_child(step(str(number)), Step()))

    store = FaultyStore(database.store)
    async with TestEngine(world.registry, store, run_tasks=False) as engine:
        await engine.update(await started(engine), build)
        before = store.calls
        tree = await engine.describe(job())
        assert store.calls - before < 10
        assert [len(node.tasks) for node in tree.nodes] == [0, *[1] * 40]


async def test_tree_of_types_that_are_not_registered_is_described_as_far_as_it_can_be(
    world: World, database: Database
) -> None:
    async with TestEngine(world.registry, database.store, run_tasks=False) as engine:
        ref = await started(engine)
        await engine.update(ref, lambda root: ask(Lasting("call"))(root.add_child(step("a"), Step())))
    async with TestEngine(Registry(), database.store, run_tasks=False) as engine:
        root, child = (await engine.describe(job())).nodes
        assert (root.machine_type, root.state) == (MachineType(1, "1"), "OPEN")
        assert (child.path, child.state, child.transition_count) == ((step("a"),), "", 1)
        assert child.data.endswith(" bytes, of a type that is not registered")
        (task,) = child.tasks
        assert (task.name, task.kind) == (str(Lasting.type.id), OutboundKind("there"))


async def test_wait_returns_when_it_holds(world: World, database: Database) -> None:
    def done(node: Node) -> bool:
        return "done" in log(node)

    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine)
        waiting = asyncio.create_task(engine.wait(ref, done))
        await engine.update(ref, note("not yet"))
        await asyncio.sleep(0)
        assert not waiting.done()
        await engine.update(ref, note("done"))
        found = await waiting
        assert found.transition_count == 2
        assert await engine.wait(Ref(job()), done) == found
        assert await engine.update(found, log) == ["not yet", "done"]
        assert len(engine._waiters) == 0


async def test_wait_sees_what_another_process_does(
    world: World, database: Database, clock: FakeClock
) -> None:
    options = small(poll_interval=SECOND)
    async with (
        TestEngine(world.registry, database.store, options, clock=clock) as engine,
        TestEngine(world.registry, await database.open(), clock=clock, run_tasks=False) as other,
    ):
        ref = await started(engine)
        waiting = asyncio.create_task(engine.wait(ref, lambda node: bool(log(node))))
        await engine.skip(SECOND)
        await other.update(ref, note("x"))
        while not waiting.done():
            clock.advance(SECOND)
            await asyncio.sleep(0.001)
        await waiting


async def test_wait_gives_up_by_the_clock(world: World, database: Database, clock: FakeClock) -> None:
    async with TestEngine(world.registry, database.store, clock=clock) as engine:
        ref = await started(engine)
        waiting = asyncio.create_task(engine.wait(ref, lambda _: False, timeout=timedelta(days=1)))
        await engine.skip(timedelta(hours=23))
        assert not waiting.done()
        await engine.skip(timedelta(hours=2))
        with pytest.raises(TimeoutError):
            await waiting
        with pytest.raises(ExecutionNotFoundError):
            await engine.wait(Ref(job("nobody")), lambda _: True)
        assert len(engine._waiters) == 0
