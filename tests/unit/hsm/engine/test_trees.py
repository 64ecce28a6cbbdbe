"""Trees in the store: loaded in parts, deleted in parts, and always the same tree."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from hsm import (
    AccessType,
    Collection,
    Environment,
    Key,
    Node,
    NotRegisteredError,
    Ref,
    StateMachineAlreadyExistsError,
    StateMachineNotFoundError,
)
from hsm.testing import Call as StoreCall, FaultyStore, TestEngine
from tests.support.databases import Database
from tests.support.jobs import (
    STEP,
    Job,
    Soon,
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


def names(count: int) -> list[str]:
    """Ids whose order in the store is not that of their insertion."""
    return [str(number * 7 % count) + "-" * (number % 3) for number in range(count)]


async def shape(world: World, database: Database, ref: Ref) -> list[str]:
    """The tree as a process that has nothing in memory sees it, all of it."""
    async with TestEngine(world.registry, database.store, run_tasks=False) as engine:
        return await engine.read(ref, paths)


@pytest.mark.parametrize("loaded", [1, 2, 5, 1000])
async def test_tree_is_the_same_however_it_is_loaded(world: World, database: Database, loaded: int) -> None:
    ids = names(20)
    expected = [""] + [path for id_ in ids for path in (id_, *(f"{id_}/{number}" for number in range(3)))]
    async with TestEngine(world.registry, database.store, run_tasks=False) as engine:
        ref = await started(engine)
        for id_ in ids:
            await engine.update(ref, grow(id_, below=3))
        assert await engine.read(ref, paths) == expected

    for ask_first in (None, (step(ids[7]),), (step(ids[-1]), step("2")), (step("nobody"),)):
        options = small(loaded_nodes=loaded)
        async with TestEngine(world.registry, database.store, options, run_tasks=False) as engine:
            if ask_first is not None:
                child = Ref(ref.execution, ask_first)
                if ask_first == (step("nobody"),):
                    with pytest.raises(StateMachineNotFoundError):
                        await engine.read(child, log)
                else:
                    (made,) = await engine.read(child, log)
                    assert made == "made " + "/".join(key.id for key in ask_first)
            assert await engine.read(ref, lambda root: list(Collection(root, STEP, Step))) == ids
            assert await engine.read(ref, paths) == expected


async def test_reading_one_machine_of_a_large_tree_reads_few_rows(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store, run_tasks=False) as engine:
        ref = await started(engine)
        await engine.update(ref, grow(*names(50), below=4))

    store = FaultyStore(database.store)
    async with TestEngine(world.registry, store, small(loaded_nodes=4), run_tasks=False) as engine:
        scans: list[object] = []

        async def watch(call: StoreCall) -> None:
            if call.method == "scan":
                scans.append(call.request)

        store.before = watch
        deep = Ref(ref.execution, (step(names(50)[33]), step("3")))
        await engine.update(deep, note("changed"))
        assert len(scans) == 1  # the first rows of the tree; the others one by one
        cached = engine._executions.cached(ref.execution)
        assert cached is not None
        assert len(cached.table._rows) <= 8
        assert (await engine.read(deep, log))[1:] == ["changed"]


async def test_changes_of_a_tree_that_is_loaded_in_part(world: World, database: Database) -> None:
    ids = names(12)
    async with TestEngine(world.registry, database.store, run_tasks=False) as engine:
        ref = await started(engine)
        await engine.update(ref, grow(*ids, below=2))

    options = small(loaded_nodes=2)
    async with TestEngine(world.registry, database.store, options, run_tasks=False) as engine:
        with pytest.raises(StateMachineAlreadyExistsError):
            await engine.update(ref, grow(ids[5]))
        await engine.update(ref, grow("new"))
        await engine.update(ref, lambda root: root.delete_child(step(ids[3])))
        with pytest.raises(StateMachineNotFoundError):
            await engine.update(ref, lambda root: root.delete_child(step(ids[3])))
        await engine.update(Ref(ref.execution, (step(ids[4]),)), lambda node: node.delete_child(step("0")))
        await engine.update(ref, grow(ids[3], below=1))
        found = await engine.read(ref, paths)

    kept = [id_ for id_ in ids if id_ != ids[3]]
    below = {id_: [f"{id_}/0", f"{id_}/1"] for id_ in kept}
    below[ids[4]] = [f"{ids[4]}/1"]
    expected = [""] + [path for id_ in kept for path in (id_, *below[id_])] + ["new", ids[3], f"{ids[3]}/0"]
    assert found == expected
    assert await shape(world, database, ref) == expected


async def test_access_has_the_whole_tree(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store, run_tasks=False) as engine:
        ref = await started(engine)
        await engine.update(ref, grow(*names(10), below=2))

    async with TestEngine(world.registry, database.store, small(loaded_nodes=1)) as engine:
        for access in AccessType:
            async with engine.access(ref, access) as root:
                assert len(paths(root)) == 31


async def test_function_that_needs_more_of_the_tree_runs_again_from_the_start(
    world: World, database: Database
) -> None:
    async with TestEngine(world.registry, database.store, run_tasks=False) as engine:
        ref = await started(engine)
        await engine.update(ref, grow(*names(10), below=2))

    async with TestEngine(world.registry, database.store, small(loaded_nodes=1)) as engine:
        runs = 0

        def change(root: Node) -> int:
            nonlocal runs
            runs += 1
            note("once", Soon("task"))(root)
            grow("new")(root)
            return len(paths(root))

        assert await engine.update(ref, change) == 32
        assert runs > 1
        await engine.drain()
        assert await engine.read(ref, log) == ["once", "task"]
    assert world.names() == ["task"]
    await database.check()


async def test_part_of_a_tree_that_has_changed_meanwhile_is_loaded_anew(
    world: World, database: Database
) -> None:
    async with (
        TestEngine(world.registry, database.store, small(loaded_nodes=1), run_tasks=False) as one,
        TestEngine(world.registry, await database.open(), run_tasks=False) as other,
    ):
        ref = await started(other)
        await other.update(ref, grow("a", "b", below=2))
        await one.read(ref, log)
        await other.update(ref, lambda root: root.delete_child(step("a")))
        await other.update(ref, grow("c"))
        await one.update(ref, lambda root: note(str(paths(root)))(root))
        assert await other.read(ref, log) == [str(["", "b", "b/0", "b/1", "c"])]


async def test_machines_of_unknown_types_are_carried_along(database: Database) -> None:
    new, old = World(), World(without=(Step,))
    async with TestEngine(new.registry, database.store, run_tasks=False) as engine:
        ref = await started(engine)
        await engine.update(ref, grow("a", "b", below=2))
    rows = await database.tree(ref.execution)

    async with TestEngine(old.registry, database.store, small(loaded_nodes=2)) as engine:
        assert await engine.read(ref, paths) == [""]
        await engine.update(ref, note("by the old program"))
        with pytest.raises(NotRegisteredError):
            await engine.read(Ref(ref.execution, (step("a"),)), log)
        await engine.update(ref, lambda root: root.delete_child(step("b")))

    async with TestEngine(new.registry, database.store) as engine:
        assert await engine.read(ref, paths) == ["", "a", "a/0", "a/1"]
        assert await engine.read(ref, log) == ["by the old program"]
    kept = await database.tree(ref.execution)
    assert {path: row for path, row in rows.items() if path[:1] == (step("a"),)} == {
        path: row for path, row in kept.items() if path
    }


async def test_failed_update_leaves_nothing_of_its_children(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine)
        await engine.update(ref, grow("a", below=2))

        def fail(root: Node) -> None:
            grow("b", below=2)(root)
            root.delete_child(step("a"))
            grow("a")(root)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await engine.update(ref, fail)
        assert await engine.read(ref, paths) == ["", "a", "a/0", "a/1"]
        await engine.update(ref, grow("c"))
        assert await engine.read(ref, paths) == ["", "a", "a/0", "a/1", "c"]
    assert await shape(world, database, ref) == ["", "a", "a/0", "a/1", "c"]


async def test_children_of_two_types_and_odd_ids_keep_their_order(world: World, database: Database) -> None:
    keys = [
        Key(STEP, "b"),
        Key(1, "a"),
        Key(STEP, ""),
        Key(1, "b/c"),
        Key(STEP, "b%2Fc"),
        Key(STEP, "b!"),
        Key(1, "ü"),
    ]

    def add(root: Node) -> None:
        for key in keys:
            child = root.add_child(key, Step() if key.type == STEP else Job())
            child.add_child(step("x"), Step())

    async with TestEngine(world.registry, database.store, run_tasks=False) as engine:
        ref = await started(engine)
        await engine.update(ref, add)
    for loaded in (1, 4, 100):
        options = small(loaded_nodes=loaded)
        async with TestEngine(world.registry, database.store, options, run_tasks=False) as engine:
            await engine.read(Ref(ref.execution, (keys[4], step("x"))), log)
            found = await engine.read(ref, lambda root: [node.path for node in root.walk()])
            assert found == [(), *(path for key in keys for path in ((key,), (key, step("x"))))]


async def test_task_on_a_deep_machine_of_a_large_tree(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store, run_tasks=False) as engine:
        ref = await started(engine)
        await engine.update(ref, grow(*names(30), below=5))
        deep = Ref(ref.execution, (step(names(30)[20]), step("4")))
        await engine.update(deep, ask(Soon("deep")))

    async def run(env: Environment, own: Ref, task: Soon) -> None:
        await env.update(own, note(task.name))

    world.on(Soon, run)
    async with TestEngine(world.registry, database.store, small(loaded_nodes=2)) as engine:
        await engine.drain()
        assert (await engine.read(deep, log))[1:] == ["deep"]
    assert await database.queued() == []
    await database.check()
