"""Leases: every shard is run by one engine at a time, and by somebody soon after its engine has gone."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from hsm import Environment, StaleStateError
from hsm.engine import Engine, _leases
from hsm.engine._leases import owner_of
from hsm.engine._processes import Presence, is_gone
from hsm.engine.clock import SystemClock
from hsm.ref import ExecutionKey, Ref
from hsm.testing import Call, CutOffError, FakeClock, FaultyStore, TestEngine
from persistence.errors import StoreCorruptError, StoreUnavailableError
from persistence.executions import SETTINGS_PARTITION, shard_of, shard_owner_key, shard_partition
from persistence.proto.execution_pb2 import MemberRow
from persistence.store import Change, DeleteRequest, EngineStore, Feature, SetRequest
from tests.support.databases import Database, new_database
from tests.support.jobs import Job, Lasting, World, ask, job, log, noted, small, started

SHARDS = 32
ROUND = timedelta(seconds=10)
OPTIONS = small(shard_count=SHARDS, poll_interval=timedelta(seconds=1), lease_seconds=30)


class Process(TestEngine):
    """An engine with a store of its own, that can die."""

    def __init__(self, world: World, store: EngineStore, clock: FakeClock) -> None:
        self.line = FaultyStore(store)
        super().__init__(world.registry, self.line, OPTIONS, clock=clock)

    @property
    def shards(self) -> set[int]:
        return set(self._shards.owned)

    async def die(self) -> None:
        """Lose the line to the store, and end without having said so."""
        self.line.cut_off()
        await self.__aexit__(CutOffError, CutOffError(), None)


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as entered:
        yield entered


async def begun(world: World, database: Database, clock: FakeClock, stack: AsyncExitStack) -> Process:
    return await stack.enter_async_context(Process(world, await database.open(), clock))


async def rounds(clock: FakeClock, *processes: Process, count: int = 3) -> None:
    for _ in range(count):
        clock.advance(ROUND)
        for process in processes:
            await process._settle()


async def test_lone_engine_runs_every_shard_at_once(
    world: World, database: Database, clock: FakeClock, stack: AsyncExitStack
) -> None:
    alone = await begun(world, database, clock, stack)
    assert alone.shards == set(range(SHARDS))


async def test_engines_divide_the_shards_and_run_each_task_once(
    world: World, database: Database, clock: FakeClock, stack: AsyncExitStack
) -> None:
    ran: list[tuple[object, str]] = []

    async def run(env: object, ref: Ref, task: Lasting) -> None:
        ran.append((env, task.name))

    world.on(Lasting, run)
    processes = [await begun(world, database, clock, stack) for _ in range(3)]
    await rounds(clock, *processes)
    owned = [process.shards for process in processes]
    assert all(owned)
    assert sorted(shard for shards in owned for shard in shards) == list(range(SHARDS))

    names = [f"job-{number}" for number in range(40)]
    for name in names:
        await started(processes[0], name, Lasting(name))
    await rounds(clock, *processes)
    assert sorted(name for _, name in ran) == sorted(names)
    assert len({env for env, _ in ran}) > 1
    assert await database.queued() == []


async def test_shards_of_an_engine_that_closes_go_to_the_others(
    world: World, database: Database, clock: FakeClock, stack: AsyncExitStack
) -> None:
    one = await begun(world, database, clock, stack)
    async with Process(world, await database.open(), clock) as other:
        await rounds(clock, one, other)
        assert other.shards
    assert await members(database) == [f"m/{one._shards._leases._member}"]
    await rounds(clock, one, count=1)
    assert one.shards == set(range(SHARDS))


async def test_task_left_by_another_process_is_taken_up_at_once_where_the_store_tells_of_it(
    world: World, clock: FakeClock, tmp_path: Path
) -> None:
    world.on(Lasting, noted)
    async with (
        new_database("memory", tmp_path) as database,
        Process(world, await database.open(), clock) as owner,
        TestEngine(world.registry, await database.open(), OPTIONS, clock=clock, run_tasks=False) as writer,
    ):
        ref = await started(writer, "job", Lasting("call"))
        await owner.wait(ref, lambda node: log(node) == ["call"])


async def test_engine_that_died_here_is_not_waited_for(
    world: World, database: Database, clock: FakeClock
) -> None:
    dead = Process(world, await database.open(), clock)
    await dead.__aenter__()
    await dead.die()
    async with Process(world, await database.open(), clock) as heir:
        assert heir.shards == set(range(SHARDS))


async def members(database: Database) -> list[str]:
    items = database.store.scan(SETTINGS_PARTITION, "m/", "m0")
    return [item.key async for item in items]


async def forget_members(database: Database) -> None:
    """As if the leases of all had run out."""
    for key in await members(database):
        await database.store.delete(DeleteRequest(partition=SETTINGS_PARTITION, key=key))


async def test_lease_that_ran_out_is_lost_and_another_one_taken(
    world: World, database: Database, clock: FakeClock, stack: AsyncExitStack
) -> None:
    slow = await begun(world, database, clock, stack)
    member = slow._shards._leases._member
    await forget_members(database)
    other = await begun(world, database, clock, stack)
    assert other.shards == set(range(SHARDS))
    await rounds(clock, slow, other)
    assert slow._shards._leases._member != member
    assert slow.shards | other.shards == set(range(SHARDS))
    assert not slow.shards & other.shards


async def test_engine_that_stood_still_runs_nothing_until_it_has_a_lease_again(
    world: World, database: Database, clock: FakeClock, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.on(Lasting, noted)
    engine = await begun(world, database, clock, stack)
    real = _leases._now
    monkeypatch.setattr(_leases, "_now", lambda: real() + 3600)
    ref = await started(engine, "job", Lasting("call"))
    assert world.names() == []
    await rounds(clock, engine, count=1)
    assert world.names() == ["call"]
    assert await engine.read(ref, log) == ["call"]


async def test_answer_that_was_lost_costs_no_lease(
    world: World, database: Database, clock: FakeClock, stack: AsyncExitStack
) -> None:
    engine = await begun(world, database, clock, stack)
    member = engine._shards._leases._member

    async def lose_an_answer(call: object) -> None:
        engine.line.after = None
        raise CutOffError

    engine.line.after = lose_an_answer
    await rounds(clock, engine)
    assert engine._shards._leases._member == member
    assert engine.shards == set(range(SHARDS))


class Immortal(FaultyStore):
    """A store whose rows do not expire."""

    @property
    def features(self) -> frozenset[Feature]:
        return super().features - {Feature.TTL}


async def test_where_rows_do_not_expire_a_silent_member_is_dead(
    world: World, database: Database, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_leases, "is_gone", lambda _: False)
    dead = Process(world, await database.open(), clock)
    await dead.__aenter__()
    await dead.die()
    async with TestEngine(world.registry, Immortal(database.store), OPTIONS, clock=clock) as heir:
        await rounds(clock, heir)  # type: ignore[arg-type]  # any engine of tests will do
        assert heir._shards._leases.owned != frozenset(range(SHARDS))
        real = _leases._now
        monkeypatch.setattr(_leases, "_now", lambda: real() + 60)
        await rounds(clock, heir)  # type: ignore[arg-type]  # as above
        assert heir._shards._leases.owned == frozenset(range(SHARDS))


async def test_engine_that_runs_no_tasks_takes_no_shard(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store, OPTIONS, run_tasks=False) as reader:
        await reader.start(ExecutionKey("", "x"), Job())
        assert await members(database) == []


def test_a_process_that_is_gone_is_known_by_its_start() -> None:
    presence = Presence()
    row = presence.row()
    assert not is_gone(row)
    elsewhere = MemberRow()
    elsewhere.CopyFrom(row)
    elsewhere.place = "another machine"
    elsewhere.pid = 2**22 + 1
    assert not is_gone(elsewhere)
    if not row.place:
        pytest.skip("nothing is known of processes here")
    reused = MemberRow()
    reused.CopyFrom(row)
    reused.started -= 1
    assert is_gone(reused)
    absent = MemberRow()
    absent.CopyFrom(row)
    absent.pid = 2**22 + 1
    assert is_gone(absent)
    parent = MemberRow()
    parent.CopyFrom(row)
    parent.pid, parent.started = (
        os.getppid(),
        int(Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[19]),
    )
    assert not is_gone(parent)
    presence.end()
    assert is_gone(row)


@given(
    st.sets(st.text(max_size=5), min_size=2, max_size=8), st.integers(min_value=1, max_value=64), st.data()
)
def test_a_member_that_leaves_moves_only_its_own_shards(
    names: set[str], shards: int, data: st.DataObject
) -> None:
    leaver = data.draw(st.sampled_from(sorted(names)))
    before = {shard: owner_of(shard, names) for shard in range(shards)}
    after = {shard: owner_of(shard, names - {leaver}) for shard in range(shards)}
    for shard in range(shards):
        assert before[shard] == after[shard] or before[shard] == leaver


async def test_shard_whose_release_failed_is_released_by_the_next_round(
    world: World, database: Database, clock: FakeClock, stack: AsyncExitStack
) -> None:
    one = await begun(world, database, clock, stack)

    failed: list[Call] = []

    async def fail_once(call: Call) -> None:
        if call.method == "multi" and "DeleteRequest" in str(call.request) and not failed:
            failed.append(call)
            raise StoreUnavailableError("away")

    one.line.before = fail_once
    other = await begun(world, database, clock, stack)
    await rounds(clock, one, other, count=5)
    assert failed
    assert one.shards | other.shards == set(range(SHARDS))
    assert not one.shards & other.shards


async def test_shards_that_go_are_waited_for_together(
    world: World, database: Database, clock: FakeClock, stack: AsyncExitStack
) -> None:
    waits: list[float] = []
    one = await begun(world, database, clock, stack)
    leave = one._shards._leases._leave

    async def count(shards: Collection[int], patience: float) -> None:
        waits.append(patience)
        await leave(shards, patience)

    one._shards._leases._leave = count
    other = await begun(world, database, clock, stack)
    await rounds(clock, one, other)
    assert other.shards
    assert sum(waits) <= one._shards._leases.interval


async def test_owner_that_cannot_be_read_is_replaced(
    world: World, database: Database, clock: FakeClock, stack: AsyncExitStack
) -> None:
    for key in (shard_owner_key(1), "s/what"):
        await database.store.set(SetRequest(partition=SETTINGS_PARTITION, key=key, value=b"\xff"))
    alone = await begun(world, database, clock, stack)
    assert alone.shards == set(range(SHARDS))


async def test_shard_whose_row_says_otherwise_is_given_up(
    world: World, database: Database, clock: FakeClock, stack: AsyncExitStack
) -> None:
    alone = await begun(world, database, clock, stack)
    await database.store.delete(DeleteRequest(partition=SETTINGS_PARTITION, key=shard_owner_key(1)))
    await rounds(clock, alone, count=1)
    assert alone.shards == set(range(SHARDS))
    assert len(await database.keys("s/")) == SHARDS


async def test_engine_that_closes_in_the_middle_of_a_round_leaves_nothing_behind(
    world: World, database: Database, clock: FakeClock
) -> None:
    engine = Process(world, await database.open(), clock)
    await engine.__aenter__()
    written = asyncio.Event()

    async def hang(call: Call) -> None:
        if call.method == "multi":
            written.set()
            await asyncio.Event().wait()

    # The row is written, and the answer on its way.
    engine.line.after = hang
    clock.advance(ROUND)
    await written.wait()
    engine._shards.stop()
    engine.line.after = None
    await engine.__aexit__(None, None, None)
    assert await database.keys("m/", "s/") == []


async def test_task_that_has_to_wait_is_left_to_the_new_owner_of_its_shard(
    world: World, database: Database, clock: FakeClock, stack: AsyncExitStack
) -> None:
    ran: list[tuple[object, str]] = []
    proceed = asyncio.Event()

    async def run(env: Environment, ref: Ref, task: Lasting) -> None:
        ran.append((env, ref.execution.id))
        if env is one:
            await proceed.wait()
            raise StaleStateError("not yet")
        await noted(env, ref, task)

    async def leave_at_once(shards: Collection[int], patience: float) -> None:
        await leave(shards, 0)

    world.on(Lasting, run)
    one = await begun(world, database, clock, stack)
    leave = one._shards._leases._leave
    one._shards._leases._leave = leave_at_once
    jobs = [(await started(one, f"job-{number}", Lasting("call"))).execution for number in range(8)]
    other = await begun(world, database, clock, stack)
    while not other.shards or one.shards & other.shards or len(one.shards | other.shards) < SHARDS:
        clock.advance(ROUND)
        await asyncio.sleep(0.001)
    await other._settle()
    proceed.set()
    for _ in range(20):
        clock.advance(ROUND)
        await asyncio.sleep(0.001)
    theirs = [key.id for key in jobs if shard_of(key.namespace, key.id, SHARDS) in other.shards]
    assert theirs
    assert [ran.count((one, name)) for name in theirs] == [1] * len(theirs)


class Deaf(FaultyStore):
    """A store whose first watch ends at once."""

    def watch(self, partition: str, prefix: str) -> AsyncIterator[Change]:
        changes = super().watch(partition, prefix)
        self.watched = getattr(self, "watched", 0) + 1
        return self._nothing() if self.watched == 1 else changes

    async def _nothing(self) -> AsyncIterator[Change]:
        nothing: tuple[Change, ...] = ()
        for change in nothing:
            yield change


async def test_watch_that_ends_is_begun_again(world: World, clock: FakeClock, tmp_path: Path) -> None:
    world.on(Lasting, noted)
    async with new_database("memory", tmp_path) as database:
        deaf = Deaf(await database.open())
        async with (
            TestEngine(world.registry, deaf, OPTIONS, clock=clock) as owner,
            TestEngine(
                world.registry, await database.open(), OPTIONS, clock=clock, run_tasks=False
            ) as writer,
        ):
            await owner.skip(timedelta(seconds=2))
            assert deaf.watched == 2
            ref = await started(writer, "job", Lasting("call"))
            await owner.wait(ref, lambda node: log(node) == ["call"])


async def test_shard_that_cannot_be_read_keeps_nobody_from_the_others(
    world: World, database: Database, clock: FakeClock, stack: AsyncExitStack
) -> None:
    world.on(Lasting, noted)
    async with TestEngine(world.registry, database.store, OPTIONS, clock=clock, run_tasks=False) as writer:
        refs = [await started(writer, f"job-{number}", Lasting("call")) for number in range(40)]
    shards = {shard_of(*ref.execution[:2], SHARDS) for ref in refs}
    broken = {shard_partition(shard) for shard in sorted(shards)[:3]}

    async def refuse(call: Call) -> None:
        if call.method == "scan" and isinstance(call.request, tuple) and call.request[0] in broken:
            raise StoreCorruptError("damaged")

    line = FaultyStore(await database.open())
    line.before = refuse
    engine = await stack.enter_async_context(TestEngine(world.registry, line, OPTIONS, clock=clock))
    sound = [ref for ref in refs if shard_partition(shard_of(*ref.execution[:2], SHARDS)) not in broken]
    async with asyncio.timeout(10):
        for ref in sound:
            await engine.wait(ref, lambda node: log(node) == ["call"])
    broken.clear()
    clock.advance(timedelta(seconds=1))
    await engine.drain()
    assert sorted(world.names()) == ["call"] * len(refs)


async def test_polls_go_on_when_the_clock_is_put_back(world: World, database: Database) -> None:
    world.on(Lasting, noted)
    clock = SystemClock()
    options = small(shard_count=1, poll_interval=timedelta(milliseconds=20), clock=clock)
    async with (
        Engine(world.registry, database.store, options) as engine,
        Engine(world.registry, await database.open(), options, run_tasks=False) as writer,
    ):
        await engine.drain()
        writer._shards._bell.audible = False
        past = time.time_ns() - 3600 * 10**9
        clock.time_ns = lambda: past  # type: ignore[method-assign]  # it is an hour ago
        ref = await writer.start(job("job"), Job(), on_start=ask(Lasting("call")))
        async with asyncio.timeout(10):
            await engine.wait(ref, lambda node: log(node) == ["call"])


def test_process_that_is_hidden_is_not_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Presence().row()
    if not row.place:
        pytest.skip("nothing is known of processes here")
    row.pid = os.getppid()
    read = Path.read_text

    def hide(path: Path, encoding: str | None = None, errors: str | None = None) -> str:
        if str(path) == f"/proc/{row.pid}/stat":
            raise PermissionError(path)
        return read(path, encoding, errors)

    monkeypatch.setattr(Path, "read_text", hide)
    assert not is_gone(row)
    row.pid = 2**22 + 1
    assert is_gone(row)
