"""Executions in two clusters: what one tells the other, and what is deleted there."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import attrs
import pytest

from hsm import (
    Node,
    Registry,
    ResendError,
)
from hsm.engine import Cluster, method
from hsm.errors import ExecutionNotFoundError, TransactionTooLargeError
from hsm.testing import TestEngine
from hsm.tree import MergeResult
from persistence.proto.execution_pb2 import ExecutionRow
from tests.support.clusters import EAST, HOUR, WEST, Two, V, add, child
from tests.support.databases import Database
from tests.support.jobs import (
    Alarm,
    Job,
    Step,
    World,
    job,
    log,
    note,
    small,
    started,
    step,
    write,
)


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
