"""Reading and writing an execution: what is committed, what is undone, and who is told of whom."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from hsm import (
    AccessClosedError,
    AccessType,
    CommitConflictError,
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
    Step,
    World,
    ask,
    job,
    log,
    note,
    small,
    started,
    step,
    write,
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


async def test_update_that_loses_the_race_runs_again(world: World, database: Database) -> None:
    async with (
        TestEngine(world.registry, database.store) as one,
        TestEngine(world.registry, await database.open()) as other,
    ):
        ref = await started(one)
        seen: list[list[str]] = []

        def change(node: Node) -> None:
            seen.append(log(node))
            note("mine")(node)

        await one.read(ref, log)
        await other.update(ref, note("theirs"))
        await one.update(ref, change)

        assert seen == [[], ["theirs"]]
        assert await other.read(ref, log) == ["theirs", "mine"]


async def test_many_processes_lose_no_update(world: World, database: Database) -> None:
    async with (
        TestEngine(world.registry, database.store) as one,
        TestEngine(world.registry, await database.open()) as two,
        TestEngine(world.registry, await database.open()) as three,
    ):
        ref = await started(one)
        async with asyncio.TaskGroup() as group:
            for number in range(30):
                engine = (one, two, three)[number % 3]
                group.create_task(engine.update(ref, note(str(number))))

        assert sorted(await one.read(ref, log), key=int) == [str(number) for number in range(30)]
        assert await one.read(ref, lambda node: node.transition_count) == 30


async def test_access_that_loses_the_race_is_told(world: World, database: Database) -> None:
    async with (
        TestEngine(world.registry, database.store) as one,
        TestEngine(world.registry, await database.open()) as other,
    ):
        ref = await started(one)
        with pytest.raises(CommitConflictError, match="tests/job"):  # noqa: PT012
            async with one.access(ref, AccessType.WRITE) as node:
                note("mine", Call("never"))(node)
                await other.update(ref, note("theirs"))

        assert await one.read(ref, log) == ["theirs"]
        await one.update(ref, note("again"))
        assert await other.read(ref, log) == ["theirs", "again"]
        assert world.names() == []


async def test_read_sees_what_others_wrote(world: World, database: Database) -> None:
    async with (
        TestEngine(world.registry, database.store) as one,
        TestEngine(world.registry, await database.open()) as other,
    ):
        ref = await started(one)
        for number in range(3):
            await other.update(ref, note(str(number)))
            assert len(await one.read(ref, log)) == number + 1
            async with one.access(ref, AccessType.READ) as node:
                assert len(log(node)) == number + 1


async def test_tree_out_of_date_causes_no_false_error(world: World, database: Database) -> None:
    async with (
        TestEngine(world.registry, database.store) as one,
        TestEngine(world.registry, await database.open()) as other,
    ):
        ref = await started(one)
        await one.read(ref, log)
        await other.update(ref, lambda root: note("new")(root.add_child(step("a"), Step())))
        child = Ref(ref.execution, (step("a"),))
        await one.update(child, note("found"))
        assert await one.read(child, log) == ["new", "found"]

        # Gone for one, there for the other; and the update has nothing to write.
        await other.update(ref, lambda root: root.delete_child(step("a")))
        with pytest.raises(StateMachineNotFoundError):
            await one.update(child, lambda node: None)
        await other.update(ref, lambda root: root.add_child(step("a"), Step()))
        await one.update(ref, lambda root: root.child((step("a"),)))

        # The reference knows more than the cache.
        newer = await other.update(child, lambda node: (note("newer")(node), node.ref(ref.execution))[1])
        assert await one.update(newer, log) == ["newer"]


async def test_reads_see_the_store_though_a_slower_load_is_under_way(
    world: World, database: Database
) -> None:
    """A load that began before another's write may end while one that began later is still reading."""
    slow = FaultyStore(database.store)
    async with (
        TestEngine(world.registry, slow, run_tasks=False) as one,
        TestEngine(world.registry, await database.open()) as other,
    ):
        ref = await started(other)
        held: list[asyncio.Event] = []
        waiting = asyncio.Semaphore(0)

        async def hold_scans(call: StoreCall) -> None:
            if call.method == "scan":
                held.append(asyncio.Event())
                waiting.release()
                await held[-1].wait()

        slow.after = hold_scans
        first = asyncio.create_task(one.read(ref, log))
        await waiting.acquire()
        slow.after = None
        before_the_write = await one.read(ref, log)
        await other.update(ref, note("written meanwhile"))

        assert before_the_write == []
        assert await one.read(ref, log) == ["written meanwhile"]
        held[0].set()
        assert await first in ([], ["written meanwhile"])
        assert await one.read(ref, log) == ["written meanwhile"]


async def test_read_does_not_take_over_an_older_load(world: World, database: Database) -> None:
    slow = FaultyStore(database.store)
    async with (
        TestEngine(world.registry, slow, run_tasks=False) as one,
        TestEngine(world.registry, await database.open()) as other,
    ):
        ref = await started(other)
        gates = [asyncio.Event(), asyncio.Event()]
        waiting = asyncio.Semaphore(0)
        gets = 0

        async def hold_the_last_read_of_a_load(call: StoreCall) -> None:
            nonlocal gets
            gets += call.method == "get"
            if call.method == "get" and gets in {2, 4}:
                waiting.release()
                await gates[gets // 2 - 1].wait()

        slow.after = hold_the_last_read_of_a_load
        first = asyncio.create_task(one.read(ref, log))
        await waiting.acquire()
        await other.update(ref, note("written meanwhile"))
        second = asyncio.create_task(one.read(ref, log))
        await waiting.acquire()
        gates[0].set()
        assert await first == []
        gates[1].set()
        assert await second == ["written meanwhile"]


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
    assert [operation.key[:2] for operation in operations].count("n/") == 2
    assert not any(isinstance(operation, (CheckRequest, DeleteRequest)) for operation in operations)


async def test_cancelled_commit_is_waited_for_and_the_tree_read_again(
    world: World, database: Database
) -> None:
    store = FaultyStore(database.store)
    async with TestEngine(world.registry, store) as engine:
        ref = await started(engine)
        committed, held = asyncio.Event(), asyncio.Event()

        async def hold(call: StoreCall) -> None:
            if call.write:
                store.after = None
                committed.set()
                await held.wait()

        store.after = hold
        update = asyncio.create_task(engine.update(ref, note("cancelled in the commit", Call("call"))))
        await committed.wait()
        update.cancel()
        with pytest.raises(asyncio.CancelledError):
            await update

        assert await engine.read(ref, log) == ["cancelled in the commit"]
        await engine.update(ref, lambda node: node.transition(Job, write("next")))
        assert await stored(world, database, ref) == ["cancelled in the commit", "next"]


async def test_cancelled_before_its_commit_leaves_nothing(world: World, database: Database) -> None:
    store = FaultyStore(database.store)
    async with TestEngine(world.registry, store) as engine:
        ref = await started(engine)
        reached = asyncio.Event()

        async def hold(call: StoreCall) -> None:
            if call.write:
                store.before = None
                reached.set()
                await asyncio.Event().wait()

        store.before = hold
        update = asyncio.create_task(engine.update(ref, note("never", Call("never"))))
        await reached.wait()
        update.cancel()
        with pytest.raises(asyncio.CancelledError):
            await update

        assert await engine.read(ref, log) == []
        await engine.update(ref, note("next"))
        assert await stored(world, database, ref) == ["next"]
        assert world.names() == []


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
