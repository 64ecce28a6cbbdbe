"""Deleted subtrees: gone at once, their rows soon, and never back."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from hsm import (
    Node,
    Ref,
    StateMachineNotFoundError,
)
from hsm.testing import Call as StoreCall, FakeClock, FaultyStore, TestEngine
from persistence.errors import StoreUnavailableError
from tests.support.databases import Database
from tests.support.jobs import (
    Alarm,
    Step,
    World,
    ask,
    log,
    note,
    small,
    started,
    step,
)

HOUR = timedelta(hours=1)


def grow(*ids: str, below: int = 0) -> Callable[[Node], None]:
    """Add children, with so many children each."""

    def add(node: Node) -> None:
        for id_ in ids:
            child = node.add_child(step(id_), Step())
            note(f"made {id_}")(child)
            for number in range(below):
                note(f"made {id_}/{number}")(child.add_child(step(str(number)), Step()))

    return add


def paths(root: Node) -> list[str]:
    """The tree as text, parents first, siblings in their order."""
    return ["/".join(key.id for key in node.path) for node in root.walk()]


async def shape(world: World, database: Database, ref: Ref) -> list[str]:
    """The tree as a process that has nothing in memory sees it, all of it."""
    async with TestEngine(world.registry, database.store, run_tasks=False) as engine:
        return await engine.read(ref, paths)


@pytest.mark.parametrize("count", [3, 40])
async def test_large_subtree_is_gone_at_once_and_its_rows_soon(
    world: World, database: Database, clock: FakeClock, count: int
) -> None:
    options = small(delete_rows=10)
    async with TestEngine(world.registry, database.store, options, clock=clock) as engine:
        ref = await started(engine)

        def build(root: Node) -> None:
            grow("a", "b", below=count)(root)
            for id_ in "ab":
                ask(Alarm("x", clock.now() + HOUR))(root.child((step(id_), step("1"))))

        await engine.update(ref, build)
        before = len(await database.keys("n/"))
        await engine.update(ref, lambda root: root.delete_child(step("a")))
        assert await engine.read(ref, paths) == ["", "b", *(f"b/{number}" for number in range(count))]
        await engine.drain()
        assert len(await database.keys("n/")) == before - count - 1
        assert await database.keys("z/") == []
        assert len(await database.keys("t/")) == 1
        await engine.skip(HOUR)
        assert world.names() == ["x"]
    await database.check()


async def test_two_large_subtrees_deleted_without_an_add_between_are_both_swept(
    world: World, database: Database
) -> None:
    options = small(delete_rows=3)
    async with TestEngine(world.registry, database.store, options, run_tasks=False) as engine:
        ref = await started(engine)
        await engine.update(ref, grow("a", "b", "c", "d", below=10))

        def both(root: Node) -> None:
            root.delete_child(step("a"))
            root.delete_child(step("b"))

        await engine.update(ref, both)
        await engine.update(ref, lambda root: root.delete_child(step("c")))
        assert len(await database.keys("z/")) == 3
        assert await shape(world, database, ref) == ["", "d", *(f"d/{number}" for number in range(10))]

    async with TestEngine(world.registry, database.store, options) as engine:
        await engine.drain()
    assert len(await database.keys("n/")) == 11
    assert await database.keys("z/") == []


@pytest.mark.parametrize("loaded", [1, 1000])
async def test_machine_added_again_before_the_sweep_has_none_of_the_old_children(
    world: World, database: Database, loaded: int
) -> None:
    options = small(delete_rows=3, loaded_nodes=loaded)
    async with TestEngine(world.registry, database.store, options, run_tasks=False) as engine:
        ref = await started(engine)
        await engine.update(ref, grow("a", below=10))
        await engine.update(Ref(ref.execution, (step("a"), step("7"))), grow("deep", below=10))
        await engine.update(ref, lambda root: root.delete_child(step("a")))
        await engine.update(ref, grow("a"))
        await engine.update(Ref(ref.execution, (step("a"),)), grow("7", "new"))
    expected = ["", "a", "a/7", "a/new"]
    old = Ref(ref.execution, (step("a"), step("3")))

    assert await shape(world, database, ref) == expected
    async with TestEngine(world.registry, database.store, options, run_tasks=False) as engine:
        with pytest.raises(StateMachineNotFoundError):
            await engine.read(old, log)
        with pytest.raises(StateMachineNotFoundError):
            await engine.read(Ref(ref.execution, (step("a"), step("7"), step("deep"))), log)
        await engine.update(Ref(ref.execution, (step("a"),)), grow("3"))

    async with TestEngine(world.registry, database.store, options) as engine:
        await engine.drain()
        assert await engine.read(ref, paths) == [*expected, "a/3"]
        assert await engine.read(old, log) == ["made 3"]
    assert await database.keys("z/") == []
    assert len(await database.keys("n/")) == 4


async def test_machine_deleted_and_added_again_in_one_update(world: World, database: Database) -> None:
    options = small(delete_rows=3)
    async with TestEngine(world.registry, database.store, options, run_tasks=False) as engine:
        ref = await started(engine)
        await engine.update(ref, grow("a", "small", below=10))
        await engine.update(ref, grow("b"))

        def again(root: Node) -> None:
            for id_ in ("a", "small"):
                root.delete_child(step(id_))
            grow("a", below=2)(root)

        await engine.update(ref, again)
        expected = ["", "b", "a", "a/0", "a/1"]
        assert await engine.read(ref, paths) == expected
        assert await shape(world, database, ref) == expected

    async with TestEngine(world.registry, database.store, options) as engine:
        await engine.drain()
        assert await engine.read(ref, paths) == expected
    assert len(await database.keys("n/")) == 4


async def test_sweep_that_breaks_off_is_finished_by_the_next_engine(world: World, database: Database) -> None:
    count = 250
    async with TestEngine(world.registry, database.store, small(delete_rows=3), run_tasks=False) as engine:
        ref = await started(engine)
        await engine.update(ref, grow("a", below=count))
        await engine.update(ref, lambda root: root.delete_child(step("a")))
        await engine.update(ref, grow("a"))

    left = [count + 2]
    for write, carried_out in ((1, False), (1, True), (2, False), (1, True)):
        store = FaultyStore(database.store)
        store.cut_off_at(write, carried_out=carried_out)
        async with TestEngine(world.registry, store):
            await store.until_cut_off()
        left.append(len(await database.keys("n/")))
        assert await shape(world, database, ref) == ["", "a"]
    assert left == sorted(left, reverse=True)
    assert left[-1] < left[0]

    async with TestEngine(world.registry, database.store) as engine:
        await engine.drain()
        assert await engine.read(ref, paths) == ["", "a"]
    assert len(await database.keys("n/")) == 1
    assert await database.keys("z/") == []


async def test_sweep_that_fails_is_repeated_after_a_poll(
    world: World, database: Database, clock: FakeClock
) -> None:
    store = FaultyStore(database.store)
    async with TestEngine(world.registry, store, small(delete_rows=3), clock=clock) as engine:
        ref = await started(engine)
        await engine.update(ref, grow("a", below=20))
        await engine.drain()

        async def refuse(call: StoreCall) -> None:
            if call.method == "scan" and call.request[1] == "z/":  # type: ignore[index]
                store.before = None
                raise StoreUnavailableError("not now")

        store.before = refuse
        await engine.update(ref, lambda root: root.delete_child(step("a")))
        await engine.drain()
        assert len(await database.keys("n/")) == 20
        await engine.skip(HOUR)
        assert len(await database.keys("n/")) == 0
