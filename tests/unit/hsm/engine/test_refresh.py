"""Refresh: the machines name their tasks anew, and exactly those are pending afterwards."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

import attrs
import pytest

from hsm import ExecutionClosedError, MachineType, Node, Ref, Task, TerminalError, attrs_definition
from hsm.testing import FaultyStore, TestEngine
from tests.support.databases import Database
from tests.support.jobs import (
    Job,
    Lasting,
    Soon,
    World,
    add_child,
    ask,
    failing,
    job,
    log,
    note,
    pending,
    small,
    step,
)

SECOND = timedelta(seconds=1)


@attrs.define
class Worker(Job):
    """Waits for two calls until its log holds something."""

    def regenerate_tasks(self, node: Node) -> Iterable[Task]:
        return [] if self.log else [Lasting("one"), Lasting("two")]


def workers() -> World:
    world = World()
    world.registry.register_machine(attrs_definition(MachineType(3, "worker"), Worker))
    return world


async def test_machines_name_their_tasks_anew(database: Database) -> None:
    world = workers()
    async with TestEngine(world.registry, database.store, run_tasks=False) as engine:
        ref = await engine.start(job(), Worker(), on_start=ask(Soon("by mistake")))
        before = await engine.read(ref, lambda node: (node.transition_count, node.last_update_version))
        await engine.refresh(job())

        assert await pending(engine, ref) == ["lasting", "lasting"]
        after = await engine.read(ref, lambda node: (node.transition_count, node.last_update_version))
        assert after == before
        await database.check()
    async with TestEngine(world.registry, database.store) as engine:
        await engine.drain()
        assert sorted(world.names()) == ["one", "two"]
        assert await pending(engine, ref) == []


async def test_attempts_and_dead_letters_of_the_old_tasks_are_forgotten(database: Database) -> None:
    world = workers()
    world.on(Soon, failing(TerminalError("dead")))
    world.on(Lasting, failing(OSError("fails"), None))
    async with TestEngine(world.registry, database.store) as engine:
        await engine.start(job(), Worker(), on_start=ask(Soon("dies"), Lasting("fails")))
        await engine.drain()
        await engine.refresh(job())
        assert [letter async for letter in engine.dead_letters()] == []
        await engine.skip(10 * SECOND)

        assert [(run.name, run.attempt) for run in world.runs if run.name in {"one", "two"}] == [
            ("one", 1),
            ("two", 1),
        ]
        assert await database.queued() == []
        await database.check()


async def test_machines_that_name_none_have_none_and_those_that_cannot_keep_theirs(
    database: Database,
) -> None:
    world = workers()
    async with TestEngine(world.registry, database.store, small(loaded_nodes=1), run_tasks=False) as engine:
        ref = await engine.start(job(), Worker(), on_start=note("busy", Soon("goes")))
        for id_ in ("a", "b"):
            await engine.update(ref, add_child(id_))
            await engine.update(Ref(job(), (step(id_),)), ask(Soon("stays")))
        await engine.refresh(job())
        tree = await engine.describe(job())
        assert [len(node.tasks) for node in tree.nodes] == [0, 1, 1]
        await database.check()


async def test_paused_execution_can_be_refreshed(database: Database) -> None:
    world = workers()
    async with TestEngine(world.registry, database.store) as engine:
        ref = await engine.start(job(), Worker())
        await engine.pause(job())
        await engine.update(ref, ask(Lasting("old")))
        await engine.drain()
        await engine.refresh(job())
        await engine.drain()
        assert world.names() == []
        await engine.resume(job())
        await engine.drain()
        assert sorted(world.names()) == ["one", "two"]
        assert await database.queued() == []


async def test_terminated_execution_is_not_refreshed(database: Database) -> None:
    world = workers()
    async with TestEngine(world.registry, database.store) as engine:
        await engine.start(job(), Worker())
        await engine.terminate(job())
        with pytest.raises(ExecutionClosedError):
            await engine.refresh(job())


@pytest.mark.parametrize("carried_out", [False, True])
async def test_refresh_that_is_cut_off_has_happened_or_not(database: Database, carried_out: bool) -> None:
    world = workers()
    store = FaultyStore(database.store)
    async with TestEngine(world.registry, store, run_tasks=False) as engine:
        ref = await engine.start(job(), Worker(), on_start=ask(Soon("old")))
        store.cut_off_at(store.writes + 1, carried_out=carried_out)
        with pytest.raises(Exception, match="cut off"):
            await engine.refresh(job())
        store.reconnect()
        assert await pending(engine, ref) == (["lasting", "lasting"] if carried_out else ["soon"])
        await engine.update(ref, note("goes on"))
        assert await engine.read(ref, log) == ["goes on"]
        await database.check()
