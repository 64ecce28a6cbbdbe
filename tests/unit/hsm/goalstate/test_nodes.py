"""Nodes of a tree that a goal-state engine brings to their goals, through the durable engine."""

from __future__ import annotations

import enum

import attrs
import pytest

from hsm import ExecutionKey, Key, MachineType, Node, Ref, Registry, attrs_definition, transitions
from hsm.goalstate import Engine, NodeDriver, node_id, node_ref
from hsm.testing import TestEngine
from tests.support.goals import SECOND, steady

EXECUTION = ExecutionKey("home", "hall/1")
LAMP = Key(2, "left%")


class State(enum.Enum):
    OFF = "off"
    WARMING = "warming"
    ON = "on"
    BROKEN = "broken"


@attrs.define
class Lamp:
    state: State = State.OFF
    goal: State = State.OFF
    fragile: bool = False
    log: list[str] = attrs.field(factory=list)


@attrs.define
class Small(Lamp):
    """A lamp that is part of another."""


lamp = transitions(Lamp)


@lamp.move([State.OFF], State.WARMING)
def press(lamp: Lamp, event: str) -> None:
    lamp.log.append(f"press {event}")
    if lamp.fragile:
        lamp.state, lamp.fragile = State.BROKEN, False


@lamp.move([State.WARMING], State.ON)
def shine(lamp: Lamp, event: str) -> None:
    lamp.log.append(f"shine {event}")


@lamp.move([State.ON, State.WARMING], State.OFF)
def unplug(lamp: Lamp, event: str) -> None:
    lamp.log.append(f"unplug {event}")


@lamp.move([State.BROKEN], State.OFF)
def replace(lamp: Lamp, event: str) -> None:
    lamp.log.append(f"replace {event}")


REGISTRY = Registry()
REGISTRY.register_machine(attrs_definition(MachineType(1, "hall"), Lamp))
REGISTRY.register_machine(attrs_definition(MachineType(2, "lamp"), Small))


def driver() -> NodeDriver[State, Lamp]:
    return NodeDriver(
        Lamp,
        [press, shine, unplug, replace],
        goal=lambda lamp: lamp.goal,
        event=lambda step, _: f"by {step.name}",
    )


def wish(goal: State, *, fragile: bool = False) -> object:
    def change(node: Node) -> None:
        def set_goal(lamp: Lamp) -> None:
            lamp.goal, lamp.fragile = goal, fragile

        node.transition(Lamp, set_goal)

    return change


async def looked_at(engine: TestEngine, ref: Ref) -> Lamp:
    return await engine.read(ref, lambda node: node.data(Lamp))


async def test_node_is_driven_to_its_goal_and_back() -> None:
    async with TestEngine(REGISTRY) as trees, Engine(steady(trees.clock)) as goals:
        ref = await trees.start(EXECUTION, Lamp(goal=State.ON))
        entity = driver().entity(trees, ref)
        goals.enqueue(entity)
        await goals.drain()
        found = await looked_at(trees, ref)
        assert (found.state, found.log) == (State.ON, ["press by press", "shine by shine"])
        await trees.update(Ref(EXECUTION), wish(State.OFF))  # type: ignore[arg-type]  # a function of a node
        goals.enqueue(entity)
        await goals.drain()
        assert (await looked_at(trees, Ref(EXECUTION))).state is State.OFF
        assert goals.failures(entity.id) == 0


async def test_node_that_lands_elsewhere_gets_another_plan() -> None:
    async with TestEngine(REGISTRY) as trees, Engine(steady(trees.clock)) as goals:
        ref = await trees.start(EXECUTION, Lamp(goal=State.ON, fragile=True))
        goals.enqueue(driver().entity(trees, ref))
        await goals.drain()
        found = await looked_at(trees, ref)
        assert found.state is State.ON
        assert [line.split()[0] for line in found.log] == ["press", "replace", "press", "shine"]


async def test_steps_of_others_are_waited_for() -> None:
    waiting = NodeDriver(
        Lamp, [press], goal=lambda lamp: lamp.goal, event=lambda *_: "", awaited=[shine], poll=2 * SECOND
    )
    async with TestEngine(REGISTRY) as trees, Engine(steady(trees.clock)) as goals:
        ref = await trees.start(EXECUTION, Lamp(goal=State.ON))
        entity = waiting.entity(trees, ref)
        goals.enqueue(entity)
        await goals.drain()
        assert (await looked_at(trees, ref)).state is State.WARMING
        await trees.update(Ref(EXECUTION), lambda node: node.apply(shine, "by hand"))
        assert goals.is_scheduled(entity.id)
        trees.clock.advance(2 * SECOND)
        await goals.drain()
        assert not goals.is_scheduled(entity.id)


async def test_node_that_is_gone_is_forgotten() -> None:
    async with TestEngine(REGISTRY) as trees, Engine(steady(trees.clock)) as goals:
        ref = await trees.start(EXECUTION, Lamp())
        goals.enqueue(driver().entity(trees, Ref(ref.execution, (LAMP,))))
        goals.enqueue(driver().entity(trees, Ref(ExecutionKey("home", "nowhere"))))
        await goals.drain()
        assert goals.total == goals.queue_length == 0


@pytest.mark.parametrize(
    "ref", [Ref(EXECUTION), Ref(ExecutionKey("", "", "run"), (LAMP, Key(-3, "a:b"), Key(4, "")))]
)
def test_id_of_a_node_finds_it_again(ref: Ref) -> None:
    assert node_ref(node_id(ref)) == ref
