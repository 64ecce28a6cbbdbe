"""Child executions: how they are started and named, what their parents hear of them and remember."""

from __future__ import annotations

import pytest

from hsm import (
    ExecutionKey,
    Key,
    Lifecycle,
    Node,
    Ref,
    Registry,
    StateMachineAlreadyExistsError,
)
from hsm.engine import (
    CHILD_EXECUTION,
    ChildExecution,
    Children,
    ChildState,
    register_child_executions,
)
from hsm.testing import TestEngine
from tests.support.databases import Database
from tests.support.families import (
    BOSS,
    CANCEL,
    CLOSED,
    LAZY,
    Boss,
    Receipt,
    State,
    Worker,
    child_states,
    close,
    dead,
    end,
    family_registry,
    heard,
    hire,
)


@pytest.fixture
def registry() -> Registry:
    return family_registry()


async def test_child_is_started_and_its_parent_hears_of_its_end(
    registry: Registry, database: Database
) -> None:
    async with TestEngine(registry, database.store) as engine:
        boss = await engine.start(BOSS, Boss(), on_start=hire("a", "b"))
        await engine.drain()

        assert sorted(await heard(engine)) == ["a COMPLETED DONE", "b COMPLETED DONE"]
        results = await engine.read(boss, lambda node: Children(node).result("a", Receipt))
        assert results == Receipt(7)
        first, second = await engine.children(BOSS)
        assert (first.child.state, first.child.status) == (ChildState.CLOSED, Lifecycle.COMPLETED)
        assert first.ref.path == (Key(CHILD_EXECUTION.id, "a"),)
        assert first.child.execution != second.child.execution
        info = [info async for info in engine.list() if info.key == first.child.execution]
        assert info[0].parent == boss.execution
        assert await engine.read(Ref(first.child.execution), lambda node: node.data(Worker).started) == 1
    assert await database.queued() == []
    await database.check()


async def test_children_are_named_by_their_parent_unless_they_are_named(
    registry: Registry, database: Database
) -> None:
    async with TestEngine(registry, database.store) as engine:
        boss = await engine.start(BOSS, Boss(), on_start=hire("a", data=LAZY))
        await engine.update(boss, hire("b", data=LAZY, key=ExecutionKey("elsewhere", "worker")))
        await engine.drain()
        made, named = [info.child.execution for info in await engine.children(BOSS)]
        assert made.namespace == "tests"
        assert made.id.startswith(f"boss/{boss.execution.run_id}/a/")
        assert named[:2] == ("elsewhere", "worker")
        assert await child_states(engine) == [ChildState.STARTED, ChildState.STARTED]


async def test_name_that_is_taken_is_no_child(registry: Registry, database: Database) -> None:
    async with TestEngine(registry, database.store) as engine:
        taken = ExecutionKey("tests", "taken")
        await engine.start(taken, Worker(works=False))
        boss = await engine.start(BOSS, Boss(), on_start=hire("a", key=taken))
        await engine.drain()
        assert await heard(engine) == ["a NOT STARTED"]
        (info,) = await engine.children(BOSS)
        assert "was started already" in info.child.error
        # It is not ours to end.
        await engine.terminate(boss.execution)
        await engine.drain()
        assert (await engine.describe(taken)).info.status is Lifecycle.RUNNING


async def test_id_of_a_child_is_used_once_until_its_machine_is_deleted(
    registry: Registry, database: Database
) -> None:
    async with TestEngine(registry, database.store) as engine:
        boss = await engine.start(BOSS, Boss(), on_start=hire("a", data=LAZY))
        with pytest.raises(StateMachineAlreadyExistsError):
            await engine.update(boss, hire("a"))
        await engine.drain()
        (first,) = await engine.children(BOSS)
        await engine.update(boss, lambda node: node.delete_child(Key(CHILD_EXECUTION.id, "a")))
        await engine.update(boss, hire("a"))
        await engine.drain()
        assert await heard(engine) == ["a COMPLETED DONE"]

        # The first one was let go of: it goes on, and nobody is told of its end.
        await engine.update(Ref(first.child.execution), end(State.FAILED))
        await engine.drain()
        assert await heard(engine) == ["a COMPLETED DONE"]
        assert await dead(engine) == []
    assert await database.queued() == []


async def test_children_and_their_ends_are_part_of_the_history(
    registry: Registry, database: Database
) -> None:
    async with TestEngine(registry, database.store) as engine:
        await engine.start(BOSS, Boss(), on_start=hire("a", "b"), history=True)
        await engine.drain()
        await close(engine, "terminate")
        await engine.drain()
        entries = [entry async for entry in engine.history(BOSS)]
        trees = [await engine.tree_at(BOSS, entry.version.transition_count) for entry in entries]
        states = [[node.data(ChildExecution).state for node in Children(tree).nodes()] for tree in trees]
    assert states[0] == 2 * [ChildState.SCHEDULED]
    assert states[-1] == 2 * [CLOSED]
    assert sorted(trees[-1].data(Boss).heard) == ["a COMPLETED DONE", "b COMPLETED DONE"]
    tasks = [task for entry in entries for task in entry.tasks]
    # Two starts, and one end of all children that are left.
    assert len(tasks) == len(set(tasks)) == 3


async def test_refresh_starts_no_second_child(registry: Registry, database: Database) -> None:
    async with TestEngine(registry, database.store) as engine:
        await engine.start(BOSS, Boss())
        await engine.pause(BOSS)
        await engine.update(Ref(BOSS), hire("a", data=LAZY))
        for _ in range(2):
            await engine.drain()
            await engine.refresh(BOSS)
        await engine.resume(BOSS)
        await engine.run_until_idle()
        assert await child_states(engine) == [ChildState.STARTED]
        assert await engine.count() == 2
    assert await database.queued() == []


def test_trees_without_an_engine_have_children_too(registry: Registry) -> None:
    for _ in range(2):
        register_child_executions(registry)
    root = Node.new_root(registry, 1, Boss())
    hire("a", "b")(root)
    children = Children(root)
    assert list(children) == ["a", "b"]
    again = Node.from_proto(registry, 1, root.to_proto())
    assert Children(again).data("a") == children.data("a")
    assert children.data("a").state is ChildState.SCHEDULED
    closed = ChildExecution(
        ExecutionKey("a", "b", "c"), 2, b"x", CANCEL, ChildState.CLOSED, Lifecycle.FAILED, "GONE", "why", b""
    )
    children.add("c", closed)
    assert Children(Node.from_proto(registry, 1, root.to_proto())).data("c") == closed
