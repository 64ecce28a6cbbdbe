"""The durable engine: what survives a restart, and who may run what."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hsm.errors import SerializationError, TerminalError
from hsm.goalstate import (
    EntityKind,
)
from tests.support.databases import Database, new_database
from tests.support.goals import SECOND
from tests.support.switches import HOUR, Goal, World, engine_of, keys, skip


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


async def test_engine_that_was_not_started_says_so(world: World, tmp_path: Path) -> None:
    async with new_database("memory", tmp_path) as database:
        with pytest.raises(RuntimeError, match="not started"):
            await engine_of(world, database.store).enqueue(world.kind, "a")
