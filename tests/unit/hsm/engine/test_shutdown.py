"""The end of an engine: orderly, late, by an error, by cancellation or by a crash."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from typing import Any

import pytest

from hsm import Environment, Ref
from hsm.engine import _shards, _stopping
from hsm.testing import CutOffError, FakeClock, FaultyStore, TestEngine
from hsm.testing.faults import Call as StoreCall
from tests.support.databases import Database
from tests.support.jobs import (
    Lasting,
    World,
    log,
    note,
    noted,
    small,
    started,
)


async def test_running_tasks_finish_before_the_engine_ends(world: World, database: Database) -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def run(env: Environment, ref: Ref, task: Lasting) -> None:
        begun.set()
        await go.wait()
        await noted(env, ref, task)

    world.on(Lasting, run)
    async with TestEngine(world.registry, database.store, small(concurrency=1)) as engine:
        first = await started(engine, "first", Lasting("first"))
        second = await started(engine, "second", Lasting("second"))
        await begun.wait()
        asyncio.get_running_loop().call_later(0.01, go.set)

    assert world.names() == ["first"]
    async with TestEngine(world.registry, database.store) as engine:
        assert await engine.read(first, log) == ["first"]
        await engine.drain()
        assert await engine.read(second, log) == ["second"]


async def test_tasks_that_are_late_are_cancelled_and_run_by_the_next_engine(
    world: World, database: Database
) -> None:
    begun = asyncio.Event()
    cancelled: list[str] = []

    async def hang(env: Environment, ref: Ref, task: Lasting) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(task.name)
            raise

    world.on(Lasting, hang)
    async with TestEngine(world.registry, database.store, small(drain_timeout=timedelta())) as engine:
        ref = await started(engine, "job", Lasting("call"))
        await begun.wait()
    assert cancelled == ["call"]

    world.on(Lasting, noted)
    async with TestEngine(world.registry, database.store) as engine:
        await engine.drain()
        assert await engine.read(ref, log) == ["call"]
        assert world.runs[-1].attempt == 1
    assert await database.queued() == []


async def test_error_of_the_block_comes_out_as_it_is_and_cancels_what_runs(
    world: World, database: Database
) -> None:
    begun = asyncio.Event()

    async def hang(env: Environment, ref: Ref, task: Lasting) -> None:
        begun.set()
        await asyncio.Event().wait()

    world.on(Lasting, hang)
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - it has to come out of both blocks
        async with TestEngine(world.registry, database.store) as engine:
            await started(engine, "job", Lasting("call"))
            await begun.wait()
            raise ZeroDivisionError

    assert len(await database.queued()) == 1


async def test_engine_that_is_cancelled_while_it_waits_for_tasks_leaves_nothing_behind(
    world: World, database: Database
) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def hang(env: Environment, ref: Ref, task: Lasting) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def serve() -> None:
        async with TestEngine(world.registry, database.store) as engine:
            await started(engine, "job", Lasting("call"))
            await begun.wait()

    world.on(Lasting, hang)
    serving = asyncio.create_task(serve())
    await begun.wait()
    for _ in range(5):
        await asyncio.sleep(0)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert ended.is_set()
    assert len(await database.queued()) == 1


async def test_engine_that_was_cut_off_can_be_left(world: World, database: Database) -> None:
    store = FaultyStore(database.store)
    with pytest.raises(CutOffError):  # noqa: PT012 - raised where the block ends
        async with TestEngine(world.registry, store) as engine:
            ref = await started(engine, "job", Lasting("call"))
            store.cut_off()
            raise CutOffError("the process is gone")

    async with TestEngine(world.registry, database.store) as engine:
        await engine.drain()
        assert await engine.read(ref, log) == ["call"]


async def left_alone() -> None:
    """Return when engines have no task in the event loop any more."""
    while any(_is_of_an_engine(task) for task in asyncio.all_tasks()):  # noqa: ASYNC110 - there is no event
        await asyncio.sleep(0)


def _is_of_an_engine(task: asyncio.Task[Any]) -> bool:
    return getattr(task.get_coro(), "__qualname__", "").startswith(("Shards.", "Worker."))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is told to end at once has hardly any time for it."""
    monkeypatch.setattr(_stopping, "PATIENCE_SECONDS", 0.01)
    monkeypatch.setattr(_shards, "PATIENCE_SECONDS", 0.01)


async def test_engine_can_be_shut_down_by_another_task_and_be_read_on(
    world: World, database: Database, clock: FakeClock
) -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def run(env: Environment, ref: Ref, task: Lasting) -> None:
        begun.set()
        await go.wait()
        await noted(env, ref, task)

    world.on(Lasting, run)
    async with TestEngine(world.registry, database.store, small(concurrency=1), clock=clock) as engine:
        ref = await started(engine, "job", Lasting("first"), Lasting("second"))
        await begun.wait()
        ending = asyncio.create_task(engine.shutdown(timedelta(hours=1)))
        await asyncio.sleep(0)
        go.set()
        await ending

        assert await engine.read(ref, log) == ["first"]
        await engine.update(ref, note("by hand"))
        async with TestEngine(world.registry, await database.open(), small(), clock=clock) as other:
            # The shards were given back: nobody waits for a lease to run out.
            await other.drain()
            assert await other.read(ref, log) == ["first", "by hand", "second"]


async def test_shutdown_may_be_asked_for_twice(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store, small()) as engine:
        await started(engine)
        await asyncio.gather(engine.shutdown(), engine.shutdown(timedelta()))
        await engine.shutdown()
    await left_alone()


async def test_executor_that_does_not_heed_its_cancellation_is_left_behind(
    world: World, database: Database, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def cling(env: Environment, ref: Ref, task: Lasting) -> None:
        begun.set()
        while not go.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await go.wait()

    world.on(Lasting, cling)
    async with TestEngine(world.registry, database.store, small(drain_timeout=timedelta())) as engine:
        ref = await started(engine, "job", Lasting("call"))
        await begun.wait()
    assert "do not heed" in caplog.text
    assert len(await database.queued()) == 1

    world.on(Lasting, noted)
    async with TestEngine(world.registry, database.store) as engine:
        await engine.drain()
        assert await engine.read(ref, log) == ["call"]
    go.set()
    await left_alone()


async def test_engine_ends_though_the_store_does_not_answer(
    world: World, database: Database, impatient: None
) -> None:
    store = FaultyStore(database.store)

    async def hang(_: StoreCall) -> None:
        await asyncio.Event().wait()

    async with TestEngine(world.registry, store, small()) as engine:
        await started(engine)
        store.before = hang
    await left_alone()


@pytest.mark.parametrize("call", range(1, 7))
async def test_engine_that_is_cancelled_while_it_starts_leaves_nothing_behind(
    world: World, database: Database, call: int
) -> None:
    async with TestEngine(world.registry, database.store, small(), run_tasks=False) as engine:
        ref = await started(engine, "job", Lasting("call"))
    store, hung = FaultyStore(database.store), asyncio.Event()

    async def hang(made: StoreCall) -> None:
        if made.number == call:
            hung.set()
            await asyncio.Event().wait()

    async def serve() -> None:
        store.before = hang
        async with TestEngine(world.registry, store, small()):
            raise AssertionError("it has started")

    serving = asyncio.create_task(serve())
    await hung.wait()
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    await left_alone()

    # A claim that was under way may have got through; it is worth nothing without the member.
    assert await database.keys("m/") == []
    async with TestEngine(world.registry, database.store, small()) as engine:
        await engine.drain()
        assert await engine.read(ref, log) == ["call"]


async def test_engine_that_ends_while_it_hands_over_shards_loses_nothing(
    world: World, database: Database, clock: FakeClock
) -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def run(env: Environment, ref: Ref, task: Lasting) -> None:
        begun.set()
        await go.wait()
        await noted(env, ref, task)

    world.on(Lasting, run)
    options = small(shard_count=16, lease_seconds=30, poll_interval=timedelta(seconds=1))
    async with TestEngine(world.registry, database.store, options, clock=clock) as leaving:
        refs = [await started(leaving, f"{number}", Lasting(f"{number}")) for number in range(32)]
        await begun.wait()
        async with TestEngine(world.registry, await database.open(), options, clock=clock) as staying:
            clock.advance(timedelta(seconds=10))
            # It sees the other one, and waits for what runs in the first shard that it is to give.
            while leaving._shards.loader.partitions == staying._shards.partitions:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0)
            ending = asyncio.create_task(leaving.shutdown(timedelta()))
            go.set()
            await ending
            assert leaving._shards.owned == set()
            clock.advance(timedelta(seconds=10))
            await staying._settle()
            await staying.drain()
            assert [await staying.read(ref, log) for ref in refs] == [[f"{number}"] for number in range(32)]
    assert await database.queued() == []
