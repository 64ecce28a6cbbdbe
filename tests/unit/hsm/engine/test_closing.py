"""Closing from outside: terminate refuses all that comes after it, cancel asks the root."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import attrs
import pytest

from hsm import (
    AccessType,
    Environment,
    ExecutionClosedError,
    ExecutionNotFoundError,
    Lifecycle,
    MachineType,
    Node,
    NotCancellableError,
    Ref,
    TransitionOutput,
    attrs_definition,
)
from hsm.engine import Cancellable, Engine
from hsm.testing import FaultyStore, TestEngine
from tests.support.databases import Database
from tests.support.jobs import (
    Alarm,
    Call,
    Job,
    Lasting,
    Ring,
    Soon,
    State,
    Step,
    World,
    finish,
    job,
    log,
    note,
    pending,
    small,
    started,
    step,
)

SECOND = timedelta(seconds=1)


async def statuses(engine: Engine) -> list[Lifecycle]:
    return [info.status async for info in engine.list()]


async def test_terminated_execution_is_closed_and_says_why(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine)
        await engine.terminate(job(), "no longer wanted")

        (info,) = [info async for info in engine.list(status=Lifecycle.TERMINATED)]
        assert (info.key, info.close_reason, info.close_time) == (
            ref.execution,
            "no longer wanted",
            engine.now(),
        )


async def test_terminated_execution_can_be_read_but_not_written(world: World, database: Database) -> None:
    async with (
        TestEngine(world.registry, database.store) as engine,
        TestEngine(world.registry, await database.open(), run_tasks=False) as other,
    ):
        ref = await started(engine)
        await engine.update(ref, note("before"))
        await other.terminate(job(), "that's it")

        for one in (engine, other):
            with pytest.raises(ExecutionClosedError, match="that's it"):
                await one.update(ref, note("after"))
            with pytest.raises(ExecutionClosedError):
                async with one.access(ref, AccessType.WRITE):
                    pass
            assert await one.read(ref, log) == ["before"]


async def test_tasks_of_a_terminated_execution_are_withdrawn(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        soon = engine.now() + SECOND
        ref = await started(engine, "job", Alarm("alarm", soon))
        await engine.update(
            ref, lambda root: note("child", Ring("ring", soon))(root.add_child(step("a"), Step()))
        )
        await engine.terminate(job())

        assert await database.queued() == []
        assert await pending(engine, ref) == []
        await engine.skip(2 * SECOND)
        assert world.names() == []


async def test_tasks_that_are_too_many_for_one_commit_are_dropped_as_they_come_up(
    world: World, database: Database
) -> None:
    async with TestEngine(world.registry, database.store, small(delete_rows=2)) as engine:
        soon = engine.now() + SECOND
        await started(engine, "job", *(Alarm(f"{number}", soon) for number in range(5)))
        await engine.terminate(job())
        assert len(await database.queued()) == 3

        await engine.skip(2 * SECOND)
        assert await database.queued() == []
        assert world.names() == []
        assert [letter async for letter in engine.dead_letters()] == []


async def test_task_that_runs_while_its_execution_is_terminated_writes_nothing(
    world: World, database: Database
) -> None:
    running, going_on = asyncio.Event(), asyncio.Event()
    refused: list[BaseException] = []

    async def slow(env: Environment, ref: Ref, task: Call) -> None:
        running.set()
        await going_on.wait()
        try:
            await env.update(ref, note("late"))
        except ExecutionClosedError as error:
            refused.append(error)
            raise

    world.on(Call, slow)
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine, "job", Call("call"))
        await running.wait()
        await engine.terminate(job())
        going_on.set()
        await engine.drain()

        assert len(refused) == 1
        assert await engine.read(ref, log) == []
        assert await database.queued() == []


async def test_another_process_drops_the_tasks_of_a_terminated_execution(
    world: World, database: Database
) -> None:
    async with TestEngine(world.registry, database.store, run_tasks=False) as engine:
        await started(engine, "job", *(Soon(f"{number}") for number in range(3)))
        engine._options = attrs.evolve(engine._options, delete_rows=1)
        await engine.terminate(job())
    assert len(await database.queued()) == 2

    async with TestEngine(world.registry, database.store) as engine:
        await engine.drain()
        assert await database.queued() == []
        assert world.names() == []


async def test_a_closed_execution_is_not_terminated(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine)
        await engine.update(ref, finish())

        with pytest.raises(ExecutionClosedError, match="completed"):
            await engine.terminate(job())
        assert await statuses(engine) == [Lifecycle.COMPLETED]


async def test_the_same_request_terminates_once(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        await started(engine)
        await engine.terminate(job(), "first", request_id="r")
        await engine.terminate(job(), "second", request_id="r")

        assert [info.close_reason async for info in engine.list()] == ["first"]
        with pytest.raises(ExecutionClosedError, match="terminated"):
            await engine.terminate(job(), "third", request_id="s")


async def test_what_is_not_there_cannot_be_closed(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        with pytest.raises(ExecutionNotFoundError, match="tests/job"):
            await engine.terminate(job())
        with pytest.raises(ExecutionNotFoundError, match="tests/job"):
            await engine.cancel(job())


async def test_terminate_wins_over_a_write_that_began_before_it(world: World, database: Database) -> None:
    async with (
        TestEngine(world.registry, database.store) as engine,
        TestEngine(world.registry, await database.open(), run_tasks=False) as other,
    ):
        ref = await started(engine)
        async with engine.access(ref, AccessType.READ):
            await other.terminate(job())
        with pytest.raises(ExecutionClosedError):
            await engine.update(ref, note("late"))
        assert await engine.read(ref, log) == []


@pytest.mark.parametrize("carried_out", [False, True])
async def test_terminate_that_is_cut_off_has_happened_or_not(
    world: World, database: Database, carried_out: bool
) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        soon = engine.now() + SECOND
        ref = await started(engine, "job", Alarm("alarm", soon))
    store = FaultyStore(await database.open())
    async with TestEngine(world.registry, store, run_tasks=False) as engine:
        store.cut_off_at(store.writes + 1, carried_out=carried_out)
        with pytest.raises(Exception, match="cut off"):
            await engine.terminate(job(), request_id="r")
        store.reconnect()
        assert await pending(engine, ref) == ([] if carried_out else ["alarm"])
        await engine.terminate(job(), request_id="r")
        assert await statuses(engine) == [Lifecycle.TERMINATED]
    assert await database.queued() == []


# Cancel


@attrs.define
class Trip(Job):
    """A root that can be asked to end."""

    def request_cancel(self, node: Node, reason: str) -> TransitionOutput:
        self.log.append(reason)
        self.state = State.FAILED
        return TransitionOutput((Lasting("give back"),))


@attrs.define
class Patient(Job):
    """A root that goes on whatever it is asked."""

    def request_cancel(self, node: Node, reason: str) -> None:
        self.log.append(reason)


def trips() -> World:
    world = World()
    world.registry.register_machine(attrs_definition(MachineType(3, "trip"), Trip))
    world.registry.register_machine(attrs_definition(MachineType(4, "patient"), Patient))
    return world


async def test_root_is_asked_to_end_and_asks_for_tasks(database: Database) -> None:
    world = trips()
    async with TestEngine(world.registry, database.store) as engine:
        ref = await engine.start(job(), Trip())
        await engine.cancel(job(), "bad weather")
        await engine.drain()

        assert isinstance(Trip(), Cancellable)
        assert await engine.read(ref, log) == ["bad weather", "give back"]
        assert await statuses(engine) == [Lifecycle.FAILED]


async def test_each_request_asks_the_root_once(database: Database) -> None:
    world = trips()
    async with TestEngine(world.registry, database.store) as engine:
        ref = await engine.start(job(), Trip())
        await engine.cancel(job(), "first", request_id="r")
        await engine.cancel(job(), "second", request_id="r")
        await engine.drain()

        assert await engine.read(ref, log) == ["first", "give back"]
        with pytest.raises(ExecutionClosedError, match="failed"):
            await engine.cancel(job(), "third")


async def test_only_the_latest_requests_are_remembered(database: Database) -> None:
    world = trips()
    async with TestEngine(world.registry, database.store) as engine:
        ref = await engine.start(job(), Patient())
        for number in range(50):
            await engine.cancel(job(), str(number), request_id=str(number))
        for number in (49, 20, 0):
            await engine.cancel(job(), "again", request_id=str(number))
        written = await engine.read(ref, log)
        assert written == [*map(str, range(50)), "again"]


async def test_root_that_cannot_be_asked_is_named(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine)
        with pytest.raises(NotCancellableError, match="'job'"):
            await engine.cancel(job(), request_id="r")
        await engine.update(ref, note("goes on"))
        assert await engine.read(ref, log) == ["goes on"]
