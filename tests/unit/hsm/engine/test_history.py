"""History on request: any tree an execution has had can be seen again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from hsm import ExecutionNotFoundError, Key, Node, NoHistoryError, Ref
from hsm.testing import FakeClock, TestEngine
from tests.support.clusters import EAST, Two, V
from tests.support.databases import Database, new_database
from tests.support.jobs import Job, Lasting, Soon, Step, World, add_child, job, log, note, small, step

SECOND = timedelta(seconds=1)


def picture(node: Node) -> list[tuple[tuple[Key, ...], int, list[str]]]:
    return [(each.path, each.transition_count, log(each)) for each in node.walk()]


async def test_history_tells_what_each_commit_has_changed(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        ref = await engine.start(job(), Job(), on_start=note("start"), history=True)
        await engine.skip(SECOND)
        await engine.update(ref, add_child("a"))
        await engine.update(Ref(job(), (step("a"),)), note("child", Soon("soon")))
        await engine.drain()
        await engine.update(ref, lambda root: root.delete_child(step("a")))

        entries = [entry async for entry in engine.history(job())]
        assert [entry.version.transition_count for entry in entries] == [1, 2, 3, 4, 5]
        assert [entry.changed for entry in entries] == [((),), *[((step("a"),),)] * 3, ()]
        assert [entry.deleted for entry in entries] == [(), (), (), (), ((step("a"),),)]
        assert [len(entry.tasks) for entry in entries] == [0, 0, 1, 0, 0]
        assert entries[1].time - entries[0].time == SECOND


async def test_tree_can_be_seen_as_it_was(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        ref = await engine.start(job(), Job(), on_start=note("start"), history=True)
        seen = {1: await engine.read(ref, picture)}
        for count, update in enumerate(
            [note("x"), add_child("a"), add_child("b"), lambda root: root.delete_child(step("a"))], 2
        ):
            await engine.update(ref, update)
            seen[count] = await engine.read(ref, picture)
        for count, expected in seen.items():
            assert picture(await engine.tree_at(job(), count)) == expected
        old = await engine.tree_at(job(), 1)
        note("into the copy")(old)
        assert await engine.read(ref, picture) == seen[5]


@pytest.mark.parametrize("count", [-1, 0, 2, 100])
async def test_what_is_not_in_the_history_cannot_be_seen(
    world: World, database: Database, count: int
) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        await engine.start(job(), Job(), history=True)
        with pytest.raises(NoHistoryError, match=f"transition {count} of tests/job"):
            await engine.tree_at(job(), count)


async def test_no_history_is_kept_unless_it_was_asked_for(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        await engine.start(job(), Job())
        assert [entry async for entry in engine.history(job())] == []
        with pytest.raises(NoHistoryError):
            await engine.tree_at(job(), 1)
        assert await database.keys("h/") == []


async def test_history_goes_with_the_execution(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        await engine.start(job(), Job(), on_start=note("x", Lasting("call")), history=True)
        await engine.drain()
        await engine.delete(job(), force=True)
        assert await database.keys("h/") == []
        with pytest.raises(ExecutionNotFoundError):
            await engine.tree_at(job(), 1)


async def test_tree_is_not_made_of_a_history_with_a_gap(two: Two) -> None:
    """What was done in another cluster is in its history: here there is only what has come of it."""
    east, west = two.east.engine, two.west.engine
    root, a = Ref(job()), Ref(job(), (step("a"),))
    await east.start(job(), Job(), on_start=note("east"), history=True)
    await east.update(root, add_child("a"))
    first = await east.read(root, picture)
    await two.to_west()
    await west.take_over(job())
    await west.update(a, note("west"))
    await west.update(root, add_child("b"))
    for count, lacking in ((2, 2), (3, 1), (4, 1), (5, 1)):
        with pytest.raises(NoHistoryError, match=f"transition {lacking} of tests/job"):
            await west.tree_at(job(), count)

    await two.to_east()
    await east.take_over(job())
    await east.update(root, note("back"))
    assert picture(await east.tree_at(job(), 2)) == first
    with pytest.raises(NoHistoryError, match="transition 3 of tests/job"):
        await east.tree_at(job(), 7)


async def test_commits_that_were_lost_in_a_failover_are_no_history(two: Two) -> None:
    east, west = two.east.engine, two.west.engine
    root = Ref(job())
    await east.start(job(), Job(), history=True)
    await two.to_west()
    await east.update(root, note("lost"))
    await east.update(root, note("lost, too"))
    await west.take_over(job())
    await west.update(root, note("west"))
    await two.to_east()
    assert [entry.version async for entry in east.history(job())] == [V(1, 1)]
    with pytest.raises(NoHistoryError, match="transition 3 of tests/job"):
        await east.tree_at(job(), 3)


async def test_history_goes_on_when_its_own_cluster_takes_over(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        await engine.start(job(), Job(), on_start=note("before"), history=True)
    async with TestEngine(world.registry, database.store, small(cluster=EAST)) as engine:
        await engine.take_over(job())
        await engine.update(Ref(job()), note("after"))
        versions = [entry.version async for entry in engine.history(job())]
        assert versions == [V(0, 1), V(1, 2), V(1, 3)]
        assert log(await engine.tree_at(job(), 2)) == ["before"]
        assert log(await engine.tree_at(job(), 3)) == ["before", "after"]


async def test_run_that_is_not_there_has_no_history(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        await engine.start(job(), Job(), history=True)
        with pytest.raises(ExecutionNotFoundError, match="'another'"):
            _ = [entry async for entry in engine.history(job()._replace(run_id="another"))]


edits = st.lists(
    st.tuples(st.sampled_from(["add", "delete", "note", "both"]), st.sampled_from("abc"), st.booleans()),
    max_size=15,
)


@settings(max_examples=60, deadline=None)
@given(edits, st.sampled_from([1, 100]))
def test_every_tree_there_has_been_can_be_seen_again(
    script: list[tuple[str, str, bool]], delete_rows: int
) -> None:
    asyncio.run(play(script, delete_rows))


async def play(script: list[tuple[str, str, bool]], delete_rows: int) -> None:
    world = World()
    options = small(delete_rows=delete_rows, loaded_nodes=2)
    async with (
        new_database("memory", Path()) as database,
        TestEngine(world.registry, database.store, options, clock=FakeClock()) as engine,
    ):
        ref = await engine.start(job(), Job(), history=True)
        seen = [await engine.read(ref, picture)]
        for action, id_, below in script:
            await engine.update(ref, change(action, id_, below=below))
            tree = await engine.read(ref, picture)
            count = len([entry async for entry in engine.history(job())])
            if count > len(seen):
                seen.append(tree)
        for number, expected in enumerate(seen, 1):
            assert picture(await engine.tree_at(job(), number)) == expected


def change(action: str, id_: str, *, below: bool) -> Callable[[Node], None]:
    """Add or delete a child, both, or write into it, as far as it is there."""

    def update(root: Node) -> None:
        present = {child.path[0] for child in root.walk() if len(child.path) == 1}
        key = step(id_)
        if action in {"delete", "both"} and key in present:
            root.delete_child(key)
            present.discard(key)
        if action in {"add", "both"} and key not in present:
            child = root.add_child(key, Step())
            if below:
                note("made")(child.add_child(step("below"), Step()))
        if action == "note" and key in present:
            note("x")(root.child([key]))

    return update
