"""Claims: who may run an entity, whatever becomes of processes and answers."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest

from hsm.goalstate import (
    Action,
    ActionList,
    EntityKind,
    Run,
)
from hsm.goalstate._rows import EntityKey, GoalRows
from hsm.testing import Call, FaultyStore
from persistence.errors import PersistenceError, StoreUnavailableError
from persistence.goals import goal_partition
from persistence.proto.execution_pb2 import MemberRow
from persistence.proto.goal_pb2 import GoalClaim, GoalRow
from persistence.store import SetRequest
from tests.support.databases import new_database
from tests.support.goals import SECOND
from tests.support.switches import HOUR, Goal, Switch, World, engine_of, keys, skip


async def test_run_that_goes_on_keeps_its_claim_also_from_another_process(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("hsm.engine._stopping.PATIENCE_SECONDS", 0.01)
    world.open.clear()
    world.heedless = True
    async with new_database("memory", tmp_path) as database:
        first = engine_of(world, database.store, run_timeout=10 * SECOND, claim_margin=20 * SECOND)
        await first.start()
        await first.enqueue(world.kind, "a")
        await world.begun.wait()
        await world.clock.skip(20 * SECOND)
        assert first.in_flight == 0
        await first.stop(drain=False)
        async with engine_of(world, await database.open()) as second:
            # The claim of the first run would have ended long ago, but for its being held.
            for _ in range(10):
                await skip(second, world, 20 * SECOND)
            await second.enqueue(world.kind, "a")
            await skip(second, world, 20 * SECOND)
            assert world.log == ["a"]
            world.heedless = False
            world.open.set()
            await world.clock.skip(SECOND)
            await skip(second, world, HOUR)
            assert world.log == ["a", "a"]


async def test_claim_that_has_run_out_is_taken_over_and_the_late_run_changes_nothing(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world.open.clear()
    async with new_database("memory", tmp_path) as database:
        first = engine_of(world, database.store, shard_count=1, claim_margin=20 * SECOND)
        async with first:
            await first.enqueue(world.kind, "a")
            await world.begun.wait()
            # As if this process had stood still: its time limit has not come, and the claim has ended.
            runner = first._runner
            assert runner is not None
            (entry,) = runner._entries.values()
            await runner._rows.change(entry.key, _ended)
            other = engine_of(world, await database.open())
            other_world = World(world.clock)
            other._kinds = {"light": other_world.kind}
            await first._runner.reader.release()  # type: ignore[union-attr]  # it was started
            async with other:
                await skip(other, world, SECOND)
                assert other_world.log == ["a"]
                assert other_world.fences == [2]
                world.open.set()
                await asyncio.sleep(0)
                await first._runner.dispatcher.drain()  # type: ignore[union-attr]  # it was started
                assert "somebody else has run the entity" in caplog.text
                info = await other.describe(world.kind, "a")
                assert info is not None
                assert (info.running, info.deadline) == (False, None)


def _ended(row: Any) -> Any:
    new = type(row)()
    new.CopyFrom(row)
    new.claim.until_nanos = 1
    return new


async def test_list_that_takes_longer_than_usual_has_a_claim_that_lasts(world: World, tmp_path: Path) -> None:
    world.open.clear()
    world.timeout = timedelta(hours=2)
    async with new_database("memory", tmp_path) as database, engine_of(world, database.store) as engine:
        await engine.enqueue(world.kind, "a")
        await world.begun.wait()
        runner = engine._runner
        assert runner is not None
        (key,) = runner._entries
        row, _ = await runner._rows.load(key)
        assert row is not None
        assert row.claim.until_nanos >= world.clock.time_ns() + 7200 * 10**9 + 30 * 10**9
        await world.clock.skip(HOUR)
        assert engine.in_flight == 1
        world.open.set()
        await engine.drain()
    assert world.log == ["a"]


async def test_thread_that_outlasts_its_time_keeps_its_claim_until_it_ends(
    world: World, tmp_path: Path
) -> None:
    begun, letting_go = threading.Event(), threading.Event()
    runs: list[int] = []

    def hang(light: Switch, run: Run) -> None:
        runs.append(run.fence)
        begun.set()
        letting_go.wait(60)

    @attrs.define
    class Slow(Switch):
        def action_list(self, state: str, goal: str, /) -> ActionList[Switch]:
            return ActionList([Action("hang", hang, SECOND)])

    kind: EntityKind[Goal] = EntityKind("light", lambda id_: Slow(id_, world))
    async with new_database("memory", tmp_path) as database:
        engine = engine_of(world, database.store, run_timeout=10 * SECOND, claim_margin=10 * SECOND)
        engine._kinds = {"light": kind}
        async with engine:
            await engine.enqueue(kind, "a")
            assert await asyncio.to_thread(begun.wait, 60)
            for _ in range(60):
                await world.clock.skip(SECOND)
            assert engine.in_flight == 0
            info = await engine.describe(kind, "a")
            assert info is not None
            assert info.running
            assert runs == [1]
            letting_go.set()
            await engine.drain()
            info = await engine.describe(kind, "a")
            assert info is not None
            assert info.failures == 1


async def test_entity_whose_claim_was_made_but_for_the_answer_need_not_wait_for_its_end(
    world: World, tmp_path: Path
) -> None:
    lost = 0

    async def lose(call: Call) -> None:
        nonlocal lost
        if not lost and "r/light/a" in repr(call.request) and call.method == "multi":
            lost += 1
            raise StoreUnavailableError("the line has gone")

    async with new_database("memory", tmp_path) as database:
        store = FaultyStore(database.store)
        store.after = lose
        async with engine_of(world, store, poll_interval=10 * SECOND) as engine:
            await engine.enqueue(world.kind, "a")
            await world.clock.skip(30 * SECOND)
            assert lost == 1
            assert (world.log, world.fences) == (["a"], [2])
            await engine.drain()
            assert await keys(database.store) == ["g/light/a"]


async def test_claim_that_is_made_while_the_engine_stops_is_given_back(world: World, tmp_path: Path) -> None:
    claiming, answer = asyncio.Event(), asyncio.Event()

    async def hold_up(call: Call) -> None:
        if call.method == "multi" and "r/light/a" in repr(call.request):
            claiming.set()
            await answer.wait()

    async with new_database("memory", tmp_path) as database:
        store = FaultyStore(database.store)
        store.before = hold_up
        engine = engine_of(world, store)
        await engine.start()
        await engine.enqueue(world.kind, "a")
        await claiming.wait()
        stopping = asyncio.create_task(engine.stop(drain=False))
        for _ in range(10):
            await asyncio.sleep(0)
        answer.set()
        await stopping
        assert world.log == []
        assert [key[:2] for key in await keys(database.store)] == ["g/", "t/"]


@pytest.mark.parametrize(("failures", "runs"), [(0, ["a"]), (1, [])])
async def test_run_that_its_process_has_not_survived_counts_as_a_failure(
    world: World, tmp_path: Path, failures: int, runs: list[str]
) -> None:
    def killed(row: GoalRow | None) -> GoalRow:
        claim = GoalClaim(until_nanos=1, member=MemberRow(host="elsewhere"))
        return GoalRow(fence=failures + 1, failures=failures, claim=claim)

    world.fail = {"a"}
    async with new_database("memory", tmp_path) as database:
        async with engine_of(world, database.store, run_entities=False) as asking:
            await asking.enqueue(world.kind, "a")
        await GoalRows(database.store, 2).change(EntityKey("light", "a"), killed)
        async with engine_of(world, database.store, maximum_attempts=2) as engine:
            await skip(engine, world, SECOND)
            assert world.log == runs
            assert [(dead.id, dead.failures) async for dead in engine.dead()] == [("a", 2)]
            assert await keys(database.store) == ["d/light/a", "g/light/a"]
            world.fail.clear()
            await engine.enqueue(world.kind, "a")
            await engine.drain()
            assert world.log == [*runs, "a"]
            assert await keys(database.store) == ["g/light/a"]


async def test_damaged_rows_hold_up_no_other_entity(world: World, tmp_path: Path) -> None:
    names = [str(number) for number in range(8)]
    async with new_database("memory", tmp_path) as database:
        async with engine_of(world, database.store, run_entities=False) as asking:
            for name in names:
                await asking.enqueue(world.kind, name)
        for partition in map(goal_partition, range(2)):
            for key in ("r/light/torn", "g/light/split", "t/00000000000000000001/light/split"):
                await database.store.set(SetRequest(partition=partition, key=key, value=b"\xff\xff"))
        async with engine_of(world, database.store) as engine:
            await skip(engine, world, HOUR)
            assert sorted(world.log) == names


@pytest.mark.parametrize("carried_out", [False, True])
@pytest.mark.parametrize("write", range(1, 16))
async def test_process_that_is_cut_off_at_any_write_forgets_no_entity(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: int, carried_out: bool
) -> None:
    monkeypatch.setattr("hsm.engine._stopping.PATIENCE_SECONDS", 0.01)
    acknowledged = False
    async with new_database("memory", tmp_path) as database:
        store = FaultyStore(database.store)
        store.cut_off_at(write, carried_out=carried_out)
        world.fail = {"a"}
        first = engine_of(world, store)
        try:
            await first.start()
            await first.enqueue(world.kind, "a", goal=Goal.ON)
            acknowledged = True
            await world.clock.skip(40 * SECOND)
        except PersistenceError:
            assert not acknowledged
        runs = len(world.log)
        await first.stop(drain=False)
        world.fail.clear()
        async with engine_of(world, await database.open()) as second:
            for _ in range(3):
                await skip(second, world, HOUR)
            info = await second.describe(world.kind, "a")
            if acknowledged:
                assert info is not None
                assert len(world.log) > runs
            if info is not None:
                assert (info.deadline, info.running, info.failures, info.goal) == (None, False, 0, "ON")
