"""Tasks: they run after their commit, change state once, and go when they have become pointless."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from hsm import (
    AccessType,
    Environment,
    Node,
    NotRegisteredError,
    Ref,
    SerializationError,
    StaleReferenceError,
    TransitionOutput,
)
from hsm.testing import Call as StoreCall, FakeClock, FaultyStore, TestEngine
from persistence.store import DeleteRequest
from tests.support.databases import Database
from tests.support.jobs import (
    Alarm,
    Call,
    Job,
    Lasting,
    Ring,
    Run,
    Soon,
    Step,
    World,
    ask,
    idle,
    job,
    log,
    note,
    noted,
    pending,
    started,
    step,
)

HOUR = timedelta(hours=1)


async def test_every_kind_of_task_runs(world: World, database: Database, clock: FakeClock) -> None:
    async with TestEngine(world.registry, database.store, clock=clock) as engine:
        later = engine.now() + HOUR
        tasks = (Lasting("outbound"), Soon("immediate"), Alarm("timer", later), Ring("under the lock", later))
        ref = await started(engine, "job", *tasks)
        await engine.drain()
        assert await engine.read(ref, lambda node: sorted(log(node))) == ["immediate", "outbound"]
        await engine.skip(HOUR)
        assert await engine.read(ref, lambda node: sorted(log(node)[2:])) == ["timer", "under the lock"]
        assert await pending(engine, ref) == []

    assert sorted(world.names()) == ["immediate", "outbound", "timer", "under the lock"]
    assert await database.queued() == []


async def test_task_of_an_update_that_fails_does_not_run(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine)

        def change(node: Node) -> None:
            ask(Call("never"))(node)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await engine.update(ref, change)
        await engine.skip(2 * HOUR)

    assert world.names() == []
    assert await database.queued() == []


async def test_write_deletes_the_row_of_its_task_in_the_same_transaction(
    world: World, database: Database
) -> None:
    store = FaultyStore(database.store)
    async with TestEngine(world.registry, store) as engine:
        ref = await started(engine)
        await engine.update(ref, ask(Lasting("call")))
        await engine.drain()

        writes: list[Any] = []

        async def watch(call: StoreCall) -> None:
            if call.write:
                writes.append(call.request)

        store.before = watch
        await engine.update(ref, ask(Lasting("again")))
        await engine.drain()

        _, of_the_task = writes
        assert [operation.key[:2] for operation in of_the_task] == ["e/", "o/"]
        assert of_the_task[1].etag


async def test_second_write_of_a_task_is_refused(world: World, database: Database) -> None:
    errors: list[Exception] = []

    async def run(env: Environment, ref: Ref, task: Lasting) -> None:
        await env.update(ref, note("first"))
        for again in (env.update(ref, note("second")), _write(env, ref), env.update(ref, lambda _: None)):
            try:
                await again
            except StaleReferenceError as error:
                errors.append(error)

    async def _write(env: Environment, ref: Ref) -> None:
        async with env.access(ref, AccessType.WRITE) as node:
            note("second")(node)

    world.on(Lasting, run)
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine, "job", Lasting("call"))
        await engine.drain()

        assert len(errors) == 3
        assert await engine.read(ref, log) == ["first"]
        assert [dead async for dead in engine.dead_letters()] == []


async def test_row_that_somebody_else_deleted_refuses_the_write(world: World, database: Database) -> None:
    """Another process has run the task meanwhile: what this one did must not count a second time."""

    async def run(env: Environment, ref: Ref, task: Lasting) -> None:
        (key,) = await database.queued()
        await database.remove(key)
        await noted(env, ref, task)

    world.on(Lasting, run)
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine, "job", Lasting("call"))
        await engine.drain()

        assert world.names() == ["call"]
        assert await engine.read(ref, log) == []
        assert [dead async for dead in engine.dead_letters()] == []


async def test_two_processes_change_state_once(world: World, database: Database) -> None:
    async with (
        TestEngine(world.registry, database.store) as one,
        TestEngine(world.registry, await database.open()) as other,
    ):

        async def run(env: Environment, ref: Ref, task: Lasting) -> None:
            if env is one:
                # As if it had stood still for so long that its lease ran out.
                async for item in database.store.scan("exec", "m/", "m0"):
                    await database.store.delete(DeleteRequest(partition="exec", key=item.key))
                await other.skip(HOUR)
            await noted(env, ref, task)

        world.on(Lasting, run)
        await one.drain()
        await other.drain()
        ref = await started(one, "job", Lasting("call"))
        await one.drain()

        assert world.names() == ["call", "call"]
        assert await one.read(ref, log) == ["call"]
        assert await other.read(ref, log) == ["call"]
    await database.check()


async def test_task_without_a_write_is_gone_afterwards(
    world: World, database: Database, clock: FakeClock
) -> None:
    for task in (Call, Lasting, Soon, Alarm):
        world.on(task, idle)
    async with TestEngine(world.registry, database.store, clock=clock) as engine:
        tasks = (Call("a"), Lasting("b"), Soon("c"), Alarm("d", engine.now()))
        ref = await started(engine, "job", *tasks)
        await engine.drain()

        assert sorted(world.names()) == ["a", "b", "c", "d"]
        assert await pending(engine, ref) == []
        assert await database.queued() == []
        await engine.skip(2 * HOUR)
        assert len(world.runs) == 4


async def test_kept_task_may_write_many_times(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:

        async def run(env: Environment, ref: Ref, task: Lasting) -> None:
            for number in range(3):
                await engine.update(ref, note(str(number)), keep_task=True)
                assert await database.keys("o/") != []
            async with engine.access(ref, AccessType.WRITE, keep_task=True) as node:
                note("3")(node)
            await env.update(ref, note("last"))

        world.on(Lasting, run)
        ref = await started(engine, "job", Lasting("call"))
        await engine.drain()

        assert await engine.read(ref, log) == ["0", "1", "2", "3", "last"]
        assert await database.queued() == []
        assert await pending(engine, ref) == []


async def test_kept_task_that_does_not_write_again_is_gone_afterwards(
    world: World, database: Database
) -> None:
    async with TestEngine(world.registry, database.store) as engine:

        async def run(env: Environment, ref: Ref, task: Lasting) -> None:
            await engine.update(ref, note("kept"), keep_task=True)

        world.on(Lasting, run)
        ref = await started(engine, "job", Lasting("call"))
        await engine.drain()

        assert await engine.read(ref, log) == ["kept"]
        assert await database.queued() == []
        assert await pending(engine, ref) == []


async def test_kept_task_whose_row_is_gone_writes_no_more(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:

        async def run(env: Environment, ref: Ref, task: Lasting) -> None:
            (key,) = await database.queued()
            await database.remove(key)
            await engine.update(ref, note("never"), keep_task=True)

        world.on(Lasting, run)
        ref = await started(engine, "job", Lasting("call"))
        await engine.drain()
        assert await engine.read(ref, log) == []


async def test_unregistered_task_is_refused_before_anything_is_written(database: Database) -> None:
    world = World(without=(Call,))
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine)
        with pytest.raises(NotRegisteredError, match="call"):
            await engine.update(ref, note("never", Call("never")))
        assert await engine.read(ref, log) == []
        await engine.update(ref, note("after"))
        assert await engine.read(ref, log) == ["after"]


async def test_task_that_cannot_be_serialized_is_refused(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine)
        with pytest.raises(SerializationError):
            await engine.update(ref, note("never", Soon("fine"), Call(object())))  # type: ignore[arg-type]  # nobody can write it
        await engine.drain()
        assert await engine.read(ref, log) == []
        assert world.names() == []
        await engine.update(ref, note("after", Soon("then")))
        await engine.drain()
        assert await engine.read(ref, log) == ["after", "then"]


async def test_tasks_run_in_the_order_of_their_transitions(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store, run_tasks=False) as engine:
        ref = await started(engine)
        for number in range(5):
            await engine.update(ref, note("x", Soon(f"{number}a"), Soon(f"{number}b")))

    expected = [f"{number}{letter}" for number in range(5) for letter in "ab"]
    async with TestEngine(world.registry, database.store) as engine:
        await engine.drain()
        assert world.names() == expected


async def test_tasks_may_ask_for_tasks(world: World, database: Database) -> None:
    async def run(env: Environment, ref: Ref, task: Call) -> None:
        number = int(task.name)
        await env.update(ref, note(task.name, *([Call(str(number - 1))] if number else [])))

    world.on(Call, run)
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine, "job", Call("20"))
        await engine.drain()
        assert await engine.read(ref, log) == [str(number) for number in range(20, -1, -1)]
    await database.check()


async def test_attempt_and_task_are_in_the_reference(world: World, database: Database) -> None:
    refs: list[Ref] = []

    async def run(env: Environment, ref: Ref, task: Call) -> None:
        refs.append(ref)
        assert await env.update(ref, lambda node: node.path) == (step("a"),)

    world.on(Call, run)
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine)
        await engine.update(ref, lambda root: ask(Call("call"))(root.add_child(step("a"), Step())))
        await engine.drain()

        assert [(r.execution, r.path, r.transition_count, r.attempt) for r in refs] == [
            (ref.execution, (step("a"),), 1, 1)
        ]
        assert refs[0].task_id
        with pytest.raises(StaleReferenceError):
            await engine.update(refs[0], note("late"))
        with pytest.raises(StaleReferenceError):
            await engine.read(refs[0], log)


async def test_reference_of_a_task_is_for_its_own_execution(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        other = await started(engine, "other")
        caught: list[ValueError] = []

        async def run(env: Environment, ref: Ref, task: Call) -> None:
            try:
                await env.update(Ref(other.execution, task_id=ref.task_id), note("never"))
            except ValueError as error:
                caught.append(error)

        world.on(Call, run)
        await started(engine, "job", Call("call"))
        await engine.drain()
        assert len(caught) == 1
        assert await engine.read(other, log) == []


async def test_task_may_write_to_other_machines_of_its_execution(world: World, database: Database) -> None:
    async def run(env: Environment, ref: Ref, task: Call) -> None:
        await env.update(Ref(ref.execution, task_id=ref.task_id), note(f"{task.name} below"))

    world.on(Call, run)
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine)
        await engine.update(ref, lambda root: ask(Call("call"))(root.add_child(step("a"), Step())))
        await engine.drain()
        assert await engine.read(ref, log) == ["call below"]
        assert await pending(engine, ref) == []
    await database.check()


async def test_transition_without_output_keeps_the_tasks_that_are_valid(
    world: World, database: Database
) -> None:
    async with TestEngine(world.registry, database.store, run_tasks=False) as engine:
        ref = await started(engine, "job", Lasting("a"), Soon("b"))
        await engine.update(ref, lambda node: node.transition(Job, lambda _: TransitionOutput()))
        assert await pending(engine, ref) == ["lasting", "soon"]
    await database.check()


async def test_runs_are_told_by_time_and_attempt(world: World, database: Database, clock: FakeClock) -> None:
    async with TestEngine(world.registry, database.store, clock=clock) as engine:
        await engine.start(job(), Job(), on_start=ask(Alarm("alarm", clock.now() + HOUR)))
        assert await engine.skip_to_next() == clock.now()
        assert world.runs == [Run("alarm", 1, clock.now())]


async def test_task_without_validate_cannot_be_kept(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        refused: list[str] = []

        async def run(env: Environment, ref: Ref, task: Call) -> None:
            with pytest.raises(ValueError, match="validate"):
                await env.update(ref, note("kept"), keep_task=True)
            refused.append(task.name)

        world.on(Call, run)
        ref = await started(engine, "job", Call("call"))
        await engine.drain()

        assert refused == ["call"]
        assert await engine.read(ref, log) == []
