"""Queues: one destination never delays another, so many at once, and what does not fit is read later."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from hsm import Environment, ExecutionKey, Ref
from hsm.testing import Call as StoreCall, FakeClock, FaultyStore, TestEngine
from tests.support.databases import Database
from tests.support.jobs import Call, First, Job, Lasting, Soon, World, ask, log, noted, small, started

HOUR = timedelta(hours=1)


class Gate:
    """An executor that holds tasks of chosen destinations until it is opened, and counts them."""

    def __init__(self, *held: str) -> None:
        self.held = set(held)
        self.open = asyncio.Event()
        self.inside = 0
        self.most = 0

    async def __call__(self, env: Environment, ref: Ref, task: Lasting) -> None:
        self.inside += 1
        self.most = max(self.most, self.inside)
        if task.destination in self.held:
            await self.open.wait()
        else:
            await asyncio.sleep(0)
        self.inside -= 1
        await noted(env, ref, task)


async def until(engine: TestEngine, world: World, count: int) -> None:
    """Let the engine work until so many runs have begun."""
    for _ in range(2000):
        if len(world.runs) >= count:
            break
        await asyncio.sleep(0.001)  # SQLite answers from a thread
    for _ in range(20):
        await asyncio.sleep(0)


async def test_hanging_destination_delays_no_other(world: World, database: Database) -> None:
    gate = Gate("hangs")
    world.on(Lasting, gate)
    options = small(concurrency=2, queue_buffer=3)
    async with TestEngine(world.registry, database.store, options) as engine:
        for number in range(10):
            await started(engine, f"h{number}", Lasting("h", destination="hangs"))
        refs = [
            await started(engine, f"o{number}", Lasting("o", destination="works")) for number in range(10)
        ]
        await until(engine, world, 12)
        assert world.names().count("h") == 2
        assert [await engine.read(ref, log) for ref in refs] == [["o"]] * 10
        assert len(engine._dispatcher) <= 3
        gate.open.set()
        await engine.drain()
        assert world.names().count("h") == 10


async def test_queues_are_separate_by_namespace_type_and_destination(
    world: World, database: Database
) -> None:
    gate = Gate("hangs")
    world.on(Lasting, gate)
    async with TestEngine(world.registry, database.store, small(concurrency=1)) as engine:
        await started(engine, "hangs", Lasting("h", destination="hangs"))
        await engine.start(
            ExecutionKey("others", "a"), Job(), on_start=ask(Lasting("other namespace", destination="hangs"))
        )
        await started(engine, "b", Call("other type", destination="hangs"))
        await started(engine, "c", Lasting("other destination", destination="hang"))
        await started(engine, "d", Soon("no destination"))
        await started(engine, "e", Lasting("same queue", destination="hangs"))
        await until(engine, world, 5)
        assert sorted(world.names()) == [
            "h",
            "no destination",
            "other destination",
            "other namespace",
            "other type",
        ]
        gate.open.set()
        await engine.drain()
        assert world.names()[-1] == "same queue"


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_concurrency_is_bounded(world: World, database: Database, concurrency: int) -> None:
    gate = Gate()
    world.on(Lasting, gate)
    async with TestEngine(world.registry, database.store, small(concurrency=concurrency)) as engine:
        for number in range(20):
            await started(engine, str(number), Lasting("x"))
        await engine.drain()
    assert len(world.runs) == 20
    assert gate.most <= concurrency


async def test_concurrency_can_be_chosen_for_each_queue(world: World, database: Database) -> None:
    gate = Gate("slow", "fast")
    world.on(Lasting, gate)
    asked: set[tuple[str, str, str]] = set()

    def concurrency_of(namespace: str, group: str, destination: str) -> int | None:
        asked.add((namespace, group, destination))
        return {"fast": 4, "slow": 1}.get(destination)

    options = small(concurrency=2, concurrency_of=concurrency_of)
    async with TestEngine(world.registry, database.store, options) as engine:
        for number in range(6):
            await started(engine, f"s{number}", Lasting("slow", destination="slow"))
            await started(engine, f"f{number}", Lasting("fast", destination="fast"))
        await until(engine, world, 5)
        assert sorted(world.names()) == ["fast"] * 4 + ["slow"]
        gate.open.set()
        await engine.drain()
    assert len(world.runs) == 12
    assert ("tests", "lasting", "slow") in asked


async def test_concurrency_changes_while_the_engine_runs(world: World, database: Database) -> None:
    gate = Gate("there")
    world.on(Lasting, gate)
    allowed = 1
    options = small(concurrency_of=lambda *_: allowed, poll_interval=timedelta(seconds=1))
    async with TestEngine(world.registry, database.store, options) as engine:
        for number in range(5):
            await started(engine, str(number), Lasting("x"))
        await until(engine, world, 1)
        assert len(world.runs) == 1
        allowed = 3
        engine.clock.advance(timedelta(seconds=1))
        await until(engine, world, 3)
        assert len(world.runs) == 3
        gate.open.set()
        await engine.drain()


@pytest.mark.parametrize("buffer", [1, 2, 5])
async def test_more_tasks_than_a_queue_holds(world: World, database: Database, buffer: int) -> None:
    options = small(queue_buffer=buffer, concurrency=1)
    async with TestEngine(world.registry, database.store, options) as engine:
        refs = [await started(engine, str(number), Call("x")) for number in range(30)]
        assert len(engine._dispatcher) <= buffer
        await engine.drain()
        assert [await engine.read(ref, log) for ref in refs] == [["x"]] * 30
    assert len(world.runs) == 30


@pytest.mark.parametrize("buffer", [1, 2, 5, 30])
async def test_more_tasks_than_a_queue_holds_after_a_restart(
    world: World, database: Database, buffer: int
) -> None:
    async with TestEngine(world.registry, database.store, small(), run_tasks=False) as engine:
        for number in range(30):
            tasks = (First("x"), Soon("y"), Lasting("z", destination=str(number % 3)))
            await started(engine, str(number), *tasks)

    async with TestEngine(world.registry, database.store, small(queue_buffer=buffer)) as engine:
        await engine.drain()
        assert len(engine._dispatcher) == 0
    assert sorted(world.names()) == ["x"] * 30 + ["y"] * 30 + ["z"] * 30
    assert await database.queued() == []


async def test_full_queue_does_not_hide_the_next_one_from_a_restart(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store, small(), run_tasks=False) as engine:
        for number in range(20):
            await started(engine, str(number), Lasting("a", destination="a"))
        await started(engine, "b", Lasting("b", destination="b"))
        await started(engine, "a!", Lasting("a!", destination="a!"))
        await started(engine, "a/", Lasting("a/", destination="a/"))

    gate = Gate("a")
    world.on(Lasting, gate)
    async with TestEngine(world.registry, database.store, small(queue_buffer=1)) as engine:
        await until(engine, world, 4)
        assert sorted(world.names()) == ["a", "a!", "a/", "b"]
        gate.open.set()
        await engine.drain()
    assert len(world.runs) == 23


async def test_tasks_of_another_process_are_found_by_the_poll(
    world: World, database: Database, clock: FakeClock
) -> None:
    options = small(poll_interval=timedelta(seconds=1), queue_buffer=2)
    async with (
        TestEngine(world.registry, database.store, options, clock=clock) as engine,
        TestEngine(world.registry, await database.open(), options, clock=clock, run_tasks=False) as other,
    ):
        await engine.drain()
        for number in range(7):
            await started(other, str(number), Call("call"))
        assert world.runs == []
        await engine.skip(timedelta(seconds=1))
        assert world.names() == ["call"] * 7


async def test_row_that_is_read_before_its_task_ends_does_not_run_it_again(
    world: World, database: Database, clock: FakeClock
) -> None:
    """A page of a poll may arrive after the task that it holds has run."""
    store = FaultyStore(database.store)
    options = small(poll_interval=timedelta(seconds=1), shard_count=1)
    async with TestEngine(world.registry, store, options, clock=clock) as engine:
        finish, reached = asyncio.Event(), asyncio.Event()

        async def run(env: Environment, ref: Ref, task: Soon) -> None:
            await finish.wait()

        world.on(Soon, run)
        await engine.drain()
        await started(engine, "job", Soon("once"))
        page = [item async for item in database.store.scan("exec/0", "i/", "i0")]
        assert len(page) == 1

        async def hold(call: StoreCall) -> None:
            if call.method == "scan" and call.request == ("exec/0", "o/", "p0"):
                reached.set()

        store.before = hold
        clock.advance(timedelta(seconds=1))
        await reached.wait()
        finish.set()
        await engine.drain()
        # The page comes late.
        from hsm.engine._rows import QueuedTask

        for item in page:
            engine._shards.loader.offer(QueuedTask.parse("exec/0", item.key, item.etag, item.value))
        await engine.drain()
    assert world.names() == ["once"]


async def test_queues_are_forgotten_when_they_are_empty(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        for number in range(20):
            await started(engine, str(number), Call("x", destination=str(number)))
        await engine.drain()
        assert engine._dispatcher._queues == {}


async def test_group_is_one_queue_for_several_types(database: Database) -> None:
    from hsm import Registry, attrs_definition
    from hsm.machine import MachineType

    registry = Registry()
    registry.register_machine(attrs_definition(MachineType(1, "job"), Job))
    gate = Gate("there")
    names: list[str] = []
    begun = asyncio.Event()

    async def run(env: Environment, ref: Ref, task: Any) -> None:
        names.append(task.name)
        begun.set()
        await gate(env, ref, task)

    tasks: list[type[Any]] = [Lasting, Call]
    for task in tasks:
        registry.register_task(task, group="together")
        registry.register_executor(task, run)
    async with TestEngine(registry, database.store, small(concurrency=1)) as engine:
        await started(engine, "a", Lasting("first"))
        await started(engine, "b", Call("second"))
        await begun.wait()
        for _ in range(50):  # the other one would have begun by now
            await asyncio.sleep(0.001)
        assert names == ["first"]
        gate.open.set()
        await engine.drain()
    assert names == ["first", "second"]
