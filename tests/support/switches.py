"""Durable entities for tests: the lights of a house, and an engine that switches them."""

from __future__ import annotations

import asyncio
import enum
from datetime import timedelta
from typing import Any

import attrs

from hsm.goalstate import (
    Action,
    ActionList,
    DurableEngine,
    DurableOptions,
    EntityKind,
    EntityNotFoundError,
    Run,
    Standing,
)
from hsm.testing import FakeClock
from persistence.goals import goal_partition
from persistence.store import EngineStore

HOUR = timedelta(hours=1)


class Goal(enum.Enum):
    ON = 1
    OFF = 2


@attrs.define(slots=False)
class World:
    """The lights of a house, as they are on the outside, and what was done to them."""

    clock: FakeClock
    log: list[str] = attrs.field(factory=list)
    fail: set[str] = attrs.field(factory=set)
    gone: set[str] = attrs.field(factory=set)
    error: Exception = attrs.field(factory=lambda: OSError("no power"))
    open: asyncio.Event = attrs.field(factory=asyncio.Event)
    begun: asyncio.Event = attrs.field(factory=asyncio.Event)
    timeout: timedelta | None = None
    fences: list[int] = attrs.field(factory=list)
    heedless: bool = False
    wishes: dict[str, timedelta] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        self.open.set()
        self.kind: EntityKind[Goal] = EntityKind("light", self.load, Goal)

    async def load(self, id_: str) -> Switch:
        if id_ in self.gone:
            raise EntityNotFoundError(f"no light {id_}")
        return Switch(id_, self)


@attrs.define
class Switch:
    id: str
    world: World

    async def read(self) -> Standing[str, str]:
        return Standing("", "")

    def action_list(self, state: str, goal: str, /) -> ActionList[Switch]:
        return ActionList([Action("switch", switch)], self.world.timeout)


async def switch(light: Switch, run: Run) -> None:
    world = light.world
    world.log.append(light.id)
    world.fences.append(run.fence)
    world.begun.set()
    while not world.open.is_set():
        try:
            await world.open.wait()
        except asyncio.CancelledError:
            if not world.heedless:
                raise
    if light.id in world.wishes:
        run.again(world.wishes.pop(light.id))
    if light.id in world.fail:
        raise world.error


def engine_of(
    world: World, store: EngineStore, *, run_entities: bool = True, **changes: Any
) -> DurableEngine:
    options = DurableOptions(
        clock=world.clock, jitter=0.0, poll_interval=HOUR, lease_seconds=3 * 3600, shard_count=2
    )
    return DurableEngine(store, [world.kind], attrs.evolve(options, **changes), run_entities=run_entities)


async def skip(engine: DurableEngine, world: World, duration: timedelta) -> None:
    await world.clock.skip(duration, settle=engine.drain)


async def keys(store: EngineStore) -> list[str]:
    found: list[str] = []
    for shard in range(2):
        found += [item.key async for item in store.scan(goal_partition(shard), "", "")]
    return sorted(found)
