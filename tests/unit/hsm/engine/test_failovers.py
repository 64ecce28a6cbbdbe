"""Executions in two clusters: who writes, who is right, and what becomes of an execution that closes."""

from __future__ import annotations

import asyncio

import pytest

from hsm import (
    AccessType,
    BusyError,
    ExecutionKey,
    NotActiveError,
    Ref,
    StaleReferenceError,
    StaleStateError,
)
from hsm.engine import ReusePolicy
from hsm.testing import FakeClock, TestEngine
from hsm.tree import MergeResult
from tests.support.clusters import EAST, HOUR, RETENTION, Two, V, add, child
from tests.support.jobs import (
    Alarm,
    Job,
    Lasting,
    State,
    World,
    finish,
    job,
    log,
    note,
    small,
    started,
    step,
)


async def test_other_cluster_reads_and_does_not_write(two: Two) -> None:
    await started(two.east.engine)
    await two.to_west()
    west = two.west.engine
    assert await west.read(Ref(job()), log) == []
    with pytest.raises(NotActiveError):
        await west.update(Ref(job()), note("x"))
    with pytest.raises(NotActiveError):
        async with west.access(Ref(job()), AccessType.WRITE):
            pass
    with pytest.raises(NotActiveError):
        await west.terminate(job())
    await two.check_same()


async def test_cluster_that_takes_over_writes(two: Two) -> None:
    east, west = two.east.engine, two.west.engine
    ref = await started(east)
    await two.to_west()
    assert await west.take_over(job()) == V(2, 2)
    assert await west.take_over(job()) == V(2, 2)
    await west.update(Ref(job()), note("west"))

    assert await two.to_east() is MergeResult.APPLIED
    assert await east.versions(job()) == (V(1, 1), V(2, 3))
    await two.check_same()
    with pytest.raises(NotActiveError):
        await east.update(ref, note("x"))

    assert await east.take_over(job()) == V(11, 4)
    await east.update(ref, note("east"))
    await two.to_west()
    assert await west.read(ref, log) == ["west", "east"]
    with pytest.raises(NotActiveError):
        await west.update(ref, note("x"))


async def test_what_was_not_told_before_a_failover_is_lost(two: Two) -> None:
    east, west = two.east.engine, two.west.engine
    ref = await started(east)
    await east.update(ref, add("a"))
    await two.to_west()
    await east.update(ref, note("lost", Lasting("lost")))
    await east.update(ref, add("lost"))
    await east.update(ref, lambda root: root.delete_child(step("a")))
    await west.take_over(job())
    await west.update(ref, note("kept"))

    assert await two.to_west() is MergeResult.OUTDONE
    assert await two.to_east() is MergeResult.APPLIED
    await two.check_same()
    assert await east.read(ref, log) == ["kept"]


async def test_sweep_that_was_due_does_not_delete_what_came_back(world: World, two: Two) -> None:
    east, west = two.east.engine, two.west.engine
    async with TestEngine(
        world.registry, await two.east.database.open(), small(cluster=EAST, delete_rows=1), run_tasks=False
    ) as small_one:
        ref = await started(small_one)
        await small_one.update(ref, add("a"))
        await small_one.update(child("a"), add("0", "1", "2"))
        await two.to_west()
        await small_one.update(ref, lambda root: root.delete_child(step("a")))
    await west.take_over(job())
    assert await two.to_east() is MergeResult.APPLIED
    assert await two.east.database.keys("z/") == []
    await east.skip(3 * HOUR)
    await two.check_same()
    assert len(await two.east.database.keys("n/")) == 4


async def test_reference_of_a_lost_branch_is_stale_and_one_from_ahead_waits(two: Two) -> None:
    east, west = two.east.engine, two.west.engine
    ref = await started(east)
    await two.to_west()
    await east.update(ref, note("lost"))
    lost = await east.read(ref, lambda root: root.ref(ref.execution))
    await west.take_over(job())
    ahead = await west.read(ref, lambda root: root.ref(ref.execution))
    with pytest.raises(StaleStateError):
        await east.read(ahead, log)
    await two.to_east()
    assert await east.read(ahead, log) == []
    with pytest.raises(StaleReferenceError):
        await east.read(lost, log)


async def test_cached_tree_is_given_up_when_another_cluster_takes_over(two: Two) -> None:
    east, west = two.east.engine, two.west.engine
    ref = await started(east)
    await two.to_west()
    assert await west.read(ref, log) == []
    await east.update(ref, note("east"))
    await two.to_west()
    assert await west.read(ref, log) == ["east"]
    await west.take_over(job())
    await west.update(ref, note("west"))
    await two.to_east()
    assert await east.read(ref, log) == ["east", "west"]


async def test_waiter_hears_of_what_is_told(two: Two) -> None:
    ref = await started(two.east.engine)
    await two.to_west()
    waiting = asyncio.ensure_future(two.west.engine.wait(ref, lambda root: "told" in root.data(Job).log))
    await asyncio.sleep(0)
    await two.east.engine.update(ref, note("told"))
    await two.to_west()
    await asyncio.wait_for(waiting, 5)


async def test_execution_of_no_cluster_is_taken_over_before_it_is_told(world: World, two: Two) -> None:
    async with TestEngine(world.registry, await two.east.database.open(), small(), run_tasks=False) as plain:
        ref = await started(plain)
        with pytest.raises(ValueError, match="written by no cluster"):
            await two.to_west()
        await two.east.engine.update(ref, note("written by a cluster"))
        assert await plain.versions(job()) == (V(0, 1), V(1, 2))
        await two.to_west()
        await two.check_same()
        with pytest.raises(NotActiveError):
            await plain.update(ref, note("x"))
        with pytest.raises(NotActiveError):
            await plain.take_over(job())


# Whose tasks run


async def test_terminated_execution_is_terminated_everywhere(two: Two) -> None:
    east, west = two.east.engine, two.west.engine
    await started(east, "job", Alarm("alarm", east.now() + HOUR))
    await two.to_west()
    await east.terminate(job(), "enough")
    await two.to_west()
    await two.check_same()
    await west.take_over(job())
    assert await two.west.database.queued() == []


async def test_closed_execution_expires_everywhere_at_once(two: Two) -> None:
    ref = await started(two.east.engine)
    await two.to_west()
    await two.east.engine.update(ref, finish())
    await two.to_west()
    for side in (two.east, two.west):
        assert len(await side.database.keys("x/")) == 1
    await two.east.engine.skip(RETENTION + HOUR)
    await two.west.engine.drain()
    for side in (two.east, two.west):
        assert await side.database.keys("e/", "n/", "c/", "x/", "z/") == []


async def test_execution_that_is_opened_again_does_not_expire(two: Two) -> None:
    ref = await started(two.east.engine)
    await two.east.engine.update(ref, finish())
    await two.to_west()
    await two.west.engine.take_over(job())
    await two.west.engine.update(ref, finish(State.OPEN))
    await two.to_east()
    for side in (two.east, two.west):
        assert await side.database.keys("x/") == []


async def test_execution_that_is_being_deleted_is_not_told_again(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def later(partition: str) -> None:
        pass

    west = two.west.engine
    await started(two.east.engine)
    await two.to_west()
    monkeypatch.setattr(west, "_sweep", later)
    await west.delete(job(), force=True)
    with pytest.raises(BusyError):
        await west.apply_delta(await two.east.engine.changes_since(job()))
    monkeypatch.undo()
    await west._sweep("exec/0")
    await west._sweep("exec/1")
    await two.to_west()
    await two.check_same()


# Runs


async def test_current_run_is_the_one_that_started_last(two: Two, clock: FakeClock) -> None:
    east, west = two.east.engine, two.west.engine
    first = await started(east)
    await east.update(first, finish())
    await east.skip(HOUR)
    second = await east.start(job(), Job(), reuse=ReusePolicy.ALLOW)
    await two.tell(two.east, two.west, second.execution)
    await two.tell(two.east, two.west, first.execution)
    assert (await west.describe(job())).info.key == second.execution
    third = ExecutionKey(*job()[:2], "later")
    await east.skip(HOUR)
    await east.update(second, finish())
    await east.start(third, Job(), reuse=ReusePolicy.ALLOW)
    await two.tell(two.east, two.west, third)
    assert (await west.describe(job())).info.key == third
