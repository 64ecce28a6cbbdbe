"""The durable engine: what survives a restart, and who may run what."""

from __future__ import annotations

import asyncio
import enum
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest

from hsm.errors import SerializationError, TerminalError
from hsm.goalstate import (
    Action,
    ActionList,
    DurableEngine,
    DurableOptions,
    EntityKind,
    EntityNotFoundError,
    Run,
    Standing,
)
from hsm.goalstate._rows import EntityKey, GoalRows
from hsm.testing import Call, FakeClock, FaultyStore
from persistence.errors import PersistenceError, StoreUnavailableError
from persistence.goals import goal_partition
from persistence.proto.execution_pb2 import MemberRow
from persistence.proto.goal_pb2 import GoalClaim, GoalRow
from persistence.store import EngineStore, SetRequest
from tests.support.databases import Database, new_database
from tests.support.goals import SECOND

HOUR = timedelta(hours=1)


class Goal(enum.Enum):
    ON = 1
    OFF = 2


@attrs.define(slots=False)
class World:
    """The lights of a house, as they are on the outside, and what was done to them."""

    clock: FakeClock
    log: list[str] = attrs.field(factory=list)
    fail: set[str] = attrs.field(factory=set)
    gone: set[str] = attrs.field(factory=set)
    error: Exception = attrs.field(factory=lambda: OSError("no power"))
    open: asyncio.Event = attrs.field(factory=asyncio.Event)
    begun: asyncio.Event = attrs.field(factory=asyncio.Event)
    timeout: timedelta | None = None
    fences: list[int] = attrs.field(factory=list)
    heedless: bool = False
    wishes: dict[str, timedelta] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        self.open.set()
        self.kind: EntityKind[Goal] = EntityKind("light", self.load, Goal)

    async def load(self, id_: str) -> Switch:
        if id_ in self.gone:
            raise EntityNotFoundError(f"no light {id_}")
        return Switch(id_, self)


@attrs.define
class Switch:
    id: str
    world: World

    async def read(self) -> Standing[str, str]:
        return Standing("", "")

    def action_list(self, state: str, goal: str, /) -> ActionList[Switch]:
        return ActionList([Action("switch", switch)], self.world.timeout)


async def switch(light: Switch, run: Run) -> None:
    world = light.world
    world.log.append(light.id)
    world.fences.append(run.fence)
    world.begun.set()
    while not world.open.is_set():
        try:
            await world.open.wait()
        except asyncio.CancelledError:
            if not world.heedless:
                raise
    if light.id in world.wishes:
        run.again(world.wishes.pop(light.id))
    if light.id in world.fail:
        raise world.error


@pytest.fixture(params=["memory", "sqlite"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    async with new_database(request.param, tmp_path) as opened:
        yield opened


@pytest.fixture
def world() -> World:
    return World(FakeClock())


def engine_of(
    world: World, store: EngineStore, *, run_entities: bool = True, **changes: Any
) -> DurableEngine:
    options = DurableOptions(
        clock=world.clock, jitter=0.0, poll_interval=HOUR, lease_seconds=3 * 3600, shard_count=2
    )
    return DurableEngine(store, [world.kind], attrs.evolve(options, **changes), run_entities=run_entities)


async def skip(engine: DurableEngine, world: World, duration: timedelta) -> None:
    await world.clock.skip(duration, settle=engine.drain)


async def keys(store: EngineStore) -> list[str]:
    found: list[str] = []
    for shard in range(2):
        found += [item.key async for item in store.scan(goal_partition(shard), "", "")]
    return sorted(found)


async def test_entity_runs_when_it_is_due_and_its_row_stays(database: Database, world: World) -> None:
    async with engine_of(world, database.store) as engine:
        await engine.enqueue(world.kind, "a/b%", world.clock.now() + 5 * SECOND)
        assert await engine.is_scheduled(world.kind, "a/b%")
        await skip(engine, world, 4 * SECOND)
        assert world.log == []
        await skip(engine, world, SECOND)
        assert world.log == ["a/b%"]
        info = await engine.describe(world.kind, "a/b%")
        assert info is not None
        assert (info.deadline, info.running, info.failures, info.dead) == (None, False, 0, False)
        assert await keys(database.store) == ["g/light/a%2Fb%25"]
        assert engine.total == 0


async def test_earliest_deadline_wins_unless_replaced(database: Database, world: World) -> None:
    now = world.clock.now()
    async with engine_of(world, database.store) as engine:
        await engine.enqueue(world.kind, "a", now + 30 * SECOND)
        await engine.enqueue(world.kind, "a", now + 60 * SECOND)
        info = await engine.describe(world.kind, "a")
        assert info is not None
        assert info.deadline == now + 30 * SECOND
        await engine.enqueue(world.kind, "a", now + 60 * SECOND, replace=True)
        await skip(engine, world, 59 * SECOND)
        assert world.log == []
        await skip(engine, world, SECOND)
        assert world.log == ["a"]


async def test_restart_keeps_deadlines_attempts_and_goals(database: Database, world: World) -> None:
    world.fail = {"bad"}
    async with engine_of(world, database.store) as first:
        await first.enqueue(world.kind, "bad", goal=Goal.ON)
        await first.enqueue(world.kind, "late", world.clock.now() + 100 * SECOND, goal=Goal.OFF)
        await skip(first, world, 30 * SECOND)
        assert world.log == ["bad"] * 3  # at 0, 10 and 30 seconds
    async with engine_of(world, database.store) as second:
        assert await second.goal(world.kind, "bad") is Goal.ON
        assert await second.goal(world.kind, "late") is Goal.OFF
        assert await second.goal(world.kind, "unknown") is None
        info = await second.describe(world.kind, "bad")
        assert info is not None
        assert (info.failures, info.last_error) == (3, "OSError: no power")
        assert info.deadline == world.clock.now() + 40 * SECOND
        await skip(second, world, 39 * SECOND)
        assert world.log == ["bad"] * 3
        world.fail.clear()
        await skip(second, world, SECOND)
        assert world.log == ["bad"] * 4
        info = await second.describe(world.kind, "bad")
        assert info is not None
        assert (info.failures, info.last_error) == (0, "")
        await skip(second, world, 30 * SECOND)
        assert world.log == ["bad"] * 4 + ["late"]
        assert [(item.kind, item.id, item.goal) async for item in second.list()] in (
            [("light", "bad", "ON"), ("light", "late", "OFF")],
            [("light", "late", "OFF"), ("light", "bad", "ON")],
        )


async def test_goal_changes_only_when_one_is_given(database: Database, world: World) -> None:
    async with engine_of(world, database.store) as engine:
        await engine.enqueue(world.kind, "a", goal=Goal.ON)
        await engine.enqueue(world.kind, "a")
        assert await engine.goal(world.kind, "a") is Goal.ON
        plain: EntityKind[Goal] = EntityKind("light", world.load)
        with pytest.raises(TypeError, match="no goal of the kind"):
            await engine.enqueue(plain, "a", goal=Goal.OFF)
        with pytest.raises(SerializationError, match="'ON' is no goal of the kind 'light'"):
            await engine.goal(plain, "a")


async def test_reenqueue_during_a_run_gives_one_more_run(database: Database, world: World) -> None:
    world.open.clear()
    async with engine_of(world, database.store) as engine:
        await engine.enqueue(world.kind, "a")
        await world.begun.wait()
        assert engine.in_flight == 1
        for _ in range(3):
            await engine.enqueue(world.kind, "a")
        info = await engine.describe(world.kind, "a")
        assert info is not None
        assert info.running
        world.open.set()
        await skip(engine, world, HOUR)
    assert world.log == ["a", "a"]
    assert world.fences == [1, 2]


async def test_run_may_ask_for_another(database: Database, world: World) -> None:
    world.wishes["a"] = 20 * SECOND
    async with engine_of(world, database.store) as engine:
        await engine.enqueue(world.kind, "a")
        await skip(engine, world, 19 * SECOND)
        assert world.log == ["a"]
        await skip(engine, world, SECOND)
        assert world.log == ["a", "a"]


async def test_deleted_entity_runs_no_more(database: Database, world: World) -> None:
    async with engine_of(world, database.store) as engine:
        await engine.enqueue(world.kind, "queued", world.clock.now() + SECOND, goal=Goal.ON)
        await engine.delete(world.kind, "queued")
        await engine.delete(world.kind, "unknown")
        world.open.clear()
        world.fail = {"running"}
        await engine.enqueue(world.kind, "running")
        await world.begun.wait()
        await engine.enqueue(world.kind, "running")
        await engine.delete(world.kind, "running")
        assert await engine.describe(world.kind, "running") is None
        assert not await engine.is_scheduled(world.kind, "running")
        world.open.set()
        await skip(engine, world, HOUR)
        assert await engine.goal(world.kind, "queued") is None
    assert world.log == ["running"]
    assert await keys(database.store) == []


async def test_entity_added_anew_during_the_run_of_the_old_one_waits_for_its_end(
    database: Database, world: World
) -> None:
    world.open.clear()
    world.fail = {"a"}
    async with engine_of(world, database.store) as engine:
        await engine.enqueue(world.kind, "a", goal=Goal.ON)
        await world.begun.wait()
        await engine.delete(world.kind, "a")
        due = world.clock.now() + HOUR
        await engine.enqueue(world.kind, "a", due)
        assert await engine.goal(world.kind, "a") is None
        assert world.log == ["a"]
        world.open.set()
        await engine.drain()
        # The failure of the old one is not that of the new one.
        info = await engine.describe(world.kind, "a")
        assert info is not None
        assert (info.running, info.failures, info.deadline) == (False, 0, due)
        world.fail.clear()
        await skip(engine, world, HOUR)
    assert world.log == ["a", "a"]
    assert world.fences == [1, 2]


async def test_unscheduled_entity_does_not_run(database: Database, world: World) -> None:
    async with engine_of(world, database.store) as engine:
        await engine.enqueue(world.kind, "a", world.clock.now() + SECOND)
        assert await engine.unschedule(world.kind, "a")
        assert not await engine.unschedule(world.kind, "a")
        assert not await engine.unschedule(world.kind, "unknown")
        await skip(engine, world, HOUR)
    assert world.log == []


async def test_dead_entities_are_listed_after_a_restart_and_live_when_enqueued(
    database: Database, world: World
) -> None:
    world.fail, world.error = {"a"}, TerminalError("no such lamp")
    async with engine_of(world, database.store) as first:
        await first.enqueue(world.kind, "a")
        await skip(first, world, HOUR)
    async with engine_of(world, database.store) as second:
        await skip(second, world, HOUR)
        (dead,) = [dead async for dead in second.dead()]
        assert (dead.kind, dead.id, dead.error) == ("light", "a", "TerminalError: no such lamp")
        assert world.log == ["a"]
        world.fail.clear()
        await second.enqueue(world.kind, "a")
        await second.drain()
        assert [dead async for dead in second.dead()] == []
        assert world.log == ["a", "a"]


async def test_entity_that_its_loader_does_not_find_is_forgotten(database: Database, world: World) -> None:
    world.gone = {"a"}
    async with engine_of(world, database.store) as engine:
        await engine.enqueue(world.kind, "a")
        await engine.drain()
        assert await engine.describe(world.kind, "a") is None
    assert await keys(database.store) == []


async def test_run_that_was_broken_off_is_due_for_the_next_process(database: Database, world: World) -> None:
    world.open.clear()
    first = engine_of(world, database.store)
    await first.start()
    await first.enqueue(world.kind, "a")
    await world.begun.wait()
    await first.stop(drain=False)
    await first.stop()
    assert any(key.startswith("t/") for key in await keys(database.store))
    world.open.set()
    async with engine_of(world, database.store) as second:
        await skip(second, world, SECOND)
    assert world.log == ["a", "a"]


async def test_stop_with_drain_lets_runs_end(database: Database, world: World) -> None:
    world.open.clear()
    engine = engine_of(world, database.store)
    await engine.start()
    await engine.enqueue(world.kind, "a")
    await world.begun.wait()
    stopping = asyncio.create_task(engine.stop())
    await asyncio.sleep(0)
    world.open.set()
    await stopping
    assert await keys(database.store) == ["g/light/a"]


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


async def test_what_was_overdue_at_a_restart_becomes_due_bit_by_bit_and_after_what_is_new(
    world: World, tmp_path: Path
) -> None:
    async with new_database("memory", tmp_path) as database:
        async with engine_of(world, database.store, run_entities=False) as writer:
            for number in range(20):
                await writer.enqueue(world.kind, f"old {number}")
        world.clock.advance(HOUR)
        async with engine_of(world, database.store, recovery_rate=1.0, workers=1) as engine:
            await engine.drain()
            few = len(world.log)
            assert few < 5
            await engine.enqueue(world.kind, "new")
            await engine.drain()
            assert world.log[-1] == "new"
            assert len(world.log) < 7
            await skip(engine, world, timedelta(minutes=2))
            assert len(world.log) == 21
            assert len(set(world.log)) == 21


async def test_more_entities_than_fit_into_memory_run_all(world: World, tmp_path: Path) -> None:
    async with new_database("memory", tmp_path) as database:
        async with engine_of(world, database.store, run_entities=False) as writer:
            for number in range(50):
                await writer.enqueue(world.kind, str(number))
        async with engine_of(world, database.store, window=4, workers=2, recovery_rate=1e9) as engine:
            most = 0
            for _ in range(100):
                await world.clock.skip(SECOND)
                most = max(most, engine.total)
            assert most <= 2 * 2 * 4
            assert sorted(world.log, key=int) == [str(number) for number in range(50)]


async def test_entities_of_unknown_kinds_are_left_alone_and_stand_in_nobodys_way(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with new_database("memory", tmp_path) as database:
        async with engine_of(world, database.store, run_entities=False) as writer:
            for number in range(20):
                await writer.enqueue(EntityKind("a stranger", world.load), str(number))
            await writer.enqueue(world.kind, "known")
        world.clock.advance(SECOND)
        async with engine_of(world, database.store, window=4, shard_count=1) as engine:
            await engine.drain()
            await engine.enqueue(EntityKind("a stranger", world.load), "enqueued here")
            await skip(engine, world, SECOND)
            assert engine.total == 0
    assert world.log == ["known"]
    assert caplog.text.count("entities of the kind 'a stranger' are left alone") == 1


async def test_process_that_only_enqueues_is_heard_by_the_one_that_runs(world: World, tmp_path: Path) -> None:
    async with new_database("memory", tmp_path) as database:
        writer = engine_of(world, await database.open(), run_entities=False)
        async with engine_of(world, database.store), writer:
            await writer.enqueue(world.kind, "a")
            await asyncio.wait_for(world.begun.wait(), 30)
    assert world.log == ["a"]


async def test_latest_time_and_speechless_errors_can_be_written_down(world: World, tmp_path: Path) -> None:
    class SpeechlessError(OSError):
        def __str__(self) -> str:
            raise ValueError("no words")

    world.error, world.fail, world.wishes = SpeechlessError(), {"a"}, {"b": timedelta.max}
    async with new_database("memory", tmp_path) as database, engine_of(world, database.store) as engine:
        for name in ("a", "b"):
            await engine.enqueue(world.kind, name)
        await engine.enqueue(world.kind, "c", datetime.max.replace(tzinfo=UTC))
        await engine.drain()
        found = {info.id: info async for info in engine.list()}
        assert (found["a"].failures, found["a"].last_error, found["a"].running) == (
            1,
            "SpeechlessError",
            False,
        )
        for name in ("b", "c"):
            deadline = found[name].deadline
            assert deadline is not None
            assert deadline.year == 2262


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


async def test_engine_that_was_not_started_says_so(world: World, tmp_path: Path) -> None:
    async with new_database("memory", tmp_path) as database:
        with pytest.raises(RuntimeError, match="not started"):
            await engine_of(world, database.store).enqueue(world.kind, "a")


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
