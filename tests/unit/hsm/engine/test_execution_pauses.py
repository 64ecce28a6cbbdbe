"""Pauses of executions: no task runs, everything else goes on, and nothing is lost or done twice."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from hsm import (
    Environment,
    ExecutionClosedError,
    Lifecycle,
    Ref,
    StateMachineNotFoundError,
    StorageUnavailableError,
)
from hsm.engine import Engine
from hsm.testing import Call as StoreCall, FakeClock, FaultyStore, TestEngine
from persistence.store import DeleteRequest, GetRequest, SetRequest
from tests.support.databases import Database, new_database
from tests.support.jobs import (
    Alarm,
    Call,
    Lasting,
    Newest,
    Ring,
    Soon,
    World,
    add_child,
    ask,
    failing,
    job,
    log,
    note,
    pending,
    small,
    started,
    step,
)

SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)


async def is_paused(engine: Engine) -> bool:
    (info,) = [info async for info in engine.list()]
    assert info.status is Lifecycle.RUNNING
    return info.paused


async def test_no_task_of_a_paused_execution_runs_until_it_is_resumed(
    world: World, database: Database
) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        soon = engine.now() + SECOND
        ref = await started(engine, "job", Alarm("alarm", soon), Ring("ring", soon + SECOND))
        await engine.pause(job())
        await engine.update(ref, ask(Soon("soon"), Lasting("lasting")))
        await engine.skip(10 * SECOND)

        assert world.names() == []
        assert await is_paused(engine)
        assert sorted(await pending(engine, ref)) == ["alarm", "lasting", "ring", "soon"]
        await database.check()

        await engine.resume(job())
        await engine.drain()
        assert sorted(world.names()) == ["alarm", "lasting", "ring", "soon"]
        assert {run.time for run in world.runs} == {engine.now()}
        assert not await is_paused(engine)
        assert await database.keys("q/", "z/", "t/", "o/", "i/") == []


async def test_task_put_aside_that_cannot_be_read_keeps_no_other_from_running(
    world: World, database: Database
) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        for id_, names in (("job", ("first", "second")), ("other", ("third",))):
            ref = await started(engine, id_)
            await engine.pause(job(id_))
            await engine.update(ref, ask(*map(Lasting, names)))
        await engine.drain()
        damaged = await database.overwrite((await database.keys("q/tests/job/"))[0], b"\xff")
        for id_ in ("job", "other"):
            await engine.resume(job(id_))
        await engine.drain()
        assert len(world.names()) == 2
        assert "third" in world.names()
        (letter,) = [letter async for letter in engine.dead_letters()]
        assert (letter.task_id, letter.error_type) == (damaged.rpartition("/")[2], "SerializationError")
        assert await database.keys("q/", "z/", "t/", "o/", "i/") == []


async def test_paused_execution_can_be_written(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine)
        await engine.pause(job())
        await engine.update(ref, note("written"))
        assert await engine.read(ref, log) == ["written"]


async def test_paused_execution_does_not_keep_the_engine_busy(world: World, database: Database) -> None:
    store = FaultyStore(database.store)
    async with TestEngine(world.registry, store, small(poll_interval=2 * HOUR)) as engine:
        await started(engine)
        await engine.pause(job())
        await engine.update(Ref(job()), ask(Soon("soon")))
        await engine.drain()
        asked: list[str] = []

        async def listen(call: StoreCall) -> None:
            # Leases are renewed in another partition.
            if "exec/" in str(call.request):
                asked.append(call.method)

        store.before = listen
        await engine.skip(HOUR)
        assert asked == []


async def test_attempts_before_and_during_a_pause_are_kept_as_they_were(
    world: World, database: Database
) -> None:
    world.on(Lasting, failing(OSError("once"), None))
    async with TestEngine(world.registry, database.store) as engine:
        await started(engine, "job", Lasting("call"))
        await engine.drain()
        await engine.pause(job())
        await engine.skip(HOUR)
        assert world.names() == ["call"]
        await engine.resume(job())
        await engine.drain()
        assert [run.attempt for run in world.runs] == [1, 2]


async def test_task_that_runs_when_the_pause_comes_may_end(world: World, database: Database) -> None:
    running, going_on = asyncio.Event(), asyncio.Event()

    async def slow(env: Environment, ref: Ref, task: Call) -> None:
        running.set()
        await going_on.wait()
        await env.update(ref, note("late", Soon("next")))

    world.on(Call, slow)
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine, "job", Call("call"))
        await running.wait()
        await engine.pause(job())
        going_on.set()
        await engine.drain()

        assert await engine.read(ref, log) == ["late"]
        await engine.resume(job())
        await engine.drain()
        assert await engine.read(ref, log) == ["late", "next"]


async def test_subtree_can_be_paused_alone(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine)
        for id_ in ("a", "b"):
            await engine.update(ref, add_child(id_))
        below = (step("a"), step("below"))
        await engine.update(Ref(job(), (step("a"),)), add_child("below"))
        await engine.pause(job(), (step("a"),))
        for path in ((), (step("a"),), below, (step("b"),)):
            await engine.update(Ref(job(), path), ask(Soon("/".join(key.id for key in path))))
        await engine.drain()
        assert sorted(world.names()) == ["", "b"]

        await engine.resume(job(), (step("b"),))
        await engine.drain()
        assert sorted(world.names()) == ["", "b"]
        await engine.resume(job(), (step("a"),))
        await engine.drain()
        assert sorted(world.names()) == ["", "a", "a/below", "b"]


async def test_resume_without_a_path_resumes_all(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine)
        await engine.update(ref, add_child("a"))
        await engine.pause(job(), (step("a"),))
        await engine.pause(job())
        await engine.pause(job())
        await engine.resume(job(), (step("a"),))
        assert await is_paused(engine)
        await engine.resume(job())
        assert not await is_paused(engine)


async def test_what_is_not_there_cannot_be_paused(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        await started(engine)
        with pytest.raises(StateMachineNotFoundError):
            await engine.pause(job(), (step("a"),))
        await engine.terminate(job())
        for operation in (engine.pause, engine.resume):
            with pytest.raises(ExecutionClosedError):
                await operation(job())


async def test_singleton_that_is_replaced_during_a_pause_does_not_run(
    world: World, database: Database
) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine)
        await engine.pause(job())
        for name in ("old", "new"):
            await engine.update(ref, ask(Newest(name)))
            await engine.drain()
        await database.check()
        await engine.resume(job())
        await engine.drain()
        assert world.names() == ["new"]


async def test_process_that_runs_the_shard_learns_of_a_pause_by_another(
    world: World, database: Database
) -> None:
    options = small(poll_interval=SECOND)
    async with (
        TestEngine(world.registry, database.store, options) as engine,
        TestEngine(world.registry, await database.open(), run_tasks=False, clock=engine.clock) as other,
    ):
        await started(engine, "job", Alarm("alarm", engine.now() + 10 * SECOND))
        await other.pause(job())
        await engine.skip(20 * SECOND)
        assert world.names() == []
        assert await database.keys("p/") == []

        await other.resume(job())
        await engine.skip(2 * SECOND)
        assert world.names() == ["alarm"]


async def test_news_that_change_hands_or_are_none_worry_nobody(
    world: World, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody else takes the row between the moment at which it is read and the one at which it is taken."""
    store = FaultyStore(database.store)
    again: list[str] = []

    async def overtake(call: StoreCall) -> None:
        request = call.request
        if isinstance(request, DeleteRequest) and request.key.startswith("p/tests/") and not again:
            again.append(request.key)
            await database.store.set(SetRequest(partition=request.partition, key=request.key, value=b""))

    async with (
        TestEngine(world.registry, store, small(poll_interval=SECOND)) as engine,
        TestEngine(world.registry, await database.open(), run_tasks=False, clock=engine.clock) as other,
    ):
        await started(engine, "job", Alarm("alarm", engine.now() + 10 * SECOND))
        ((partition, _),) = await database.rows("e/")
        await database.store.set(SetRequest(partition=partition, key="p/no news", value=b""))
        store.before = overtake
        await other.pause(job())
        await engine.skip(5 * SECOND)
        assert len(again) == 1
        assert await database.keys("p/") == []
        await engine.skip(20 * SECOND)
        assert world.names() == []
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == [
        "the row 'p/no news' is no news of an execution"
    ]


async def test_pause_goes_with_its_machine(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine)
        await engine.update(ref, add_child("a"))
        await engine.update(ref, add_child("b"))
        for id_ in ("a", "b"):
            await engine.pause(job(), [step(id_)])
            await engine.update(Ref(job(), (step(id_),)), ask(Soon(f"old {id_}")))
        await engine.drain()
        await engine.update(ref, lambda root: root.delete_child(step("a")))
        await engine.update(ref, add_child("a"))
        await engine.update(Ref(job(), (step("a"),)), ask(Soon("new a")))
        await engine.drain()
        assert world.names() == ["new a"]

        await engine.update(ref, lambda root: root.delete_child(step("b")))
        assert not await is_paused(engine)
        await engine.drain()
        assert world.names() == ["new a"]
    assert await database.keys("q/", "z/", "t/", "o/", "i/") == []


async def test_task_is_not_put_aside_behind_the_back_of_a_resume(world: World, database: Database) -> None:
    """The resume comes between the look at the paused execution and the write that puts the task aside."""
    store = FaultyStore(database.store)
    async with (
        TestEngine(world.registry, store) as engine,
        TestEngine(world.registry, await database.open(), run_tasks=False, clock=engine.clock) as other,
    ):
        ref = await started(engine)
        await engine.pause(job())

        overtaken: list[bool] = []

        async def overtake(call: StoreCall) -> None:
            if call.method == "multi" and "key='q/" in str(call.request):
                store.before = None
                overtaken.append(True)
                await other.resume(job())

        store.before = overtake
        await engine.update(ref, ask(Soon("soon")))
        await engine.skip(timedelta(minutes=1))
        assert overtaken == [True]
        assert world.names() == ["soon"]
        assert await database.keys("q/", "z/", "t/", "o/", "i/") == []


async def test_terminated_while_paused_leaves_no_task(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store, small(delete_rows=1)) as engine:
        ref = await started(engine)
        await engine.pause(job())
        await engine.update(ref, ask(Soon("a"), Soon("b"), Soon("c")))
        await engine.drain()
        await engine.terminate(job())
        await engine.drain()
        assert world.names() == []
        assert await database.keys("q/", "z/", "t/", "o/", "i/") == []


@pytest.mark.parametrize("carried_out", [False, True])
@pytest.mark.parametrize("write", range(1, 12))
async def test_pause_and_resume_that_are_cut_off_can_be_done_again(
    world: World, database: Database, clock: FakeClock, write: int, carried_out: bool
) -> None:
    """At each write: pausing, parking two tasks, resuming, putting them back, running them."""

    async def story(engine: TestEngine) -> None:
        if not world.runs:
            await engine.pause(job())
            await engine.drain()
        await engine.resume(job())
        await engine.drain()

    async with TestEngine(world.registry, database.store, run_tasks=False, clock=clock) as engine:
        await started(engine, "job", Soon("a"), Soon("b"))
        await engine.pause(job())
    store = FaultyStore(await database.open())
    with contextlib.suppress(StorageUnavailableError):
        async with TestEngine(world.registry, store, small(lease_seconds=90), clock=clock) as engine:
            store.cut_off_at(store.writes + write, carried_out=carried_out)
            working = asyncio.ensure_future(story(engine))
            cut = asyncio.ensure_future(store.until_cut_off())
            await asyncio.wait([working, cut], return_when=asyncio.FIRST_COMPLETED)
            for task in (working, cut):
                task.cancel()
            await asyncio.wait([working, cut])
    async with TestEngine(world.registry, database.store, small(lease_seconds=90), clock=clock) as engine:
        await engine.skip(200 * SECOND)
        await engine.resume(job())
        await engine.drain()
        assert sorted(set(world.names())) == ["a", "b"]
        assert sorted(await engine.read(Ref(job()), log)) == ["a", "b"]
        assert await database.keys("q/", "z/", "t/", "o/", "i/") == []
        await database.check()


steps = st.lists(
    st.sampled_from(["pause", "resume", "soon", "alarm", "skip", "restart"]), min_size=1, max_size=12
)


@settings(max_examples=50, deadline=None)
@given(steps)
def test_each_task_runs_once_and_none_during_a_pause(script: list[str]) -> None:
    asyncio.run(play(script))


async def play(script: list[str]) -> None:
    world, clock, asked, paused = World(), FakeClock(), 0, False
    async with new_database("memory", Path()) as database:
        async with TestEngine(world.registry, database.store, clock=clock) as engine:
            await started(engine)
        for action in [*script, "resume", "skip"]:
            async with TestEngine(world.registry, database.store, clock=clock) as engine:
                before = len(world.runs)
                was_paused = paused
                if action == "pause":
                    await engine.pause(job())
                    paused = was_paused = True
                elif action == "resume":
                    await engine.resume(job())
                    paused = was_paused = False
                elif action in {"soon", "alarm"}:
                    asked += 1
                    task = Soon(str(asked)) if action == "soon" else Alarm(str(asked), engine.now() + SECOND)
                    await engine.update(Ref(job()), ask(task))
                elif action == "skip":
                    await engine.skip(5 * SECOND)
                await engine.drain()
                assert not was_paused or len(world.runs) == before
                await database.check()
        assert sorted(world.names()) == sorted(str(number + 1) for number in range(asked))
        assert await database.keys("q/", "z/", "t/", "o/", "i/") == []


async def test_task_does_not_run_if_its_paused_execution_leaves_the_cache_while_it_is_checked(
    world: World, database: Database
) -> None:
    store = FaultyStore(database.store)
    async with TestEngine(world.registry, store) as engine:
        ref = await started(engine)
        await engine.pause(job())

        async def forget(call: StoreCall) -> None:
            if isinstance(call.request, GetRequest) and call.request.key.startswith("e/"):
                engine._executions.forget(ref.execution)

        await engine.update(ref, ask(Soon("soon")))
        store.after = forget
        await engine.drain()
        assert world.names() == []
