"""Reading and writing an execution: what is committed, what is undone, and who is told of whom."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import pytest

from hsm import (
    AccessClosedError,
    AccessType,
    Environment,
    ExecutionNotFoundError,
    Node,
    ReentrantTransitionError,
    Ref,
    StaleReferenceError,
    StateMachineNotFoundError,
    UntrackedChangeError,
)
from hsm.testing import Call as StoreCall, FaultyStore, TestEngine
from persistence.store import CheckRequest, DeleteRequest
from tests.support.databases import Database
from tests.support.jobs import (
    Call,
    Job,
    Soon,
    Step,
    World,
    ask,
    job,
    log,
    note,
    small,
    started,
    step,
)


class PlannedError(Exception):
    """A reason of the test's own."""


async def stored(world: World, database: Database, ref: Ref) -> list[str]:
    """The log as a process that has nothing in memory sees it."""
    async with TestEngine(world.registry, database.store, run_tasks=False) as engine:
        return await engine.read(ref, log)


async def test_access_commits_at_the_end_of_the_block(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine)
        async with engine.access(ref, AccessType.WRITE) as node:
            note("first")(node)
            note("second")(node)
            assert await stored(world, database, ref) == []

        assert await stored(world, database, ref) == ["first", "second"]
        assert await engine.read(ref, log) == ["first", "second"]


@pytest.mark.parametrize("error", [PlannedError, KeyboardInterrupt, asyncio.CancelledError])
async def test_access_rolls_back_what_raises(
    world: World, database: Database, error: type[BaseException]
) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine)
        with pytest.raises(error):  # noqa: PT012 - the end of the block is what is tested
            async with engine.access(ref, AccessType.WRITE) as node:
                note("never", Call("never"))(node)
                node.add_child(step("never"), Step())
                raise error

        assert await engine.read(ref, log) == []
        assert await engine.read(ref, lambda node: len(list(node.walk()))) == 1
        await engine.update(ref, note("after"))
        assert await stored(world, database, ref) == ["after"]
        assert world.names() == []


async def test_update_commits_and_returns_its_result(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine)

        def change(node: Node) -> str:
            note("changed")(node)
            return "result"

        assert await engine.update(ref, change) == "result"
        assert await stored(world, database, ref) == ["changed"]


async def test_update_rolls_back_what_raises(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine)

        def change(node: Node) -> None:
            note("never", Call("never"))(node)
            raise PlannedError

        with pytest.raises(PlannedError):
            await engine.update(ref, change)

        assert await engine.read(ref, log) == []
        assert await stored(world, database, ref) == []
        await engine.update(ref, note("after"))
        assert await engine.read(ref, log) == ["after"]


async def test_nodes_are_of_no_use_after_the_block(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine)
        kept: list[Node] = []
        await engine.update(ref, kept.append)
        await engine.read(ref, kept.append)
        for access in AccessType:
            async with engine.access(ref, access) as node:
                kept.append(node)

        for node in kept:
            for use in (
                lambda node: node.data(Job),
                note("late"),
                lambda node: node.add_child(step("late"), Step()),
                lambda node: node.child((step("late"),)),
                lambda node: list(node.walk()),
                lambda node: node.delete_child(step("late")),
            ):
                with pytest.raises(AccessClosedError):
                    use(node)
        assert await stored(world, database, ref) == []


async def test_second_access_inside_the_block_is_refused(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine)
        other = await started(engine, "other")
        for access in AccessType:
            async with engine.access(ref, access):
                with pytest.raises(ReentrantTransitionError, match="tests/job"):
                    await engine.update(ref, note("inner"))
                with pytest.raises(ReentrantTransitionError):
                    await engine.read(ref, log)
                with pytest.raises(ReentrantTransitionError):
                    async with engine.access(ref, AccessType.READ):
                        pass
                await engine.update(other, note("another execution"))

        await engine.update(ref, note("after"))
        assert await engine.read(ref, log) == ["after"]


async def test_second_access_waits_for_the_first(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine)
        async with asyncio.TaskGroup() as group, engine.access(ref, AccessType.WRITE) as node:
            group.create_task(engine.update(ref, note("second")))
            await asyncio.sleep(0)
            note("first")(node)

        assert await engine.read(ref, log) == ["first", "second"]


@pytest.mark.parametrize("change", [note("x"), lambda node: node.add_child(step("x"), Step())])
async def test_changes_under_read_are_refused(
    world: World, database: Database, change: Callable[[Node], None]
) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine)
        with pytest.raises(UntrackedChangeError):
            await engine.read(ref, change)
        with pytest.raises(UntrackedChangeError):
            async with engine.access(ref, AccessType.READ) as node:
                change(node)

        assert await engine.read(ref, lambda node: (log(node), len(list(node.walk())))) == ([], 1)
        await engine.update(ref, note("after"))
        assert await stored(world, database, ref) == ["after"]


async def test_references_are_checked(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine)
        await engine.update(ref, lambda root: root.add_child(step("a"), Step()))
        old = await engine.read(Ref(ref.execution, (step("a"),)), lambda node: node.ref(ref.execution))
        await engine.update(old, lambda node: None)

        with pytest.raises(ExecutionNotFoundError, match="tests/nobody"):
            await engine.update(Ref(job("nobody")), log)
        with pytest.raises(ExecutionNotFoundError):
            await engine.read(Ref(job()._replace(run_id="another")), log)
        with pytest.raises(StateMachineNotFoundError):
            await engine.update(Ref(job(), (step("b"),)), log)
        await engine.update(ref, lambda root: root.delete_child(step("a")))
        await engine.update(ref, lambda root: root.add_child(step("a"), Step()))
        with pytest.raises(StaleReferenceError):
            await engine.read(old, log)
        with pytest.raises(StaleReferenceError):
            async with engine.access(old, AccessType.WRITE):
                pass


async def test_reference_to_a_transition_goes_stale_with_the_next(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine)
        exact = await engine.update(ref, lambda node: (note("x")(node), node.ref(ref.execution))[1])
        assert await engine.read(exact, log) == ["x"]
        await engine.update(exact, note("y"))
        with pytest.raises(StaleReferenceError):
            await engine.update(exact, note("z"))


async def test_update_without_changes_writes_nothing(world: World, database: Database) -> None:
    store = FaultyStore(database.store)
    async with TestEngine(world.registry, store) as engine:
        ref = await started(engine)
        writes = store.writes
        assert await engine.update(ref, log) == []
        async with engine.access(ref, AccessType.WRITE):
            pass
        assert store.writes == writes


async def test_commit_is_one_transaction_with_the_execution_first(world: World, database: Database) -> None:
    """State, children and tasks of an update go together, under the etag of the execution."""
    store = FaultyStore(database.store)
    multis: list[Any] = []

    async def watch(call: StoreCall) -> None:
        if call.write:
            multis.append(call.request)

    async with TestEngine(world.registry, store, run_tasks=False) as engine:
        ref = await started(engine)
        store.before = watch
        await engine.update(
            ref, lambda root: (note("x", Call("a"), Call("b"))(root), root.add_child(step("s"), Step()))
        )

    (operations,) = multis
    assert operations[0].etag
    assert [operation.key[:2] for operation in operations].count("o/") == 2
    assert [operation.key[:2] for operation in operations].count("n/") == 1
    assert not any(isinstance(operation, (CheckRequest, DeleteRequest)) for operation in operations)


async def test_few_cached_trees_are_enough(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store, small(cached_executions=2)) as engine:
        refs = [await started(engine, str(number), Call("call")) for number in range(10)]
        await engine.drain()
        async with engine.access(refs[0], AccessType.WRITE) as held:
            for ref in refs[1:]:
                await engine.update(ref, note("x"))
            note("held")(held)
        assert await engine.read(refs[0], log) == ["call", "held"]
        assert [await engine.read(ref, log) for ref in refs[1:]] == [["call", "x"]] * 9


async def test_executors_may_use_access(world: World, database: Database) -> None:
    async def run(env: Environment, ref: Ref, task: Call) -> None:
        async with env.access(ref, AccessType.READ) as node:
            seen = log(node)
        async with env.access(ref, AccessType.WRITE) as node:
            note(f"{task.name} saw {seen}")(node)

    world.on(Call, run)
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine)
        await engine.update(ref, ask(Call("call")))
        await engine.drain()
        assert await engine.read(ref, log) == ["call saw []"]
    assert await database.queued() == []


async def test_executor_does_not_inherit_the_context_of_who_committed_its_task(
    world: World, database: Database
) -> None:
    variable: ContextVar[str] = ContextVar("variable", default="engine")
    seen: list[str] = []

    async def look(env: Environment, ref: Ref, task: Soon) -> None:
        seen.append(variable.get())

    world.on(Soon, look)
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine)
        variable.set("caller")
        await engine.update(ref, note("x", Soon("a")))
        await engine.drain()
    assert seen == ["engine"]
