"""The end of an engine: orderly, late, by an error, by cancellation or by a crash."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from hsm import Environment, Ref
from hsm.testing import CutOffError, FaultyStore, TestEngine
from tests.support.databases import Database
from tests.support.jobs import (
    Lasting,
    World,
    log,
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
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
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
    with pytest.raises(CutOffError):  # noqa: PT012
        async with TestEngine(world.registry, store) as engine:
            ref = await started(engine, "job", Lasting("call"))
            store.cut_off()
            raise CutOffError("the process is gone")

    async with TestEngine(world.registry, database.store) as engine:
        await engine.drain()
        assert await engine.read(ref, log) == ["call"]
