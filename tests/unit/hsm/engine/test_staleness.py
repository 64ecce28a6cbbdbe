"""Tasks that have become pointless: not added, withdrawn, replaced, or dropped before they do anything."""

from __future__ import annotations

from datetime import timedelta

import pytest

from hsm import (
    Environment,
    Node,
    Ref,
)
from hsm.testing import FakeClock, TestEngine
from tests.support.databases import Database
from tests.support.jobs import (
    Alarm,
    Call,
    First,
    Lasting,
    Newest,
    Step,
    World,
    ask,
    failing,
    log,
    note,
    noted,
    pending,
    started,
    step,
)

HOUR = timedelta(hours=1)


async def test_task_is_stale_after_another_transition(world: World, database: Database) -> None:
    """Without a `validate` of its own; the row goes with the commit that makes the task pointless."""
    async with TestEngine(world.registry, database.store, run_tasks=False) as engine:
        ref = await started(engine, "job", Call("pointless"), Lasting("not pointless"))
        assert len(await database.queued()) == 2
        await engine.update(ref, note("moved on"))
        assert len(await database.queued()) == 1
        assert await pending(engine, ref) == ["lasting"]

    async with TestEngine(world.registry, database.store) as engine:
        await engine.drain()
        assert world.names() == ["not pointless"]


async def test_task_is_not_stale_after_transitions_of_other_machines(
    world: World, database: Database
) -> None:
    async with TestEngine(world.registry, database.store, run_tasks=False) as engine:
        ref = await started(engine, "job", Call("call"))
        await engine.update(ref, lambda root: note("x")(root.add_child(step("a"), Step())))

    async with TestEngine(world.registry, database.store) as engine:
        await engine.drain()
        assert await engine.read(ref, log) == ["call"]


async def test_pointless_task_is_not_even_added(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine)

        def twice(node: Node) -> None:
            ask(Call("of the first transition"))(node)
            note("end", Call("of the second"), Lasting("over already"))(node)

        await engine.update(ref, twice)
        await engine.drain()
        assert world.names() == ["of the second"]


async def test_task_is_validated_before_it_runs_and_when_it_writes(world: World, database: Database) -> None:
    async with (
        TestEngine(world.registry, database.store) as one,
        TestEngine(world.registry, await database.open(), run_tasks=False) as other,
    ):

        async def run(env: Environment, ref: Ref, task: Lasting) -> None:
            await other.update(Ref(ref.execution), note("end"))
            await noted(env, ref, task)

        world.on(Lasting, run)
        ref = await started(one, "job", Lasting("call"))
        await one.drain()

        assert await one.read(ref, log) == ["end"]
        assert world.names() == ["call"]
        assert [dead async for dead in one.dead_letters()] == []
    assert await database.queued() == []


async def test_withdrawn_task_in_memory_does_not_run(
    world: World, database: Database, clock: FakeClock
) -> None:
    async with TestEngine(world.registry, database.store, clock=clock) as engine:
        ref = await started(engine, "job", Alarm("alarm", engine.now() + HOUR))
        await engine.drain()
        await engine.update(ref, note("end"))
        assert await database.queued() == []
        assert await engine.skip_to_next() is None
        await engine.skip(2 * HOUR)
        assert world.names() == []


async def test_tasks_of_a_deleted_machine_do_not_run_and_leave_no_rows(
    world: World, database: Database, clock: FakeClock
) -> None:
    async with TestEngine(world.registry, database.store, clock=clock) as engine:
        later = engine.now() + timedelta(days=365)
        ref = await started(engine)

        def build(root: Node) -> None:
            child = root.add_child(step("a"), Step())
            ask(Alarm("own", later))(child)
            ask(Alarm("below", later))(child.add_child(step("b"), Step()))

        await engine.update(ref, build)
        assert len(await database.queued()) == 2
        await engine.update(ref, lambda root: root.delete_child(step("a")))
        assert await database.queued() == []
        assert await engine.skip_to_next() is None
    assert world.names() == []


async def test_task_that_waits_for_its_next_try_is_dropped_when_a_machine_above_it_is_gone(
    world: World, database: Database, clock: FakeClock
) -> None:
    world.on(Lasting, failing(OSError("not yet")))
    async with TestEngine(world.registry, database.store, clock=clock) as engine:
        ref = await started(engine)

        def build(root: Node) -> None:
            child = root.add_child(step("a"), Step())
            ask(Lasting("below"))(child.add_child(step("b"), Step()))

        await engine.update(ref, build)
        await engine.drain()
        await engine.update(ref, lambda root: root.delete_child(step("a")))
        await engine.skip(HOUR)
        assert world.names() == ["below"]
        assert await database.queued() == []
        assert [dead async for dead in engine.dead_letters()] == []


async def test_newest_singleton_replaces_the_others(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store, run_tasks=False) as engine:
        ref = await started(engine, "job", Newest("1"), Newest("2"))
        await engine.update(ref, ask(Newest("3")))
        await engine.update(ref, lambda root: ask(Newest("of another"))(root.add_child(step("a"), Step())))
        assert len(await database.queued()) == 2

    async with TestEngine(world.registry, database.store) as engine:
        await engine.drain()
        assert sorted(world.names()) == ["3", "of another"]
        await engine.update(ref, ask(Newest("4")))
        await engine.drain()
        assert await engine.read(ref, log) == ["3", "4"]


async def test_first_singleton_ignores_the_others(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store, run_tasks=False) as engine:
        ref = await started(engine, "job", First("1"), First("2"))
        await engine.update(ref, ask(First("3")))
        assert len(await database.queued()) == 1

    async with TestEngine(world.registry, database.store) as engine:
        await engine.drain()
        assert world.names() == ["1"]
        await engine.update(ref, ask(First("4")))
        await engine.drain()
        assert await engine.read(ref, log) == ["1", "4"]


async def test_singleton_may_ask_for_its_successor(world: World, database: Database) -> None:
    async def run(env: Environment, ref: Ref, task: First) -> None:
        await env.update(ref, note(task.name, First(task.name + "'")) if len(task.name) < 4 else note("end"))

    world.on(First, run)
    world.on(Newest, run)
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine, "job", First("a"))
        await engine.drain()
        assert await engine.read(ref, log) == ["a", "a'", "a''", "end"]


@pytest.mark.parametrize("attempt", [1, 2])
async def test_replaced_singleton_that_runs_already_writes_no_more(
    world: World, database: Database, attempt: int
) -> None:
    """Also on a later attempt, whose row is not where the one that replaces it looks for it."""
    async with TestEngine(world.registry, database.store) as engine:

        async def run(env: Environment, ref: Ref, task: Newest) -> None:
            if task.name == "old":
                if ref.attempt < attempt:
                    raise OSError("try again")
                await engine.update(Ref(ref.execution), ask(Newest("new")))
            await noted(env, ref, task)

        world.on(Newest, run)
        ref = await started(engine, "job", Newest("old"))
        await engine.skip(timedelta(minutes=1))
        assert await engine.read(ref, log) == ["new"]
        assert await pending(engine, ref) == []
