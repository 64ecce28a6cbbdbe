"""Executors that misbehave, caches that are too small, and ends that come at the wrong time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, ClassVar

import attrs
import pytest

from hsm import (
    AccessClosedError,
    AccessType,
    Environment,
    MachineType,
    Node,
    Ref,
    Registry,
    StateMachineNotFoundError,
    TaskType,
    UntrackedChangeError,
    attrs_definition,
)
from hsm.testing import Call as StoreCall, FakeClock, FaultyStore, TestEngine
from persistence.store import Item
from tests.support.databases import Database
from tests.support.jobs import (
    JOB,
    Alarm,
    Job,
    Newest,
    Soon,
    Step,
    World,
    ask,
    failing,
    log,
    note,
    noted,
    small,
    started,
    step,
)

DAY = timedelta(days=1)


def grow(root: Node) -> None:
    """Add a child with more rows below it than a commit deletes where `delete_rows` is 1."""
    child = root.add_child(step("c"), Step())
    for number in range(5):
        child.add_child(step(str(number)), Step())


def cut(root: Node) -> None:
    root.delete_child(step("c"))


class OddError(BaseException):
    """Not an `Exception`, as what some frameworks use for their own flow of control."""


# What executors do


async def test_error_text_with_surrogates_counts_as_any_other(world: World, database: Database) -> None:
    world.on(Soon, failing(ValueError("no file \udcff")))
    async with TestEngine(world.registry, database.store, small(max_attempts=3)) as engine:
        await started(engine, "job", Soon("a"))
        await engine.run_until_idle()
        assert [dead.error async for dead in engine.dead_letters()] == ["ValueError: no file \\udcff"]
        assert len(world.runs) == 3


async def test_executor_that_raises_no_exception_is_tried_again(world: World, database: Database) -> None:
    world.on(Soon, failing(OddError("x"), None))
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine, "job", Soon("a"))
        await engine.run_until_idle()
        assert await engine.read(ref, log) == ["a"]
        assert [run.attempt for run in world.runs] == [1, 2]


async def test_executor_that_cancels_itself_is_tried_again(world: World, database: Database) -> None:
    async def cancel_once(env: Environment, ref: Ref, task: Any) -> None:
        current = asyncio.current_task()
        if len(world.runs) == 1 and current is not None:
            current.cancel()
            await asyncio.sleep(0)
        await noted(env, ref, task)

    world.on(Soon, cancel_once)
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine, "job", Soon("a"))
        await engine.run_until_idle()
        assert await engine.read(ref, log) == ["a"]


async def test_pause_without_end_is_shortened(world: World, database: Database) -> None:
    error = RuntimeError("never again")
    setattr(error, "retry_after", timedelta.max)  # noqa: B010 - an attribute that its class does not have
    world.on(Soon, failing(error))
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine, "job", Soon("a"))
        await engine.drain()
        (task,) = (await engine.describe(ref.execution)).nodes[0].tasks
        assert task.failures == 1
        assert task.not_before is not None
        assert task.not_before > engine.now() + 365 * DAY


async def test_task_that_was_replaced_does_not_run_though_it_was_ready(
    world: World, database: Database
) -> None:
    opened = asyncio.Event()

    async def block(env: Environment, ref: Ref, task: Newest) -> None:
        if task.name == "block":
            await opened.wait()

    world.on(Newest, block)
    async with TestEngine(world.registry, database.store, small(concurrency=1)) as engine:
        await started(engine, "blocker", Newest("block"))
        ref = await started(engine, "job", Newest("a"))
        await engine.update(ref, ask(Newest("b")))
        opened.set()
        await engine.drain()
        assert world.names() == ["block", "b"]


@attrs.frozen
class Meddling(Soon):
    """Its `validate` changes the tree."""

    type: ClassVar[TaskType] = TaskType(18, "meddling")
    meddles: ClassVar[bool] = False

    def validate(self, ref: Ref, node: Node) -> None:
        if Meddling.meddles:
            node.add_child(step("z"), Step())


async def test_validate_changes_nothing(
    world: World, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = asyncio.Event()

    async def wait(env: Environment, ref: Ref, task: Meddling) -> None:
        await opened.wait()

    world.registry.register_task(Meddling)
    world.registry.register_executor(Meddling, wait)
    async with TestEngine(world.registry, database.store, small(concurrency=1, max_attempts=1)) as engine:
        await started(engine, "blocker", Meddling("block"))
        ref = await started(engine, "job", Meddling("a"))
        await engine.update(ref, note("moved"))
        monkeypatch.setattr(Meddling, "meddles", True)
        opened.set()
        await engine.drain()
        monkeypatch.setattr(Meddling, "meddles", False)
        await engine.update(ref, note("again"))
        with pytest.raises(StateMachineNotFoundError):
            await engine.read(ref, lambda node: node.child((step("z"),)))
        assert [dead.error_type async for dead in engine.dead_letters()] == ["UntrackedChangeError"]


async def test_change_behind_the_tree_is_told_before_it_is_committed(database: Database) -> None:
    registry = Registry(debug=True)
    registry.register_machine(attrs_definition(MachineType(JOB, "job"), Job))

    def meddle(node: Node) -> None:
        note("good")(node)
        node.data(Job).log.append("behind")

    async with TestEngine(registry, database.store) as engine:
        ref = await started(engine)
        with pytest.raises(UntrackedChangeError):
            await engine.update(ref, meddle)
        with pytest.raises(UntrackedChangeError):
            await engine.start(ref.execution._replace(id="other", run_id=""), Job(), on_start=meddle)
        assert await engine.read(ref, log) == []
        await engine.update(ref, note("later"))
    async with TestEngine(registry, database.store) as engine:
        assert await engine.read(ref, log) == ["later"]
        assert await engine.count() == 1


# What queues and caches hold


class SlowPages(FaultyStore):
    """Between the rows of a queue, others have time to run."""

    async def scan(
        self, partition: str, start: str, end: str, *, limit: int | None = None, reverse: bool = False
    ) -> AsyncIterator[Item]:
        async for item in super().scan(partition, start, end, limit=limit, reverse=reverse):
            yield item
            if start.startswith("i/tests/"):
                await asyncio.sleep(0.01)


async def test_refill_reads_on_past_tasks_that_ended_meanwhile(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store, small(shard_count=1), run_tasks=False) as engine:
        for number in range(12):
            await started(engine, str(number), Soon(str(number)))
    options = small(queue_buffer=4, concurrency=1)
    async with TestEngine(world.registry, SlowPages(database.store), options) as engine:
        await engine.drain()
        assert sorted(world.names(), key=int) == [str(number) for number in range(12)]


async def test_timers_take_no_room_from_tasks_of_their_group(database: Database) -> None:
    registry = Registry()
    registry.register_machine(attrs_definition(MachineType(JOB, "job"), Job))
    registry.register_task(Soon, group="both")
    registry.register_task(Alarm, group="both")
    registry.register_executor(Soon, noted)
    registry.register_executor(Alarm, noted)
    async with TestEngine(registry, database.store, small(queue_buffer=10)) as engine:
        tomorrow = engine.now() + DAY
        ref = await started(engine, "job", *[Alarm(str(number), tomorrow) for number in range(20)])
        await engine.update(ref, ask(Soon("now")))
        await engine.drain()
        assert await engine.read(ref, log) == ["now"]
        await engine.skip(DAY)
        assert len(await engine.read(ref, log)) == 21
        assert engine._dispatcher._queues == {}


@pytest.mark.parametrize("size", [0, 1])
async def test_cache_smaller_than_what_is_in_use(world: World, database: Database, size: int) -> None:
    async with TestEngine(world.registry, database.store, small(cached_executions=size)) as engine:
        one = await started(engine, "one")
        two = await started(engine, "two")
        await engine.update(two, note("a"))
        async with engine.access(one, AccessType.WRITE) as node:
            await engine.update(two, note("b"))
            note("c")(node)
        assert await engine.read(one, log) == ["c"]
        assert await engine.read(two, log) == ["a", "b"]


async def test_executions_in_use_do_not_keep_others_in_memory(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store, small(cached_executions=5)) as engine:
        one = await started(engine, "one")
        two = await started(engine, "two")
        async with engine.access(one, AccessType.READ), engine.access(two, AccessType.READ):
            for number in range(30):
                await started(engine, str(number))
            assert len(engine._executions._cache) < 10


@pytest.mark.parametrize("delete_rows", [0, 100])
async def test_tasks_of_deleted_machines_leave_memory(
    world: World, database: Database, delete_rows: int
) -> None:
    async with TestEngine(world.registry, database.store, small(delete_rows=delete_rows)) as engine:
        ref = await started(engine)
        tomorrow = engine.now() + DAY
        for _ in range(3):
            await engine.update(ref, grow)
            for path in ((step("c"),), (step("c"), step("1"))):
                await engine.update(Ref(ref.execution, path), ask(Alarm("a", tomorrow)))
            await engine.update(ref, cut)
        execution = engine._executions.cached(ref.execution)
        assert execution is not None
        assert execution.decoded == {}


async def test_tasks_decoded_to_be_dropped_leave_memory(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store, run_tasks=False) as engine:
        ref = await started(engine, "job", Alarm("a", engine.now() + DAY))
    async with TestEngine(world.registry, database.store, run_tasks=False) as engine:
        await engine.update(ref, note("end"))
        execution = engine._executions.cached(ref.execution)
        assert execution is not None
        assert execution.decoded == {}


async def test_engines_on_one_store_make_different_ids(
    world: World, database: Database, clock: FakeClock
) -> None:
    async with TestEngine(world.registry, database.store, clock=clock, run_tasks=False) as engine:
        await started(engine, "one", Soon("a"))
    async with TestEngine(world.registry, database.store, clock=clock) as engine:
        await started(engine, "two", Soon("b"))
        await engine.drain()
    assert sorted(world.names()) == ["a", "b"]


# Ends


async def test_nobody_waits_for_an_engine_that_has_ended(world: World, database: Database) -> None:
    never = asyncio.Event()
    slow = FaultyStore(database.store)

    async def hang(call: StoreCall) -> None:
        if call.method == "scan":
            await never.wait()

    slow.before = hang
    async with TestEngine(world.registry, slow) as engine:
        drained = asyncio.ensure_future(engine.drain())
        await asyncio.sleep(0)
        assert not drained.done()
    async with asyncio.timeout(10):
        await drained


async def test_engine_that_ends_begins_no_sweep(world: World, database: Database) -> None:
    """What the last tasks leave to be swept may take long; the next engine does it."""
    running, closing, never = asyncio.Event(), asyncio.Event(), asyncio.Event()
    slow = FaultyStore(database.store)

    async def hang(call: StoreCall) -> None:
        if closing.is_set() and call.method == "scan" and str(call.request).find("'z/'") >= 0:
            await never.wait()

    async def delete(env: Environment, ref: Ref, task: Soon) -> None:
        running.set()
        await closing.wait()
        await env.update(ref, cut)

    slow.before = hang
    world.on(Soon, delete)
    async with asyncio.timeout(10):
        async with TestEngine(world.registry, slow, small(delete_rows=1)) as engine:
            ref = await started(engine)
            await engine.update(ref, grow)
            await engine.update(ref, ask(Soon("a")))
            await running.wait()
            asyncio.get_running_loop().call_later(0.01, closing.set)
        # Nor is the engine's end a reason to refuse what the store would take.
        await engine.update(ref, grow)
        await engine.update(ref, cut)


async def test_sweep_that_fails_does_not_hold_up_the_start(world: World, database: Database) -> None:
    faulty = FaultyStore(database.store)

    async def refuse(call: StoreCall) -> None:
        if call.method == "scan" and str(call.request).find("'z/'") >= 0:
            raise RuntimeError("no sweeping today")

    faulty.before = refuse
    async with TestEngine(world.registry, faulty) as engine, asyncio.timeout(10):
        await engine.drain()


@pytest.mark.parametrize("method", ["get", "multi", "scan"])
async def test_node_that_got_out_is_of_no_use_while_its_update_waits(
    world: World, database: Database, method: str
) -> None:
    """What is done to it then would be in memory, and never in the store."""
    kept: list[Node] = []
    refused: list[AccessClosedError] = []
    faulty = FaultyStore(database.store)

    async def meddle(call: StoreCall) -> None:
        if call.method == method and kept:
            try:
                note("late")(kept[0])
            except AccessClosedError as error:
                refused.append(error)

    def change(node: Node) -> None:
        kept.append(node)
        if method == "scan":
            cut(node)
        if method != "get":
            note("good")(node)

    faulty.before = meddle
    async with TestEngine(world.registry, faulty, small(), run_tasks=False) as engine:
        ref = await started(engine)
        await engine.update(ref, grow)
        await engine.update(ref, change)
        kept.clear()
        remembered = await engine.read(ref, log)
    async with TestEngine(world.registry, database.store, run_tasks=False) as engine:
        assert await engine.read(ref, log) == remembered == ["good"] * (method != "get")
    assert refused
