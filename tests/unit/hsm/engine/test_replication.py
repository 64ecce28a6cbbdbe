"""Executions in two clusters: what one tells the other, who writes, whose tasks run, and who is right."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest

from hsm import (
    AccessType,
    BusyError,
    Environment,
    ExecutionKey,
    Node,
    NotActiveError,
    Ref,
    Registry,
    ResendError,
    StaleReferenceError,
    StaleStateError,
    TerminalError,
    VersionedTransition,
)
from hsm.engine import Cluster, ReusePolicy, method
from hsm.errors import ExecutionNotFoundError, TransactionTooLargeError
from hsm.testing import FakeClock, TestEngine
from hsm.tree import MergeResult
from persistence.proto.execution_pb2 import ExecutionRow
from persistence.proto.replication_pb2 import Delta
from tests.support.databases import Database, new_database
from tests.support.jobs import (
    Alarm,
    Job,
    Lasting,
    Soon,
    State,
    Step,
    World,
    ask,
    failing,
    finish,
    job,
    log,
    note,
    noted,
    pending,
    small,
    started,
    step,
    write,
)

HOUR = timedelta(hours=1)
RETENTION = 24 * HOUR
EAST = Cluster(id=1, peers=(2,), step=10)
WEST = Cluster(id=2, peers=(1,), step=10)
V = VersionedTransition


@attrs.define
class Side:
    """One cluster: its database and its engine."""

    database: Database
    engine: TestEngine


@attrs.define
class Two:
    """Two clusters, and a link in each direction."""

    east: Side
    west: Side

    async def tell(self, source: Side, target: Side, key: ExecutionKey | None = None) -> MergeResult:
        """Tell of an execution what the target lacks."""
        key = key or job()
        try:
            since = (await target.engine.versions(key))[-1]
        except ExecutionNotFoundError:
            since = V()
        delta = await source.engine.changes_since(key, since)
        try:
            return await target.engine.apply_delta(Delta.FromString(delta.SerializeToString()))
        except ResendError as error:
            return await target.engine.apply_delta(await source.engine.changes_since(key, error.since))

    async def to_west(self) -> MergeResult:
        return await self.tell(self.east, self.west)

    async def to_east(self) -> MergeResult:
        return await self.tell(self.west, self.east)

    async def check_same(self, key: ExecutionKey | None = None) -> None:
        """Both have the same tree, in the same order, and wait for the same tasks."""
        assert await state(self.east, key or job()) == await state(self.west, key or job())


async def state(side: Side, key: ExecutionKey) -> object:
    """All that is to be the same in both clusters."""
    engine = side.engine
    tree = await engine.describe(key)
    row = await engine.changes_since(key)
    del row.row.tombstones[:]
    row.row.ClearField("tombstones_from")
    order = await engine.read(Ref(key), lambda root: [node.path for node in root.walk()])
    return tree.info, [attrs.evolve(node, tasks=()) for node in tree.nodes], order, row


@pytest.fixture
async def two(
    world: World, database: Database, clock: FakeClock, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Two]:
    kind = request.node.callspec.params["database"]
    async with AsyncExitStack() as stack:
        other = await stack.enter_async_context(
            new_database(kind if kind in {"memory", "sqlite"} else "memory", tmp_path / "west")
        )
        sides: list[Side] = []
        for opened, cluster in ((database, EAST), (other, WEST)):
            engine = TestEngine(
                world.registry, opened.store, small(cluster=cluster, retention=RETENTION), clock=clock
            )
            sides.append(Side(opened, await stack.enter_async_context(engine)))
        yield Two(*sides)


@pytest.fixture
def tmp_path(tmp_path: Path) -> Path:
    (tmp_path / "west").mkdir()
    return tmp_path


def add(*ids: str) -> Any:
    def build(node: Any) -> None:
        for id_ in ids:
            node.add_child(step(id_), Step())

    return build


def child(*ids: str) -> Ref:
    return Ref(job(), tuple(step(id_) for id_ in ids))


async def test_execution_is_told_with_all_its_machines(two: Two) -> None:
    east = two.east.engine
    ref = await started(east)
    await east.update(ref, add("b", "a"))
    await east.update(child("b"), add("c", ""))
    await east.update(child("b", "c"), note("deep"))

    assert await two.to_west() is MergeResult.APPLIED

    await two.check_same()
    assert await two.west.engine.versions(job()) == (V(1, 4),)
    assert await two.west.engine.read(child("b", "c"), log) == ["deep"]
    assert await two.to_west() is MergeResult.DUPLICATE


async def test_changes_are_told(two: Two) -> None:
    east = two.east.engine
    ref = await started(east)
    await east.update(ref, add("a", "b", "c"))
    await two.to_west()
    before = (await east.versions(job()))[-1]
    await east.update(child("b"), note("changed"))
    await east.update(child("b"), add("new"))
    await east.update(ref, lambda root: root.delete_child(step("c")))

    delta = await east.changes_since(job(), before)
    assert [len(node.path) for node in delta.nodes] == [1, 2]
    assert await two.west.engine.apply_delta(delta) is MergeResult.APPLIED
    await two.check_same()


async def test_machine_deleted_and_added_again_loses_what_was_below_it(two: Two) -> None:
    east = two.east.engine
    ref = await started(east)
    await east.update(ref, add("a"))
    await east.update(child("a"), add("below"))
    await two.to_west()

    def again(root: Any) -> None:
        root.delete_child(step("a"))
        root.add_child(step("a"), Step())

    await east.update(ref, again)
    await two.to_west()
    await two.check_same()
    assert len(await two.west.database.keys("n/")) == 1


async def test_deletion_of_a_large_subtree_is_swept(two: Two) -> None:
    east, west = two.east.engine, two.west.engine
    ids = [f"{number:03}" for number in range(150)]
    ref = await started(east)
    await east.update(ref, add("a"))
    await east.update(child("a"), add(*ids))
    await two.to_west()
    await east.update(ref, lambda root: root.delete_child(step("a")))
    await east.update(ref, add("a"))
    await east.update(child("a"), add("kept"))
    await two.to_west()
    await two.check_same()
    await west.skip(timedelta(hours=3))
    assert await two.west.database.keys("z/") == []
    assert len(await two.west.database.keys("n/")) == 2
    await two.check_same()


async def test_row_that_is_swept_is_not_told(two: Two) -> None:
    east = two.east.engine
    async with TestEngine(
        World().registry, await two.east.database.open(), small(cluster=EAST, delete_rows=1), run_tasks=False
    ) as engine:
        ref = await started(engine)
        await engine.update(ref, add("a"))
        await engine.update(child("a"), add("0", "1", "2"))
        await engine.update(ref, lambda root: root.delete_child(step("a")))
        assert len(await two.east.database.keys("n/")) == 3
        assert len((await east.changes_since(job())).nodes) == 0
        await engine.update(ref, add("a"))
        assert len((await east.changes_since(job())).nodes) == 1


async def test_gap_is_told_with_the_version_that_is_needed(two: Two) -> None:
    east = two.east.engine
    ref = await started(east)
    await two.to_west()
    await east.update(ref, note("1"))
    middle = (await east.versions(job()))[-1]
    await east.update(ref, note("2"))
    with pytest.raises(ResendError) as told:
        await two.west.engine.apply_delta(await east.changes_since(job(), middle))
    assert told.value.since == V(1, 1)
    delta = await east.changes_since(job(), middle)
    delta.execution.id = "unknown"
    with pytest.raises(ResendError) as told:
        await two.west.engine.apply_delta(delta)
    assert told.value.since == V()
    await two.to_west()
    await two.check_same()


async def test_machine_without_its_parent_is_refused(two: Two) -> None:
    east = two.east.engine
    ref = await started(east)
    await two.to_west()
    await east.update(ref, add("a"))
    await east.update(child("a"), add("b"))
    delta = await east.changes_since(job(), V(1, 1))
    del delta.nodes[0]
    with pytest.raises(ResendError):
        await two.west.engine.apply_delta(delta)
    assert await two.west.engine.versions(job()) == (V(1, 1),)


async def test_forgotten_deletions_make_a_snapshot(two: Two) -> None:
    few = attrs.evolve(EAST, tombstones=1)
    async with TestEngine(
        World().registry, await two.east.database.open(), small(cluster=few), run_tasks=False
    ) as engine:
        ref = await started(engine)
        await engine.update(ref, add("a", "b", "c"))
        await two.to_west()
        before = (await engine.versions(job()))[-1]
        for id_ in "ab":
            await engine.update(ref, lambda root, id_=id_: root.delete_child(step(id_)))  # type: ignore[misc]  # bound now
        assert not (await engine.changes_since(job(), before)).HasField("since")
    await two.to_west()
    await two.check_same()


async def test_engine_without_a_cluster_forgets_deletions_at_once(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine)
        await engine.update(ref, add("a"))
        await engine.update(ref, lambda root: root.delete_child(step("a")))
        await engine.update(ref, note("x"))
        assert (await engine.changes_since(job(), V(0, 3))).HasField("since")
        assert not (await engine.changes_since(job(), V(0, 2))).HasField("since")
        ((_, item),) = await database.rows("e/")
        assert list(ExecutionRow.FromString(item.value).tombstones) == []
        assert await database.keys("r/") == []


# Who writes


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


async def test_tasks_run_where_the_execution_is_written(world: World, two: Two) -> None:
    east, west = two.east.engine, two.west.engine
    later = east.now() + HOUR
    ref = await started(east, "job", Alarm("alarm", later))
    await east.update(ref, add("a"))
    await east.update(child("a"), ask(Alarm("below", later)))
    await two.to_west()
    assert await two.west.database.queued() == []
    assert await pending(west, ref) == ["alarm", "alarm"]

    await west.take_over(job())
    assert len(await two.west.database.queued()) == 2
    await two.to_east()
    await east.skip(2 * HOUR)
    await west.drain()

    assert sorted(world.names()) == ["alarm", "below"]
    assert await west.read(ref, log) == ["alarm"]
    assert await two.east.database.queued() == []
    await two.to_east()
    await two.check_same()
    await two.west.database.check()


async def test_done_task_is_told_though_its_machine_has_not_moved(world: World, two: Two) -> None:
    east, west = two.east.engine, two.west.engine

    async def nothing(env: Environment, ref: Ref, task: Soon) -> None:
        pass

    ref = await started(east)
    await east.update(ref, add("a"))
    world.on(Soon, failing(OSError("not yet"), None))
    await east.update(child("a"), ask(Soon("done"), Alarm("waits", east.now() + 9 * HOUR)))
    await east.drain()
    await two.to_west()
    assert await pending(west, ref) == ["soon", "alarm"]

    world.on(Soon, nothing)
    await east.skip(HOUR)
    await two.to_west()
    assert await pending(east, ref) == await pending(west, ref) == ["alarm"]
    await two.check_same()


async def test_running_task_of_a_lost_execution_writes_nothing(world: World, two: Two) -> None:
    east, west = two.east.engine, two.west.engine
    ref = await started(east)
    await two.to_west()

    async def run(env: Environment, ref: Ref, task: Lasting) -> None:
        if env is east:
            await west.take_over(job())
            await two.to_east()
        await noted(env, ref, task)

    world.on(Lasting, run)
    await east.update(ref, ask(Lasting("lost")))
    await east.drain()
    await east.skip(2 * HOUR)
    assert await east.read(ref, log) == []
    assert await two.east.database.queued() == []
    assert [letter async for letter in east.dead_letters()] == []
    await two.check_same()


async def test_task_for_an_execution_elsewhere_is_tried_again(world: World, two: Two) -> None:
    east, west = two.east.engine, two.west.engine
    other = await started(west, "other")
    await two.tell(two.west, two.east, job("other"))

    async def run(env: Environment, ref: Ref, task: Soon) -> None:
        await env.update(Ref(job("other")), note("from a task"))
        await noted(env, ref, task)

    world.on(Soon, run)
    ref = await started(east, "job", Soon("task"))
    await east.drain()
    assert await pending(east, ref) == ["soon"]
    await east.take_over(job("other"))
    await east.skip(HOUR)
    assert await east.read(other, log) == ["from a task"]
    assert await east.read(ref, log) == ["task"]


async def test_dead_letter_is_tried_again_by_whoever_takes_over(world: World, two: Two) -> None:
    east, west = two.east.engine, two.west.engine
    world.on(Soon, failing(TerminalError("east is broken"), None))
    ref = await started(east, "job", Soon("task"))
    await east.drain()
    assert len([letter async for letter in east.dead_letters()]) == 1
    await two.to_west()
    await two.check_same()
    await west.take_over(job())
    await west.drain()
    await west.skip(HOUR)
    assert await west.read(ref, log) == ["task"]
    await two.to_east()
    await two.check_same()
    (letter,) = [letter async for letter in east.dead_letters()]
    await east.replay(letter)
    await east.drain()
    assert world.names() == ["task", "task"]


async def test_repair_leaves_the_tasks_of_others_alone(world: World, two: Two) -> None:
    east, west = two.east.engine, two.west.engine
    await started(east, "job", Alarm("alarm", east.now() + HOUR))
    await two.to_west()
    assert await west.repair() == 0
    assert await west.repair(job()) == 0
    await west.take_over(job())
    await two.west.database.remove("t/")
    assert await west.repair(job()) == 1


async def test_take_over_that_was_broken_off_is_finished_by_another(world: World, two: Two) -> None:
    west = two.west.engine
    await started(two.east.engine, "job", Alarm("alarm", west.now() + HOUR))
    await two.to_west()
    await west.take_over(job())
    (key,) = await two.west.database.queued()
    await two.west.database.remove(key)
    await west.take_over(job())
    assert await two.west.database.queued() == [key]


async def test_terminated_execution_is_terminated_everywhere(two: Two) -> None:
    east, west = two.east.engine, two.west.engine
    await started(east, "job", Alarm("alarm", east.now() + HOUR))
    await two.to_west()
    await east.terminate(job(), "enough")
    await two.to_west()
    await two.check_same()
    await west.take_over(job())
    assert await two.west.database.queued() == []


async def test_tasks_put_aside_before_a_failover_go_on_after_the_next(world: World, two: Two) -> None:
    east, west = two.east.engine, two.west.engine
    ref = await started(east)
    await east.pause(job())
    await east.update(ref, ask(Soon("task")))
    await east.drain()
    assert len(await two.east.database.keys("q/")) == 1
    await two.to_west()
    await west.take_over(job())
    await west.drain()
    assert len(await two.west.database.keys("q/")) == 1
    await two.to_east()
    await east.take_over(job())
    await east.drain()
    assert world.names() == []
    await east.resume(job())
    await east.drain()
    await two.to_west()
    assert world.names() == ["task"]
    assert await west.read(ref, log) == ["task"]


async def test_tasks_put_aside_in_a_pause_that_ended_elsewhere_run(world: World, two: Two) -> None:
    east, west = two.east.engine, two.west.engine
    ref = await started(east)
    await east.pause(job())
    await east.update(ref, ask(Alarm("task", east.now() + HOUR), Soon("at once")))
    await east.drain()
    await two.to_west()
    await west.take_over(job())
    await west.resume(job())
    await two.to_east()
    await east.take_over(job())
    await two.to_west()
    await east.skip(2 * HOUR)
    assert set(world.names()) == {"task", "at once"}
    assert sorted(await east.read(ref, log)) == ["at once", "task"]


async def test_tasks_that_are_being_put_back_are_not_forgotten_in_a_failover(
    world: World, two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def later(partition: str) -> None:
        pass

    east, west = two.east.engine, two.west.engine
    ref = await started(east)
    await east.pause(job())
    await east.update(ref, ask(Soon("task")))
    await east.drain()
    await two.to_west()
    monkeypatch.setattr(east, "_sweep", later)
    await east.resume(job())
    await east.update(ref, note("lost"))
    await west.take_over(job())
    await west.resume(job())
    await two.to_east()
    monkeypatch.undo()
    await east.skip(2 * HOUR)
    assert await two.east.database.keys("q/", "z/", "i/") == []


# Deletion


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


async def test_machines_need_not_be_registered(two: Two) -> None:
    east = two.east.engine
    ref = await started(east, "job", Alarm("alarm", east.now() + HOUR))
    await east.update(ref, add("a"))
    async with TestEngine(Registry(), await two.west.database.open(), small(cluster=WEST)) as west:
        assert await west.apply_delta(await east.changes_since(job())) is MergeResult.APPLIED
    await two.check_same()


async def test_too_large_a_delta_changes_nothing(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    east = two.east.engine
    ref = await started(east)
    ids = [f"{number:05}" for number in range(5100)]
    await east.update(ref, add(*ids[:5000]))
    await east.update(ref, add(*ids[5000:], *(f"x{id_}" for id_ in ids)))
    with pytest.raises(TransactionTooLargeError):
        await two.to_west()
    with pytest.raises(ExecutionNotFoundError):
        await two.west.engine.versions(job())


@pytest.mark.parametrize(
    "wrong", [{"id": 0}, {"id": 10}, {"id": 1, "peers": (1,)}, {"id": 1, "peers": (11,)}]
)
def test_ids_of_clusters_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="cluster"):
        Cluster(step=10, **wrong)


@pytest.mark.parametrize(("after", "version"), [(0, 2), (1, 2), (2, 12), (11, 12), (12, 22), (19, 22)])
def test_next_version_of_a_cluster(after: int, version: int) -> None:
    assert WEST.next_version(after) == version
    assert WEST.owns(version)
    assert not EAST.owns(version)


@method(int)
def appended(node: Node, name: str) -> int:
    node.transition(Job, write(name))
    return len(node.data(Job).log)


async def test_results_of_calls_go_with_the_execution(two: Two) -> None:
    east, west = two.east.engine, two.west.engine
    ref = await started(east)
    for number in range(40):
        assert await east.call(ref, appended("x"), request_id=f"r{number}") == number + 1
        if number in {3, 20}:
            await two.to_west()
    await two.to_west()
    await two.check_same()
    assert await two.west.database.keys("u/") == await two.east.database.keys("u/")

    await west.take_over(job())
    assert await west.call(ref, appended("x"), request_id="r39") == 40
    assert await west.call(ref, appended("x"), request_id="new") == 41
