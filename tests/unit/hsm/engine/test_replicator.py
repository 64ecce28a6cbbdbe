"""Replicators: what is written in one cluster gets to the other, whatever is broken off."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path

import attrs
import pytest

from hsm import ExecutionKey, ExecutionNotFoundError, Ref, StorageUnavailableError
from hsm.engine import Cluster, Engine, Replicator
from hsm.testing import CutOffError, FakeClock, FaultyStore, TestEngine
from persistence.proto.replication_pb2 import Delta
from tests.support.databases import Database, new_database
from tests.support.jobs import Alarm, Job, Soon, Step, World, job, log, note, small, started, step

HOUR = timedelta(hours=1)
EAST = Cluster(id=1, peers=(2,))
WEST = Cluster(id=2, peers=(1,))


@attrs.define
class Two:
    east: TestEngine
    west: TestEngine
    east_database: Database
    west_database: Database


@pytest.fixture
async def two(
    world: World, database: Database, clock: FakeClock, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Two]:
    kind = request.node.callspec.params["database"]
    (tmp_path / "west").mkdir()
    async with AsyncExitStack() as stack:
        west = await stack.enter_async_context(
            new_database(kind if kind in {"memory", "sqlite"} else "memory", tmp_path / "west")
        )
        yield Two(
            await stack.enter_async_context(
                TestEngine(world.registry, database.store, small(cluster=EAST), clock=clock)
            ),
            # The number of shards may differ.
            await stack.enter_async_context(
                TestEngine(world.registry, west.store, small(cluster=WEST, shard_count=3), clock=clock)
            ),
            database,
            west,
        )


async def ids(engine: Engine) -> list[str]:
    return sorted([info.key.id async for info in engine.list(namespace="tests")])


async def test_everything_that_is_there_is_carried_over_first(two: Two) -> None:
    names = [f"job {number}" for number in range(10)]
    for name in names:
        await started(two.east, name)
    await two.east.start(ExecutionKey("another namespace", "job"), Job())
    link = Replicator(two.east, two.west, "tests")

    assert await link.pump() == 10
    assert await ids(two.west) == names
    assert await two.west.count() == 10
    assert await link.pump() == 0


async def test_then_only_what_has_changed(two: Two) -> None:
    refs = [await started(two.east, f"job {number}") for number in range(5)]
    link = Replicator(two.east, two.west, "tests")
    await link.pump()
    assert await two.east_database.keys("r/") == []

    for _ in range(3):
        await two.east.update(refs[2], note("changed"))
    assert len(await two.east_database.keys("r/")) == 1

    assert await link.pump() == 1
    assert await two.west.read(refs[2], log) == ["changed"] * 3
    assert await two.east_database.keys("r/") == []


async def test_new_link_goes_on_where_the_last_one_was(
    two: Two, world: World, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hsm.engine.replication._STEP", 2)
    for number in range(9):
        await started(two.east, f"job {number}")
    store = FaultyStore(two.west_database.store)
    store.cut_off_at(8, carried_out=False)
    async with TestEngine(world.registry, store, small(cluster=WEST), run_tasks=False, clock=clock) as cut:
        with pytest.raises((StorageUnavailableError, CutOffError)):
            await Replicator(two.east, cut, "tests").pump()
        store.reconnect()
    done = await ids(two.west)
    assert 0 < len(done) < 9

    told: list[str] = []
    tell = Replicator._tell

    async def watched(self: Replicator, key: ExecutionKey) -> object:
        told.append(key.id)
        return await tell(self, key)

    monkeypatch.setattr(Replicator, "_tell", watched)
    for row in [item for _, item in await two.east_database.rows("r/")]:
        await two.east_database.remove(row.key)
    await Replicator(two.east, two.west, "tests").pump()
    assert len(await ids(two.west)) == 9
    assert len(told) < 9


async def test_mark_outlives_a_link_that_is_broken_off(two: Two, world: World, clock: FakeClock) -> None:
    ref = await started(two.east)
    await Replicator(two.east, two.west, "tests").pump()
    for carried_out in (False, True):
        await two.east.update(ref, note("x"))
        store = FaultyStore(two.west_database.store)
        async with TestEngine(
            world.registry, store, small(cluster=WEST), run_tasks=False, clock=clock
        ) as cut:
            store.cut_off_at(store.writes + 1, carried_out=carried_out)
            with contextlib.suppress(StorageUnavailableError, CutOffError):
                await Replicator(two.east, cut, "tests").pump()
            store.reconnect()
        assert len(await two.east_database.keys("r/")) == 1
        assert await Replicator(two.east, two.west, "tests").pump() == (not carried_out)
    assert await two.west.read(ref, log) == ["x", "x"]


async def test_change_during_the_telling_is_told_next_time(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = await started(two.east)
    link = Replicator(two.east, two.west, "tests")
    await link.pump()
    await two.east.update(ref, note("1"))
    apply_delta = two.west.apply_delta

    async def busy(delta: Delta) -> object:
        await two.east.update(ref, note("2"))
        monkeypatch.undo()
        return await apply_delta(delta)

    monkeypatch.setattr(two.west, "apply_delta", busy)
    assert await link.pump() == 1
    assert await two.west.read(ref, log) == ["1"]
    assert await link.pump() == 1
    assert await two.west.read(ref, log) == ["1", "2"]


async def test_target_that_has_forgotten_is_told_again(two: Two) -> None:
    ref = await started(two.east)
    link = Replicator(two.east, two.west, "tests")
    await link.pump()
    await two.west.delete(job(), force=True)
    assert await link.pump() == 0
    await link.restart()
    assert await link.pump() == 1
    assert await two.west.read(ref, log) == []


async def test_both_directions(two: Two) -> None:
    links = Replicator(two.east, two.west, "tests"), Replicator(two.west, two.east, "tests")
    await started(two.east, "east")
    await started(two.west, "west")
    for _ in range(2):
        for link in links:
            await link.pump()
    await two.west.take_over(job("east"))
    await two.east.take_over(job("west"))
    await two.west.update(Ref(job("east")), note("from the west"))
    await two.east.update(Ref(job("west")), note("from the east"))
    for _ in range(2):
        for link in links:
            await link.pump()

    for engine in (two.east, two.west):
        assert await engine.read(Ref(job("east")), log) == ["from the west"]
        assert await engine.read(Ref(job("west")), log) == ["from the east"]
    for database in (two.east_database, two.west_database):
        assert await database.keys("r/") == []


async def test_history_that_has_lost_is_told_no_more(two: Two) -> None:
    east, west = Replicator(two.east, two.west, "tests"), Replicator(two.west, two.east, "tests")
    ref = await started(two.east)
    await east.pump()
    await two.east.update(ref, note("lost"))
    await two.west.take_over(job())
    assert await east.pump() == 0
    assert await two.east_database.keys("r/") == []
    assert await west.pump() == 1
    assert await two.east.read(ref, log) == []


async def test_executions_from_before_are_taken_over_and_told(two: Two, world: World) -> None:
    async with TestEngine(world.registry, await two.east_database.open(), small(), run_tasks=False) as plain:
        ref = await started(plain, "old", Alarm("alarm", plain.now() + HOUR))
    await Replicator(two.east, two.west, "tests").pump()
    assert await two.west.versions(ref.execution) == await two.east.versions(ref.execution)
    assert (await two.east.versions(ref.execution))[-1].failover_version == 1
    await two.east.skip(2 * HOUR)
    assert world.names() == ["alarm"]


async def test_one_execution_that_cannot_be_told_does_not_hold_up_the_others(
    two: Two, caplog: pytest.LogCaptureFixture
) -> None:
    link = Replicator(two.east, two.west, "tests")
    for name in "abc":
        ref = await started(two.east, name)
        await two.east.update(ref, lambda root: root.add_child(step("child"), Step()))
    (bad,) = [key for key in await two.east_database.keys("n/") if "/b/" in key]
    await two.east_database.overwrite(bad, b"\xff")
    with caplog.at_level(logging.ERROR):
        assert await link.pump() == 2
        assert await link.pump() == 0
    assert "tests/b cannot be told cluster 2" in caplog.text
    assert await ids(two.west) == ["a", "c"]
    assert len(await two.east_database.keys("r/")) == 1


async def test_deleted_execution_is_told_no_more(two: Two) -> None:
    await started(two.east)
    await two.east.delete(job(), force=True)
    assert await Replicator(two.east, two.west, "tests").pump() == 0
    assert await two.east_database.keys("r/") == []


async def copied(two: Two, ref: Ref) -> list[str]:
    """The log as the west has it so far."""
    try:
        return await two.west.read(ref, log)
    except ExecutionNotFoundError:
        return []


async def test_running_link_carries_over_what_comes(two: Two, world: World) -> None:
    running = asyncio.ensure_future(Replicator(two.east, two.west, "tests").run())
    ref = await started(two.east, "job", Soon("task"))
    await two.east.drain()
    async with asyncio.timeout(30):
        while await copied(two, ref) != ["task"]:
            await two.east.skip(2 * HOUR)
    assert world.names() == ["task"]
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_only_peers_are_told(two: Two, world: World, database: Database) -> None:
    async with TestEngine(world.registry, await database.open(), run_tasks=False) as plain:
        with pytest.raises(ValueError, match="has no"):
            Replicator(plain, two.west, "tests")
        with pytest.raises(ValueError, match="has no"):
            Replicator(two.east, plain, "tests")
    stranger = small(cluster=Cluster(id=3))
    async with TestEngine(world.registry, await database.open(), stranger, run_tasks=False) as third:
        with pytest.raises(ValueError, match="not among the peers"):
            Replicator(two.east, third, "tests")
