"""Tasks of executions in two clusters: they run where the execution is written, and none is lost on the way."""

from __future__ import annotations

import pytest

from hsm import (
    Environment,
    ExecutionKey,
    Lifecycle,
    Node,
    Ref,
    TerminalError,
)
from hsm.engine import Children, ChildState
from tests.support.clusters import HOUR, Two, add, child
from tests.support.jobs import (
    Alarm,
    Job,
    Lasting,
    Soon,
    World,
    ask,
    failing,
    finish,
    job,
    log,
    note,
    noted,
    pending,
    started,
)


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


async def test_child_tells_its_parent_wherever_that_is_written(two: Two) -> None:
    """It waits for a parent that another cluster has taken over, until it is there itself."""
    east, west = two.east.engine, two.west.engine
    kid = ExecutionKey("tests", "kid")

    def hire(node: Node) -> None:
        Children(node).start("a", Job(), execution=kid)

    boss = await started(east)
    await east.update(boss, hire)
    await east.drain()
    for key in (job(), kid):
        await two.tell(two.east, two.west, key)
    await west.take_over(job())
    await two.to_east()
    await east.update(Ref(kid), finish())
    await east.skip(10 * HOUR)
    assert [info.child.state for info in await west.children(job())] == [ChildState.STARTED]
    assert [letter async for letter in east.dead_letters()] == []
    assert len(await two.east.database.queued()) == 1

    await two.tell(two.east, two.west, kid)
    await west.take_over(kid)
    await west.drain()
    for key in (job(), kid):
        await two.tell(two.west, two.east, key)
        await two.check_same(key)
    await east.skip(HOUR)
    (info,) = await east.children(job())
    assert (info.child.state, info.child.status) == (ChildState.CLOSED, Lifecycle.COMPLETED)
    for side in (two.east, two.west):
        assert await side.database.queued() == []
        await side.database.check()
