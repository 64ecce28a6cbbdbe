"""Starts where there is a run already: what the policies say, in one commit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta

import pytest

from hsm import (
    DuplicateRequestError,
    ExecutionAlreadyStartedError,
    ExecutionClosedError,
    Lifecycle,
    Node,
    Ref,
    StorageUnavailableError,
)
from hsm.engine import ConflictPolicy, Engine, ReusePolicy
from hsm.testing import Call as StoreCall, FaultyStore, TestEngine
from persistence.store import GetRequest
from tests.support.databases import Database
from tests.support.jobs import (
    Alarm,
    Call,
    Job,
    State,
    World,
    finish,
    job,
    log,
    note,
    started,
)

USE_EXISTING, TERMINATE = ConflictPolicy.USE_EXISTING, ConflictPolicy.TERMINATE_EXISTING


async def by_run(engine: Engine) -> dict[str, Lifecycle]:
    return {info.key.run_id: info.status async for info in engine.list()}


async def test_running_execution_can_be_used(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        first = await engine.start(job(), Job(), on_start=note("first"))
        second = await engine.start(job(), Job(), on_start=note("second"), conflict=USE_EXISTING)

        assert second == first
        assert await engine.read(first, log) == ["first"]


async def test_a_request_that_has_used_a_run_stays_with_it(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        first = await started(engine)
        for _ in range(2):
            assert await engine.start(job(), Job(), request_id="r", conflict=USE_EXISTING) == first
        await engine.update(first, finish())

        again = await engine.start(job(), Job(), request_id="r", reuse=ReusePolicy.ALLOW)
        assert again == first


async def test_running_execution_is_terminated_by_its_successor(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        soon = engine.now() + timedelta(seconds=1)
        old = await started(engine, "job", Alarm("old", soon))
        new = await engine.start(job(), Job(), on_start=note("new", Alarm("new", soon)), conflict=TERMINATE)

        assert await by_run(engine) == {
            old.execution.run_id: Lifecycle.TERMINATED,
            new.execution.run_id: Lifecycle.RUNNING,
        }
        assert await engine.read(Ref(job()), log) == ["new"]
        with pytest.raises(ExecutionClosedError, match="replaced"):
            await engine.update(old, note("late"))
        await engine.skip(timedelta(seconds=2))
        assert world.names() == ["new"]


@pytest.mark.parametrize("state", [State.DONE, State.FAILED])
@pytest.mark.parametrize("reuse", list(ReusePolicy))
async def test_id_of_a_closed_execution_can_be_used_again_if_that_is_allowed(
    world: World, database: Database, state: State, reuse: ReusePolicy
) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        old = await started(engine)
        await engine.update(old, finish(state))
        allowed = reuse is ReusePolicy.ALLOW or (
            reuse is ReusePolicy.ALLOW_IF_FAILED and state is State.FAILED
        )
        if not allowed:
            with pytest.raises(ExecutionAlreadyStartedError) as caught:
                await engine.start(job(), Job(), reuse=reuse, conflict=TERMINATE)
            assert caught.value.closed
            return
        new = await engine.start(job(), Job(), on_start=note("new"), reuse=reuse)

        assert await engine.read(Ref(job()), log) == ["new"]
        assert await engine.read(old, log) == []
        assert new != old


async def test_terminated_execution_counts_as_failed(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        old = await started(engine)
        await engine.terminate(job())
        new = await engine.start(job(), Job(), reuse=ReusePolicy.ALLOW_IF_FAILED)
        assert new.execution.run_id != old.execution.run_id


@pytest.mark.parametrize("conflict", [ConflictPolicy.FAIL, TERMINATE])
async def test_a_run_id_is_not_used_twice(world: World, database: Database, conflict: ConflictPolicy) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        await engine.start(job()._replace(run_id="a"), Job(), on_start=note("a"))
        await engine.start(job()._replace(run_id="b"), Job(), conflict=TERMINATE)
        for run_id in ("a", "b"):
            with pytest.raises(ExecutionAlreadyStartedError):
                await engine.start(
                    job()._replace(run_id=run_id), Job(), conflict=conflict, reuse=ReusePolicy.ALLOW
                )
        assert await by_run(engine) == {"a": Lifecycle.TERMINATED, "b": Lifecycle.RUNNING}
        assert await engine.read(Ref(job()._replace(run_id="a")), log) == ["a"]


async def test_many_starts_at_once_leave_one_run(world: World, database: Database) -> None:
    async with (
        TestEngine(world.registry, database.store) as engine,
        TestEngine(world.registry, await database.open(), run_tasks=False) as other,
    ):
        engines = [engine, other] * 5
        await asyncio.gather(*(one.start(job(), Job(), conflict=TERMINATE) for one in engines))

        runs = list((await by_run(engine)).values())
        assert len(runs) == 10
        assert runs.count(Lifecycle.RUNNING) == 1
        assert runs.count(Lifecycle.TERMINATED) == 9


@pytest.mark.parametrize("carried_out", [False, True])
async def test_replacement_that_is_cut_off_has_happened_or_not(
    world: World, database: Database, carried_out: bool
) -> None:
    async with TestEngine(world.registry, database.store, run_tasks=False) as engine:
        old = await started(engine, "job", Call("old"))
    store = FaultyStore(await database.open())
    async with TestEngine(world.registry, store, run_tasks=False) as engine:
        # The first write is a try that finds the old run.
        store.cut_off_at(store.writes + 2, carried_out=carried_out)
        with pytest.raises(StorageUnavailableError):
            await engine.start(job(), Job(), request_id="r", on_start=note("new"), conflict=TERMINATE)
        store.reconnect()
        assert len(await by_run(engine)) == 1 + carried_out
        new = await engine.start(job(), Job(), request_id="r", on_start=note("new"), conflict=TERMINATE)

        assert await by_run(engine) == {
            old.execution.run_id: Lifecycle.TERMINATED,
            new.execution.run_id: Lifecycle.RUNNING,
        }
    assert await database.queued() == []


# Update with start


def append(text: str) -> Callable[[Node], list[str]]:
    def update(root: Node) -> list[str]:
        note(text)(root)
        return log(root)

    return update


async def test_update_starts_what_is_not_there(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        assert await engine.update_with_start(job(), Job(), append("first")) == ["first"]
        assert await engine.update_with_start(job(), Job(log=["ignored"]), append("second")) == [
            "first",
            "second",
        ]


async def test_on_start_runs_only_when_it_starts(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        for text in ("first", "second"):
            await engine.update_with_start(job(), Job(), append(text), on_start=note("started"))
        assert await engine.read(Ref(job()), log) == ["started", "first", "second"]


async def test_update_of_a_closed_execution_starts_another_run_if_that_is_allowed(
    world: World, database: Database
) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine)
        await engine.update(ref, finish())
        with pytest.raises(ExecutionAlreadyStartedError):
            await engine.update_with_start(job(), Job(), append("no"))

        new = await engine.update_with_start(job(), Job(), append("yes"), reuse=ReusePolicy.ALLOW)
        assert new == ["yes"]
        assert await engine.read(ref, log) == []


async def test_update_with_start_does_each_request_once(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        for request in ("starts", "updates"):
            await engine.update_with_start(job(), Job(), append(request), request_id=request)
        for request in ("starts", "updates"):
            with pytest.raises(DuplicateRequestError, match=request):
                await engine.update_with_start(job(), Job(), append("again"), request_id=request)
        assert await engine.read(Ref(job()), log) == ["starts", "updates"]


async def test_update_with_start_that_fails_leaves_nothing(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        with pytest.raises(ZeroDivisionError):
            await engine.update_with_start(job(), Job(), lambda _: 1 // 0)
        assert await database.keys("c/", "e/") == []


async def test_two_that_update_with_start_at_once_are_both_done(world: World, database: Database) -> None:
    async with (
        TestEngine(world.registry, database.store) as engine,
        TestEngine(world.registry, await database.open(), run_tasks=False) as other,
    ):
        results = await asyncio.gather(
            *(
                one.update_with_start(job(), Job(), append(str(number)))
                for number, one in enumerate([engine, other] * 4)
            )
        )
        written = await engine.read(Ref(job()), log)
        assert sorted(written) == [str(number) for number in range(8)]
        assert sorted(map(len, results)) == list(range(1, 9))


async def test_start_that_is_overtaken_between_look_and_commit_decides_anew(
    world: World, database: Database
) -> None:
    store = FaultyStore(await database.open())
    async with (
        TestEngine(world.registry, database.store) as other,
        TestEngine(world.registry, store, run_tasks=False) as engine,
    ):
        old = await started(other)
        await other.update(old, finish())

        async def reopen(call: StoreCall) -> None:
            if call.write and call.number > 3:
                store.before = None
                await other.update(old, finish(State.OPEN))

        async def look(call: StoreCall) -> None:
            if call.method == "get" and isinstance(call.request, GetRequest) and call.request.key[0] == "e":
                store.before = reopen

        store.before = look
        with pytest.raises(ExecutionAlreadyStartedError):
            await engine.start(job(), Job(), reuse=ReusePolicy.ALLOW)
        assert len(await by_run(other)) == 1
