"""Several processes and tasks at one execution: nobody loses an update, nobody sees an old tree."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from hsm import (
    AccessType,
    CommitConflictError,
    Node,
    Ref,
    StateMachineNotFoundError,
)
from hsm.testing import Call as StoreCall, FaultyStore, TestEngine
from persistence.store import EngineStore, Operation
from tests.support.databases import Database
from tests.support.jobs import (
    Call,
    Job,
    Step,
    World,
    add_child,
    log,
    note,
    started,
    step,
    write,
)


async def stored(world: World, database: Database, ref: Ref) -> list[str]:
    """The log as a process that has nothing in memory sees it."""
    async with TestEngine(world.registry, database.store, run_tasks=False) as engine:
        return await engine.read(ref, log)


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
        with pytest.raises(CommitConflictError, match="tests/job"):  # noqa: PT012 - raised where the block ends
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
        # A root that never had a child is one row, which is read at once.
        await other.update(ref, add_child("a"))
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
        await other.update(ref, add_child("a"))
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


class Queued(FaultyStore):
    """A store that carries out transactions in order, one after the other, whoever waits for them."""

    def __init__(self, inner: EngineStore) -> None:
        super().__init__(inner)
        self.open = asyncio.Event()
        self._turn = asyncio.Lock()

    async def multi(self, operations: Sequence[Operation]) -> str:
        return await asyncio.shield(asyncio.ensure_future(self._in_turn(operations)))

    async def _in_turn(self, operations: Sequence[Operation]) -> str:
        async with self._turn:
            await self.open.wait()
            return await super().multi(operations)


async def test_cancellation_waits_until_the_outcome_of_the_commit_is_known(
    world: World, database: Database
) -> None:
    store = Queued(database.store)
    store.open.set()
    async with TestEngine(world.registry, store, run_tasks=False) as engine:
        ref = await started(engine)
        store.open.clear()
        update = asyncio.create_task(engine.update(ref, note("in the queue")))
        for _ in range(20):
            await asyncio.sleep(0)
        update.cancel()
        for _ in range(20):
            await asyncio.sleep(0)
        update.cancel()
        await asyncio.sleep(0)
        assert not update.done()
        store.open.set()
        with pytest.raises(asyncio.CancelledError):
            await update
        assert await stored(world, database, ref) == ["in the queue"]
        assert engine._executions.cached(ref.execution) is None
