"""Validators: asked when a task is added, by commits, before a run and at its write; each drops what is stale."""

from __future__ import annotations

from datetime import timedelta
from typing import ClassVar

import attrs
import pytest

from hsm import (
    AccessType,
    Environment,
    ImmediateKind,
    Node,
    OutboundKind,
    Ref,
    StaleReferenceError,
    TaskKind,
    TaskType,
)
from hsm.engine import EngineOptions
from hsm.testing import FakeClock, TestEngine
from tests.support.databases import Database
from tests.support.jobs import (
    Alarm,
    Job,
    Lasting,
    Ring,
    Soon,
    Step,
    World,
    ask,
    job,
    log,
    note,
    pending,
    small,
    started,
    step,
    write,
)

HOUR = timedelta(hours=1)


@attrs.define
class Asked:
    """What a validator was asked for."""

    attempts: list[int] = attrs.field(factory=list[int])


ASKED = Asked()


@attrs.frozen
class Nosy:
    """Remembers when it was asked, and gives up after two runs."""

    type: ClassVar[TaskType] = TaskType(31, "nosy")
    name: str = "nosy"

    @property
    def kind(self) -> TaskKind:
        return OutboundKind("there")

    def validate(self, ref: Ref, node: Node) -> None:
        ASKED.attempts.append(ref.attempt)
        if ref.attempt > 2:
            raise StaleReferenceError("tried often enough")


@pytest.fixture
def world() -> World:
    world = World()
    world.registry.register_task(Nosy)
    world.registry.register_executor(Nosy, world._run)
    ASKED.attempts.clear()
    return world


async def test_when_it_is_added(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store, run_tasks=False) as engine:
        ref = await started(engine)
        await engine.update(ref, note("end", Lasting("a"), Soon("b"), Alarm("c", engine.now() + HOUR)))
        assert await pending(engine, ref) == []
    assert await database.queued() == []


async def test_at_the_commit_for_every_machine_that_it_changes(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store, run_tasks=False) as engine:
        ref = await started(engine, "job", Lasting("root"))

        def plant(root: Node) -> None:
            for id_ in ("a", "b", "c"):
                ask(Lasting(id_), Alarm(id_, engine.now() + HOUR))(root.add_child(step(id_), Step()))

        await engine.update(ref, plant)
        assert len(await database.queued()) == 7

        def end_two(root: Node) -> None:
            note("end")(root)
            note("end")(root.child([step("b")]))
            note("not the end")(root.child([step("c")]))

        await engine.update(ref, end_two)
        tree = await engine.describe(job())
        waiting = {
            node.path[-1].id if node.path else "root": [task.name for task in node.tasks]
            for node in tree.nodes
        }
        assert waiting == {
            "root": [],
            "a": ["lasting", "alarm"],
            "b": [],
            "c": ["lasting", "alarm"],
        }
        assert len(await database.queued()) == 4
    await database.check()


@pytest.mark.parametrize("how", ["timer under the lock", "access", "another task", "more tasks"])
async def test_at_commits_of_every_kind(world: World, database: Database, clock: FakeClock, how: str) -> None:
    async def end(env: Environment, ref: Ref, task: Soon) -> None:
        await env.update(ref, note("end"))

    world.on(Soon, end)
    world.ring = lambda env, node, task: node.transition(Job, write("end"))
    options = small(concurrency_of=lambda _namespace, group, _destination: 1)
    async with TestEngine(world.registry, database.store, options, clock=clock) as engine:
        later = Alarm("later", clock.now() + 5 * HOUR)
        ref = await started(engine, "job", later)
        assert len(await database.queued()) == 1
        if how == "timer under the lock":
            await engine.update(ref, ask(Ring("ring", clock.now() + HOUR)))
            await engine.skip(HOUR)
        elif how == "access":
            async with engine.access(ref, AccessType.WRITE) as node:
                note("end")(node)
        elif how == "another task":
            await engine.update(ref, ask(Soon("soon")))
            await engine.drain()
        else:
            await engine.update(ref, note("end", Soon("over already")))
        assert await pending(engine, ref) == []
        assert await database.queued() == []
        await engine.skip(6 * HOUR)
        assert "later" not in world.names()


async def test_machine_that_is_not_changed_is_asked_before_the_run(world: World, database: Database) -> None:
    """A validator may look at other machines, whose commits do not know of it."""

    @attrs.frozen
    class Below:
        type: ClassVar[TaskType] = TaskType(32, "below")
        name: str = "below"

        @property
        def kind(self) -> TaskKind:
            return ImmediateKind()

        def validate(self, ref: Ref, node: Node) -> None:
            parent = node.parent
            if parent is not None and "end" in parent.data(Job).log:
                raise StaleReferenceError("its parent has ended")

    world.registry.register_task(Below)
    world.registry.register_executor(Below, world._run)
    async with TestEngine(world.registry, database.store, run_tasks=False) as engine:
        ref = await started(engine)
        await engine.update(ref, lambda root: ask(Below())(root.add_child(step("a"), Step())))
        await engine.update(ref, note("end"))
        assert await pending(engine, ref) == ["below"]
    async with TestEngine(world.registry, database.store) as engine:
        await engine.drain()
        assert world.names() == []
        assert await pending(engine, ref) == []
    assert await database.queued() == []


@pytest.mark.parametrize("keep", [False, True])
async def test_at_the_write_that_follows(world: World, database: Database, keep: bool) -> None:
    caught: list[type[Exception]] = []

    async def run(env: Environment, ref: Ref, task: Lasting) -> None:
        await env.update(Ref(ref.execution), note("end"))
        try:
            await env.update(ref, note("too late"), keep_task=keep)
        except StaleReferenceError as error:
            caught.append(type(error))
            raise

    world.on(Lasting, run)
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine, "job", Lasting("call"))
        await engine.drain()
        assert caught == [StaleReferenceError]
        assert await engine.read(ref, log) == ["end"]
        assert await pending(engine, ref) == []
    assert await database.queued() == []


async def test_attempt_is_told_and_may_be_enough(world: World, database: Database) -> None:
    async def fail(env: Environment, ref: Ref, task: Nosy) -> None:
        raise RuntimeError("again and again")

    world.on(Nosy, fail)
    async with TestEngine(world.registry, database.store) as engine:
        ref = await started(engine, "job", Nosy())
        await engine.run_until_idle()
        assert [run.attempt for run in world.runs] == [1, 2]
        assert ASKED.attempts[0] == 1
        assert ASKED.attempts[-1] == 3
        assert await pending(engine, ref) == []
        assert [letter async for letter in engine.dead_letters()] == []
    assert await database.queued() == []


async def test_commit_asks_without_an_attempt(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store, run_tasks=False) as engine:
        ref = await started(engine, "job", Nosy())
        await engine.update(ref, note("x"))
        assert ASKED.attempts == [1, 0]


async def test_attempt_is_told_after_a_restart_and_at_the_write(
    world: World, database: Database, clock: FakeClock
) -> None:
    fails = True

    async def run(env: Environment, ref: Ref, task: Nosy) -> None:
        if fails:
            raise RuntimeError("not yet")
        ASKED.attempts.clear()
        await env.update(ref, note("done"))

    world.on(Nosy, run)
    options = EngineOptions(shard_count=1)
    async with TestEngine(world.registry, database.store, options, clock=clock) as engine:
        ref = await started(engine, "job", Nosy())
        await engine.drain()
    fails = False
    async with TestEngine(world.registry, database.store, options, clock=clock) as engine:
        await engine.run_until_idle()
        assert ASKED.attempts == [2]
        assert await engine.read(ref, log) == ["done"]
