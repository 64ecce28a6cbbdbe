"""The queues of the engine, used by a program that gives executors an environment of its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from typing import TypeVar

import pytest

from hsm import AccessType, Environment, Node, Ref
from hsm.engine import Engine, environment_as
from hsm.testing import TestEngine
from tests.support.databases import Database
from tests.support.jobs import Call, Job, Ring, World, log, note, small, started, write

ResultT = TypeVar("ResultT")


class Workflows:
    """Counts what goes through it, and adds a service."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.updates = 0
        self.emitted: list[str] = []

    def now(self) -> datetime:
        return self.engine.now()

    def access(
        self, ref: Ref, access: AccessType, *, keep_task: bool = False
    ) -> AbstractAsyncContextManager[Node]:
        return self.engine.access(ref, access, keep_task=keep_task)

    async def read(self, ref: Ref, fn: Callable[[Node], ResultT]) -> ResultT:
        return await self.engine.read(ref, fn)

    async def update(self, ref: Ref, fn: Callable[[Node], ResultT], *, keep_task: bool = False) -> ResultT:
        self.updates += 1
        return await self.engine.update(ref, fn, keep_task=keep_task)

    def emit(self, event: str) -> None:
        self.emitted.append(event)


async def test_executors_of_both_kinds_get_the_environment_of_the_program(
    world: World, database: Database
) -> None:
    made: list[Workflows] = []

    def environment(engine: Engine) -> Workflows:
        made.append(Workflows(engine))
        return made[-1]

    async def call(env: Environment, ref: Ref, task: Call) -> None:
        environment_as(env, Workflows).emit(task.name)
        await env.update(ref, note("called"))

    def ring(env: Environment, node: Node, task: Ring) -> None:
        environment_as(env, Workflows).emit(task.name)
        node.transition(Job, write("rung"))

    world.on(Call, call)
    world.ring = ring
    async with TestEngine(world.registry, database.store, small(), environment=environment) as engine:
        due = engine.now() + timedelta(hours=1)
        ref = await started(engine, "job", Call("call"), Ring("ring", due))
        await engine.skip(timedelta(hours=2))
        assert await engine.read(ref, log) == ["called", "rung"]

    (workflows,) = made
    assert workflows.engine is engine
    assert workflows.emitted == ["call", "ring"]
    assert workflows.updates == 2


async def test_executor_of_another_program_is_told_what_it_got(world: World, database: Database) -> None:
    async with TestEngine(world.registry, database.store, small()) as engine:
        with pytest.raises(TypeError, match="a TestEngine, no Workflows"):
            environment_as(engine, Workflows)
