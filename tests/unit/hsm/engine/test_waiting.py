"""Waiting for executions: woken by whoever changes them, by one watch or one poll for all who wait."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import timedelta

import pytest

from hsm import ExecutionNotFoundError, Node, Ref, StaleReferenceError
from hsm.engine import Engine, TimerHandle
from hsm.testing import Call as StoreCall, FakeClock, FaultyStore, TestEngine
from persistence.store import BulkGetResponse, Change, ChangeKind, Feature, GetRequest
from tests.support.databases import Database
from tests.support.jobs import Step, World, add_child, log, note, small, started, step

SECOND = timedelta(seconds=1)


class CountingStore(FaultyStore):
    """Counts watches, and reads of versions."""

    watches = 0
    ended = 0
    reads = 0
    rows = 0
    reading = 0
    broken = False
    forgetful = False

    def watch(self, partition: str, prefix: str) -> AsyncIterator[Change]:
        changes = super().watch(partition, prefix)
        if partition == "exec":
            return changes
        self.watches += 1
        return self._counted(changes)

    async def _counted(self, changes: AsyncIterator[Change]) -> AsyncIterator[Change]:
        try:
            async for change in changes:
                if self.broken:
                    raise ConnectionError("the watch is broken")
                yield Change(ChangeKind.RESYNC) if self.forgetful else change
        finally:
            self.ended += 1

    async def bulk_get(
        self, requests: Sequence[GetRequest], *, parallelism: int = 0
    ) -> Sequence[BulkGetResponse]:
        if any(request.key.startswith("e/") for request in requests):
            self.reads += 1
            self.rows += len(requests)
        self.reading += 1
        try:
            return await super().bulk_get(requests, parallelism=parallelism)
        finally:
            self.reading -= 1

    async def settled(self) -> None:
        """Return when those who look have seen what there is at this time."""
        await turns(3)
        while self.reading:  # noqa: ASYNC110 - it is a matter of milliseconds
            await asyncio.sleep(0.001)


class Blind(CountingStore):
    """Cannot be watched."""

    @property
    def features(self) -> frozenset[Feature]:
        return super().features - {Feature.WATCH}


async def turns(number: int = 100) -> None:
    """What must not happen cannot be waited for."""
    for _ in range(number):
        await asyncio.sleep(0.001)


def watchers() -> list[str]:
    """What goes on in the background for those who wait."""
    return [name for task in asyncio.all_tasks() if "Waiters" in (name := repr(task.get_coro()))]


def waiting(engine: Engine, ref: Ref, text: str) -> asyncio.Task[Ref]:
    return asyncio.create_task(engine.wait(ref, lambda node: text in log(node)))


async def begun(engine: Engine, number: int) -> None:
    """Return when so many wait."""
    while len(engine._waiters) < number:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0)


async def end(*tasks: asyncio.Task[Ref]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_waiters_share_one_watch_and_hear_of_other_processes_at_once(
    world: World, database: Database, clock: FakeClock
) -> None:
    store = CountingStore(database.store)
    if Feature.WATCH not in store.features:
        pytest.skip("the store cannot be watched")
    async with (
        TestEngine(world.registry, store, small(), clock=clock) as engine,
        TestEngine(world.registry, await database.open(), small(), clock=clock, run_tasks=False) as other,
    ):
        ref = await started(engine)
        tasks = [waiting(engine, ref, "a") for _ in range(50)]
        await begun(engine, 50)
        await other.update(ref, note("not yet"))
        await other.update(ref, note("a"))
        for found in await asyncio.gather(*tasks):
            assert found.execution == ref.execution
        assert (store.watches, store.ended, store.reads) == (1, 1, 0)


async def test_without_a_watch_waiters_share_polls_whose_pauses_grow(
    world: World, database: Database, clock: FakeClock
) -> None:
    store = Blind(database.store)
    options = small(poll_interval=SECOND, shard_count=1)
    async with TestEngine(world.registry, store, options, clock=clock, run_tasks=False) as engine:
        refs = [await started(engine, str(number)) for number in range(3)]
        tasks = [waiting(engine, ref, "a") for ref in refs for _ in range(20)]
        await begun(engine, 60)
        await clock.skip(SECOND, settle=store.settled)
        # The first look wakes everybody once, and then they are 1/32, 1/16, ... of a second apart.
        assert 4 <= store.reads <= 8
        store.reads = store.rows = 0
        await clock.skip(60 * SECOND, settle=store.settled)
        assert 59 <= store.reads <= 62
        assert store.rows == 3 * store.reads
        await end(*tasks)


async def test_without_a_watch_changes_of_others_are_seen_within_the_poll_interval(
    world: World, database: Database, clock: FakeClock
) -> None:
    store = Blind(database.store)
    options = small(poll_interval=SECOND)
    async with (
        TestEngine(world.registry, store, options, clock=clock, run_tasks=False) as engine,
        TestEngine(world.registry, await database.open(), options, clock=clock, run_tasks=False) as other,
    ):
        ref = await started(engine)
        task = waiting(engine, ref, "a")
        await begun(engine, 1)
        await clock.skip(20 * SECOND, settle=store.settled)
        await other.update(ref, note("a"))
        await turns(20)
        assert not task.done()
        await clock.skip(SECOND, settle=store.settled)
        await task


class WallClock(FakeClock):
    """A clock that can be put back, while time goes on all the same."""

    back = 0

    def time_ns(self) -> int:
        return super().time_ns() - self.back

    def call_at(self, when_ns: int, callback: Callable[[], None]) -> TimerHandle:
        return super().call_at(when_ns + self.back, callback)

    def call_later(self, delay_ns: int, callback: Callable[[], None]) -> TimerHandle:
        return self.call_at(self.time_ns() + delay_ns, callback)


async def test_clock_that_is_put_back_lets_nobody_wait_longer(world: World, database: Database) -> None:
    clock, store = WallClock(), Blind(database.store)
    options = small(poll_interval=SECOND)
    async with (
        TestEngine(world.registry, store, options, clock=clock, run_tasks=False) as engine,
        TestEngine(world.registry, await database.open(), options, clock=clock, run_tasks=False) as other,
    ):
        ref = await started(engine)
        task = waiting(engine, ref, "a")
        await begun(engine, 1)
        await clock.skip(20 * SECOND, settle=store.settled)
        clock.back = 3600 * 10**9
        await other.update(ref, note("a"))
        await clock.skip(2 * SECOND, settle=store.settled)
        async with asyncio.timeout(10):
            await task


@pytest.mark.parametrize("calls", range(1, 7))
async def test_change_between_two_looks_is_not_missed(
    world: World, database: Database, clock: FakeClock, calls: int
) -> None:
    """Whenever it comes: before the first look, before the watch, between that and the second look."""
    store = FaultyStore(database.store)
    async with (
        TestEngine(world.registry, store, small(), clock=clock, run_tasks=False) as engine,
        TestEngine(world.registry, await database.open(), small(), clock=clock, run_tasks=False) as other,
    ):
        ref = await started(other)
        left = calls

        async def change(call: StoreCall) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                store.after = None
                await other.update(ref, note("a"))

        store.after = change
        task = waiting(engine, ref, "a")
        for _ in range(20):
            await turns(2)
            if task.done():
                break
            clock.advance(timedelta(hours=1))
        assert left <= 0 or calls > 4, "the change never came"
        if left > 0:
            store.after = None
            await other.update(ref, note("a"))
            clock.advance(timedelta(hours=1))
        await task


@pytest.mark.parametrize("kind", [CountingStore, Blind])
async def test_cancelled_waiters_leave_nothing_behind(
    world: World, database: Database, clock: FakeClock, kind: type[CountingStore]
) -> None:
    store = kind(database.store)
    async with TestEngine(world.registry, store, small(), clock=clock, run_tasks=False) as engine:
        ref = await started(engine)
        tasks = [waiting(engine, ref, "a") for _ in range(10)]
        await begun(engine, 10)
        await end(*tasks[:9])
        assert len(engine._waiters) == 1
        assert watchers() != []
        await end(tasks[9])
        await turns(3)
        assert len(engine._waiters) == 0
        assert engine._waiters._shards == {}
        assert watchers() == []
        assert store.ended == store.watches


async def test_waiter_that_is_served_leaves_nothing_behind(
    world: World, database: Database, clock: FakeClock
) -> None:
    async with TestEngine(world.registry, database.store, small(), clock=clock) as engine:
        ref = await started(engine)
        for number in range(3):
            task = waiting(engine, ref, str(number))
            await begun(engine, 1)
            await engine.update(ref, note(str(number)))
            await task
        with pytest.raises(TimeoutError):
            await engine.wait(ref, lambda _: False, timeout=timedelta())
        await turns(3)
        assert engine._waiters._shards == {}
        assert watchers() == []


async def test_deadline_is_kept_while_nothing_happens(
    world: World, database: Database, clock: FakeClock
) -> None:
    async with TestEngine(world.registry, database.store, small(), clock=clock) as engine:
        ref = await started(engine)
        task = asyncio.create_task(engine.wait(ref, lambda _: False, timeout=90 * SECOND))
        await begun(engine, 1)
        await engine.skip(89 * SECOND)
        assert not task.done()
        await engine.skip(SECOND)
        with pytest.raises(TimeoutError):
            await task


async def test_watch_that_breaks_is_begun_again(world: World, database: Database, clock: FakeClock) -> None:
    store = CountingStore(database.store)
    if Feature.WATCH not in store.features:
        pytest.skip("the store cannot be watched")
    options = small(poll_interval=SECOND)
    async with (
        TestEngine(world.registry, store, options, clock=clock, run_tasks=False) as engine,
        TestEngine(world.registry, await database.open(), options, clock=clock, run_tasks=False) as other,
    ):
        ref = await started(engine)
        task = waiting(engine, ref, "a")
        await begun(engine, 1)
        await turns(3)
        store.broken = True
        await other.update(ref, note("a"))
        await turns(3)
        assert store.ended == 1
        assert not task.done()
        store.broken = False
        clock.advance(SECOND)
        await task
        assert store.watches == 2


async def test_watch_that_may_have_missed_something_wakes_everybody(
    world: World, database: Database, clock: FakeClock
) -> None:
    store = CountingStore(database.store)
    if Feature.WATCH not in store.features:
        pytest.skip("the store cannot be watched")
    store.forgetful = True
    async with (
        TestEngine(world.registry, store, small(shard_count=1), clock=clock, run_tasks=False) as engine,
        TestEngine(world.registry, await database.open(), small(), clock=clock, run_tasks=False) as other,
    ):
        refs = [await started(engine, name) for name in ("one", "two")]
        tasks = [waiting(engine, ref, "a") for ref in refs]
        await begun(engine, 2)
        for ref in refs:
            await other.update(ref, note("a"))
        await asyncio.gather(*tasks)
        assert store.watches == 1


async def test_waiter_is_told_that_what_it_waits_for_is_gone(
    world: World, database: Database, clock: FakeClock
) -> None:
    async with (
        TestEngine(world.registry, database.store, small(), clock=clock, run_tasks=False) as engine,
        TestEngine(world.registry, await database.open(), small(), clock=clock, run_tasks=False) as other,
    ):
        root = await started(engine)
        await engine.update(root, add_child("x"))
        child = await engine.read(Ref(root.execution, (step("x"),)), lambda node: node.ref(root.execution))
        tasks = [asyncio.create_task(engine.wait(ref, lambda _: False)) for ref in (root, child)]
        await begun(engine, 2)
        await other.update(root, lambda node: node.delete_child(step("x")))
        await engine.skip(timedelta(hours=1))
        with pytest.raises(StaleReferenceError):
            await tasks[1]
        assert not tasks[0].done()
        await other.delete(root.execution, force=True)
        await engine.skip(timedelta(hours=1))
        with pytest.raises(ExecutionNotFoundError):
            await tasks[0]


async def test_predicate_that_fails_is_the_waiters_affair(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine)

        def fails_later(node: Node) -> bool:
            if log(node):
                raise ZeroDivisionError
            return False

        task = asyncio.create_task(engine.wait(ref, fails_later))
        good = waiting(engine, ref, "b")
        await begun(engine, 2)
        await engine.update(ref, note("a"))
        with pytest.raises(ZeroDivisionError):
            await task
        await engine.update(ref, note("b"))
        await good


async def test_closed_engine_lets_nobody_wait(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine)
        task = waiting(engine, ref, "a")
        await begun(engine, 1)
        await engine.shutdown()
        await engine.update(ref, note("not yet"))
        assert not task.done()
    with pytest.raises(RuntimeError, match="closed"):
        await task
    with pytest.raises(RuntimeError, match="closed"):
        await engine.wait(ref, lambda _: False)
    assert engine._waiters._shards == {}


async def test_waiting_for_a_machine_below_the_root(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        root = await started(engine)
        await engine.update(root, add_child("x"))
        child = Ref(root.execution, (step("x"),))
        task = asyncio.create_task(engine.wait(child, lambda node: "a" in node.data(Step).log))
        await begun(engine, 1)
        await engine.update(root, note("elsewhere"))
        await engine.update(child, note("a"))
        assert (await task).path == (step("x"),)


async def test_store_that_does_not_answer_for_a_while_delays_waiters_only(
    world: World, database: Database, clock: FakeClock
) -> None:
    store = FaultyStore(database.store)
    options = small(poll_interval=SECOND)
    async with (
        TestEngine(world.registry, store, options, clock=clock, run_tasks=False) as engine,
        TestEngine(world.registry, await database.open(), options, clock=clock, run_tasks=False) as other,
    ):
        ref = await started(engine)
        task = waiting(engine, ref, "a")
        await begun(engine, 1)
        await turns(3)
        store.cut_off()
        await other.update(ref, note("a"))
        await turns(3)
        clock.advance(5 * SECOND)
        await turns(3)
        assert not task.done()
        store.reconnect()
        # A watch that was cut off says so when it is told the next change.
        await other.update(ref, note("b"))
        await other.update(ref, note("c"))
        for _ in range(70):
            clock.advance(SECOND)
            await turns(2)
            if task.done():
                break
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(10):
                await task
        assert task.done()
