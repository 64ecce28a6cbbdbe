"""Stores that fail, and engines that end: nothing is lost, nothing is half done."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import attrs
import pytest

from hsm import AccessType, CommitOutcomeUnknownError, Environment, Node, Ref, TransactionTooLargeError
from hsm.engine import Backoff
from hsm.errors import StorageUnavailableError
from hsm.testing import Call as StoreCall, FakeClock, FaultyStore, TestEngine
from persistence import errors as storage
from persistence.store import Limits, Operation
from tests.support.databases import Database
from tests.support.jobs import (
    Alarm,
    Job,
    Lasting,
    Ring,
    Soon,
    Step,
    World,
    ask,
    job,
    log,
    note,
    noted,
    pending,
    small,
    started,
    step,
)

SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
EXACT = Backoff(initial=SECOND, maximum=timedelta(minutes=1), jitter=0.0)


async def test_callers_are_told_that_the_store_does_not_answer(world: World, database: Database) -> None:
    store = FaultyStore(database.store)
    async with TestEngine(world.registry, store) as engine:
        ref = await started(engine)
        store.cut_off()
        with pytest.raises(StorageUnavailableError):
            await engine.update(ref, note("x"))
        with pytest.raises(StorageUnavailableError):
            await engine.update(Ref(job()), note("x"))
        with pytest.raises(StorageUnavailableError):
            await engine.read(ref, log)
        with pytest.raises(StorageUnavailableError):
            await started(engine, "other")
        with pytest.raises(StorageUnavailableError):
            async with engine.access(ref, AccessType.WRITE):
                pass
        store.reconnect()
        assert await engine.read(ref, log) == []
        await engine.update(ref, note("y"))
        assert await engine.read(ref, log) == ["y"]


async def test_failed_delete_of_a_subtree_is_told_as_such(world: World, database: Database) -> None:
    store = FaultyStore(database.store)
    async with TestEngine(world.registry, store) as engine:
        ref = await started(engine)
        await engine.update(ref, lambda root: root.add_child(step("a"), Step()))

        def delete(root: Node) -> None:
            root.delete_child(step("a"))
            store.cut_off()

        with pytest.raises(StorageUnavailableError):
            await engine.update(ref, delete)
        store.reconnect()
        assert await engine.read(ref, lambda root: [node.path for node in root.walk()]) == [(), (step("a"),)]


async def test_tasks_wait_while_the_store_does_not_answer(
    world: World, database: Database, clock: FakeClock
) -> None:
    store = FaultyStore(database.store)
    options = small(backoff=EXACT, max_attempts=2, poll_interval=SECOND)

    async def run(env: Environment, ref: Ref, task: Lasting) -> None:
        if len(world.runs) == 1:
            store.cut_off()
        await noted(env, ref, task)

    world.on(Lasting, run)
    async with TestEngine(world.registry, store, options, clock=clock) as engine:
        due = clock.now() + timedelta(seconds=20)
        ref = await started(engine, "job", Lasting("call"), Ring("timer", due), Alarm("alarm", due))
        await engine.skip(timedelta(minutes=5))
        assert len(world.runs) > 3
        store.reconnect()
        await engine.skip(timedelta(minutes=2))
        assert sorted(await engine.read(ref, log)) == ["alarm", "call", "timer"]
        assert [dead async for dead in engine.dead_letters()] == []
        assert await pending(engine, ref) == []
    assert await database.queued() == []


async def test_engine_starts_though_the_store_answers_only_later(
    world: World, database: Database, clock: FakeClock
) -> None:
    async with TestEngine(world.registry, database.store, clock=clock, run_tasks=False) as engine:
        ref = await started(engine, "job", Lasting("call"))

    store = FaultyStore(database.store)

    async def fail_scans(call: StoreCall) -> None:
        if call.method == "scan":
            raise storage.StoreUnavailableError("not yet")

    store.before = fail_scans
    async with TestEngine(
        world.registry, store, small(poll_interval=SECOND, lease_seconds=2), clock=clock
    ) as engine:
        for _ in range(3):
            clock.advance(SECOND)
            await asyncio.sleep(0.01)
        assert world.runs == []
        store.before = None
        clock.advance(SECOND)
        await engine.drain()
        assert await engine.read(ref, log) == ["call"]


@pytest.mark.parametrize("concern", ["o/", "t/"])
async def test_reading_ahead_that_fails_is_made_up_for(
    world: World, database: Database, clock: FakeClock, concern: str
) -> None:
    store = FaultyStore(database.store)
    failing = False

    async def fail_scans(call: StoreCall) -> None:
        if failing and call.method == "scan" and f"'{concern}" in str(call.request):
            raise storage.StoreUnavailableError("not now")

    store.before = fail_scans
    options = small(queue_buffer=2, timer_window=2, poll_interval=timedelta(seconds=30), shard_count=1)
    async with TestEngine(world.registry, store, options, clock=clock) as engine:
        start = clock.now()
        await engine.drain()
        failing = True
        await asyncio.gather(
            *(
                started(engine, str(number), Lasting("x"), Ring("y", start + number * SECOND))
                for number in range(20)
            )
        )
        await engine.skip(timedelta(seconds=20))
        assert len(world.runs) < 40
        failing = False
        await engine.skip(timedelta(minutes=2))
        assert len(world.runs) == 40
    assert await database.queued() == []


async def test_unknown_outcome_that_was_carried_out(world: World, database: Database) -> None:
    store = FaultyStore(database.store)
    async with TestEngine(world.registry, store) as engine:
        ref = await started(engine)

        async def lose_the_answer(call: StoreCall) -> None:
            if call.write:
                store.after = None
                raise storage.CommitOutcomeUnknownError("who knows")

        store.after = lose_the_answer
        with pytest.raises(CommitOutcomeUnknownError):
            await engine.update(ref, note("written", Soon("task")))
        assert await engine.read(ref, log) == ["written"]
        await engine.update(ref, note("next"))
        await engine.skip(HOUR)
        assert await engine.read(ref, log) == ["written", "next", "task"]


async def test_start_whose_outcome_is_unknown_can_be_repeated(world: World, database: Database) -> None:
    store = FaultyStore(database.store)
    async with TestEngine(world.registry, store) as engine:

        async def lose_the_answer(call: StoreCall) -> None:
            if call.write:
                store.after = None
                raise storage.CommitOutcomeUnknownError("who knows")

        store.after = lose_the_answer
        with pytest.raises(CommitOutcomeUnknownError):
            await engine.start(job(), Job(), request_id="r", on_start=ask(Soon("task")))
        ref = await engine.start(job(), Job(), request_id="r", on_start=ask(Soon("task")))
        await engine.skip(HOUR)
        assert await engine.read(ref, log) == ["task"]


async def test_task_whose_commit_has_an_unknown_outcome_changes_state_once(
    world: World, database: Database
) -> None:
    store = FaultyStore(database.store)

    async def lose_the_answer(call: StoreCall) -> None:
        if call.write:
            store.after = None
            raise storage.CommitOutcomeUnknownError("who knows")

    async def run(env: Environment, ref: Ref, task: Lasting) -> None:
        if len(world.runs) == 1:
            store.after = lose_the_answer
        await noted(env, ref, task)

    world.on(Lasting, run)
    async with TestEngine(world.registry, store) as engine:
        ref = await started(engine, "job", Lasting("call"))
        await engine.run_until_idle()
        assert await engine.read(ref, log) == ["call"]
        assert await pending(engine, ref) == []
    assert await database.queued() == []


async def test_executor_cancelled_in_the_middle_of_its_commit_changes_state_once(database: Database) -> None:
    world, store = World(timeout=SECOND), FaultyStore(database.store)
    committed = asyncio.Event()

    async def hold(call: StoreCall) -> None:
        if call.write:
            store.after = None
            committed.set()
            await asyncio.Event().wait()

    async def run(env: Environment, ref: Ref, task: Lasting) -> None:
        if ref.attempt == 1:
            store.after = hold
        await env.update(ref, note(task.name, Soon("then")))

    world.on(Lasting, run)
    async with TestEngine(world.registry, store) as engine:
        ref = await started(engine, "job", Lasting("call"))
        await committed.wait()
        engine.clock.advance(SECOND)
        await engine.drain()
        await engine.skip(2 * HOUR)
        assert await engine.read(ref, log) == ["call", "then"]
    assert await database.queued() == []


async def test_error_of_the_store_that_nobody_expects_is_told_and_undone(
    world: World, database: Database
) -> None:
    store = FaultyStore(database.store)
    async with TestEngine(world.registry, store) as engine:
        ref = await started(engine, "job", Alarm("later", engine.now() + HOUR))

        async def explode(call: StoreCall) -> None:
            if call.write:
                raise RuntimeError("a bug of the store")

        store.before = explode
        with pytest.raises(RuntimeError, match="bug of the store"):
            await engine.update(ref, note("never", Soon("never")))
        store.before = None
        assert await engine.read(ref, log) == []
        assert await pending(engine, ref) == ["alarm"]
        await engine.update(ref, note("after"))
        await engine.skip(HOUR)
        assert await engine.read(ref, log) == ["after", "later"]


class Narrow(FaultyStore):
    """A store whose transactions hold little."""

    @property
    def limits(self) -> Limits:
        return attrs.evolve(super().limits, operations=5)

    async def multi(self, operations: Sequence[Operation]) -> str:
        if len(operations) > 5:
            raise storage.TransactionTooLargeError("more than 5 operations")
        return await super().multi(operations)


async def test_commit_over_the_limits_is_refused_before_anything_is_written(
    world: World, database: Database
) -> None:
    store = Narrow(database.store)
    async with TestEngine(world.registry, store) as engine:
        ref = await started(engine)
        with pytest.raises(TransactionTooLargeError):
            await engine.update(ref, note("never", *(Soon("never") for _ in range(10))))
        with pytest.raises(TransactionTooLargeError):
            await started(engine, "other", *(Soon("never") for _ in range(10)))
        assert await engine.read(ref, log) == []
        await engine.update(ref, note("after"))
        await engine.drain()
        assert await engine.read(ref, log) == ["after"]
        assert await engine.count() == 1
    assert world.runs == []


async def test_value_over_the_limits_is_refused_by_the_store(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine)
        with pytest.raises(TransactionTooLargeError):
            await engine.update(ref, note("x" * 20_000_000))
        assert await engine.read(ref, log) == []
        await engine.update(ref, note("after"))


async def test_outage_is_told_once_and_its_end_too(
    world: World, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    store = FaultyStore(database.store)
    async with TestEngine(world.registry, store, small()) as engine:
        await engine.drain()
        store.cut_off()
        await engine.skip(3 * HOUR)
        store.reconnect()
        await engine.skip(3 * HOUR)
    messages = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(messages) == 2
    assert "is asked again" in messages[0]
    assert messages[1] == "the store answers again"


async def test_database_that_no_engine_has_used_is_left_alone_if_told_so(
    world: World, database: Database
) -> None:
    with pytest.raises(StorageUnavailableError, match="no engine has used"):
        async with TestEngine(world.registry, database.store, small(create=False), run_tasks=False):
            pass
    assert await database.rows() == []
    async with TestEngine(world.registry, database.store) as engine:
        await started(engine)
    async with TestEngine(world.registry, database.store, small(create=False), run_tasks=False) as engine:
        assert await engine.count() == 1
