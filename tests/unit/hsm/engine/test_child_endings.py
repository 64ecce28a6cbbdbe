"""Child executions: how they end with their parents, and what their parents hear of an end."""

from __future__ import annotations

from datetime import timedelta

import pytest

from hsm import (
    ExecutionKey,
    ExecutionRunningError,
    Lifecycle,
    Ref,
    Registry,
    SerializationError,
)
from hsm.engine import (
    ChildState,
    ClosePolicy,
    ConflictPolicy,
)
from hsm.testing import FakeClock, TestEngine
from tests.support.databases import Database
from tests.support.families import (
    ABANDON,
    BOSS,
    CANCEL,
    CLOSED,
    CLOSINGS,
    LAZY,
    TERMINATE,
    Boss,
    Receipt,
    Rock,
    Worker,
    child_states,
    close,
    dead,
    end,
    family_registry,
    heard,
    hire,
    statuses,
)
from tests.support.jobs import small


@pytest.fixture
def registry() -> Registry:
    return family_registry()


@pytest.mark.parametrize("how", CLOSINGS)
async def test_children_end_with_their_parent_as_agreed(
    registry: Registry, database: Database, how: str
) -> None:
    async with TestEngine(registry, database.store) as engine:
        boss = await engine.start(BOSS, Boss(), on_start=hire("killed", data=LAZY))
        await engine.update(boss, hire("asked", data=LAZY, policy=CANCEL))
        await engine.update(boss, hire("free", data=LAZY, policy=ABANDON))
        await engine.update(boss, hire("done"))
        await engine.drain()
        await close(engine, how)
        await engine.drain()

        assert await statuses(engine) == {
            "killed": Lifecycle.TERMINATED,
            "asked": Lifecycle.FAILED,
            "free": Lifecycle.RUNNING,
            "done": Lifecycle.COMPLETED,
        }
        assert await heard(engine) == ["done COMPLETED DONE"]
        assert await child_states(engine) == [CLOSED, CLOSED, ChildState.STARTED, CLOSED]
        expected = {"complete": Lifecycle.COMPLETED, "fail": Lifecycle.FAILED}
        assert (await engine.describe(BOSS)).info.status is expected.get(how, Lifecycle.TERMINATED)
        assert await dead(engine) == []
    assert await database.queued() == []


async def test_child_of_a_parent_that_has_closed_already_ends_as_agreed(
    registry: Registry, database: Database
) -> None:
    async with TestEngine(registry, database.store) as engine:
        boss = await engine.start(BOSS, Boss(), on_start=end())
        await engine.update(boss, hire("killed", data=LAZY))
        await engine.update(boss, hire("asked", data=LAZY, policy=CANCEL))
        await engine.update(boss, hire("free", data=LAZY, policy=ABANDON))
        await engine.drain()
        assert await statuses(engine) == {
            "killed": Lifecycle.TERMINATED,
            "asked": Lifecycle.FAILED,
            "free": Lifecycle.RUNNING,
        }
        assert await heard(engine) == []
    await database.check()


@pytest.mark.parametrize("policy", [TERMINATE, CANCEL, ABANDON])
@pytest.mark.parametrize("how", CLOSINGS)
async def test_child_that_was_not_started_yet_does_not_outlive_its_parent(
    registry: Registry, database: Database, how: str, policy: ClosePolicy
) -> None:
    async with TestEngine(registry, database.store, run_tasks=False) as engine:
        await engine.start(BOSS, Boss(), on_start=hire("a", policy=policy, data=LAZY))
        await close(engine, how)
    async with TestEngine(registry, database.store) as engine:
        await engine.run_until_idle()
        found = await statuses(engine)
        if policy is TERMINATE:
            assert found == {"a": Lifecycle.TERMINATED}
        elif policy is CANCEL:
            assert found == {"a": Lifecycle.FAILED}
        else:
            # What nobody has started yet when the parent is terminated is not abandoned: it is not there.
            assert found == ({} if how == "terminate" else {"a": Lifecycle.RUNNING})
        assert await dead(engine) == []
    assert await database.queued() == []


async def test_termination_goes_down_all_generations(registry: Registry, database: Database) -> None:
    async with TestEngine(registry, database.store) as engine:
        await engine.start(BOSS, Boss(), on_start=hire("a", data=Worker(works=False, workers=3)))
        await engine.drain()
        assert await engine.count(status=Lifecycle.RUNNING) == 1 + 1 + 3 + 3 * 2 + 3 * 2 * 1
        await engine.terminate(BOSS)
        await engine.drain()
        assert await engine.count(status=Lifecycle.RUNNING) == 0
        assert await engine.count(status=Lifecycle.TERMINATED) == 17
    assert await database.queued() == []


async def test_parent_hears_that_its_child_was_terminated(registry: Registry, database: Database) -> None:
    async with TestEngine(registry, database.store) as engine:
        await engine.start(BOSS, Boss(), on_start=hire("a", data=LAZY))
        await engine.drain()
        (info,) = await engine.children(BOSS)
        await engine.terminate(info.child.execution, "enough")
        await engine.drain()
        assert await heard(engine) == ["a TERMINATED OPEN"]
        (info,) = await engine.children(BOSS)
        assert info.child.error == "enough"
        with pytest.raises(SerializationError, match="has left no result"):
            info.child.result(Receipt)
        assert (await engine.describe(info.child.execution)).info.status is Lifecycle.TERMINATED
        # Its own task has run, and what it waits for is told as it is.
        assert [
            task for node in (await engine.describe(info.child.execution)).nodes for task in node.tasks
        ] == []
    assert await database.queued() == []
    await database.check()


async def test_child_ends_after_its_parent_is_gone(registry: Registry, database: Database) -> None:
    async with TestEngine(registry, database.store) as engine:
        await engine.start(BOSS, Boss(), on_start=hire("a", data=LAZY, policy=ABANDON))
        await engine.drain()
        (info,) = await engine.children(BOSS)
        await engine.delete(BOSS, force=True)
        await engine.update(Ref(info.child.execution), end())
        await engine.run_until_idle()
        assert await dead(engine) == []
    assert await database.queued() == []


async def test_child_that_cannot_be_asked_to_end_is_told_of_and_keeps_no_other(
    registry: Registry, database: Database
) -> None:
    async with TestEngine(registry, database.store) as engine:
        boss = await engine.start(BOSS, Boss(), on_start=hire("rock", data=Rock(), policy=CANCEL))
        await engine.update(boss, hire("a", data=LAZY))
        await engine.drain()
        await engine.terminate(BOSS)
        await engine.run_until_idle()
        assert await statuses(engine) == {"rock": Lifecycle.RUNNING, "a": Lifecycle.TERMINATED}
        (letter,) = await dead(engine)
        assert letter.startswith("hsm.EndChildren: TerminalError: child execution tests/boss/")


async def test_child_is_kept_until_its_parent_has_heard(
    registry: Registry, database: Database, clock: FakeClock
) -> None:
    options = small(retention=timedelta(hours=1), poll_interval=timedelta(minutes=1))
    async with TestEngine(registry, database.store, options, clock=clock) as engine:
        boss = await engine.start(BOSS, Boss(fails=True), on_start=hire("a"))
        await engine.drain()
        (info,) = await engine.children(BOSS)
        assert info.child.state is ChildState.STARTED
        with pytest.raises(ExecutionRunningError, match="has parent or children to tell"):
            await engine.delete(info.child.execution)
        await engine.skip(timedelta(hours=4))
        assert await engine.count() == 2
        (letter,) = [letter async for letter in engine.dead_letters()]

        def listen(data: Boss) -> None:
            data.fails = False

        await engine.update(boss, lambda node: node.transition(Boss, listen))
        await engine.replay(letter)
        await engine.drain()
        assert await heard(engine) == ["a COMPLETED DONE"]
        await engine.skip(timedelta(minutes=2))
        assert await engine.count() == 1
    assert await database.keys("e/tests/boss%2F", "x/") == []


async def test_dead_end_of_children_is_replayed_after_a_termination(
    registry: Registry, database: Database
) -> None:
    async with TestEngine(registry, database.store) as engine:
        await engine.start(BOSS, Boss(), on_start=hire("rock", data=Rock(), policy=CANCEL))
        await engine.drain()
        await engine.terminate(BOSS)
        await engine.run_until_idle()
        with pytest.raises(ExecutionRunningError, match="has parent or children to tell"):
            await engine.delete(BOSS)
        (waiting,) = [task for node in (await engine.describe(BOSS)).nodes for task in node.tasks]
        assert (waiting.name, waiting.last_error[:14]) == ("hsm.EndChildren", "dead-lettered:")
        (letter,) = [letter async for letter in engine.dead_letters()]
        await engine.update(Ref((await engine.children(BOSS))[0].child.execution), end())
        await engine.replay(letter)
        await engine.run_until_idle()
        assert await dead(engine) == []
        await engine.delete(BOSS)
    assert await database.queued() == []


async def test_replaced_runs_are_told_of_like_others_that_end(registry: Registry, database: Database) -> None:
    async with TestEngine(registry, database.store) as engine:
        named = ExecutionKey("tests", "worker")
        await engine.start(BOSS, Boss(), on_start=hire("a", data=LAZY, key=named))
        await engine.drain()
        await engine.start(named, LAZY, conflict=ConflictPolicy.TERMINATE_EXISTING)
        await engine.drain()
        assert await heard(engine) == ["a TERMINATED OPEN"]

        await engine.update(Ref(BOSS), hire("b", data=LAZY))
        await engine.drain()
        await engine.start(BOSS, Boss(), conflict=ConflictPolicy.TERMINATE_EXISTING)
        await engine.drain()
        assert await engine.count(status=Lifecycle.TERMINATED) == 3
        assert (await engine.describe(named)).info.status is Lifecycle.RUNNING
        assert await heard(engine) == []
        assert await dead(engine) == []
    assert await database.queued() == []


async def test_parent_that_has_closed_is_told_and_not_disturbed(
    registry: Registry, database: Database
) -> None:
    async with TestEngine(registry, database.store) as engine:
        await engine.start(BOSS, Boss(fails=True), on_start=hire("a", data=LAZY, policy=ABANDON))
        await engine.drain()
        await close(engine, "complete")
        (info,) = await engine.children(BOSS)
        await engine.update(Ref(info.child.execution), end())
        await engine.drain()
        assert await child_states(engine) == [CLOSED]
        assert await heard(engine) == []
        assert await dead(engine) == []
