"""What the wrong client code of goals is about, and right client code of goals. Right by itself."""

from __future__ import annotations

import enum
from datetime import timedelta
from typing import assert_type

import attrs

from hsm.goalstate import (
    Action,
    ActionList,
    ActionTable,
    DurableEngine,
    Engine,
    EntityKind,
    NodeDriver,
    Planner,
    Run,
    Standing,
    Step,
    plan_actions,
    when,
)
from hsm.transition import transitions


class Power(enum.Enum):
    OFF = "off"
    ON = "on"


@attrs.define
class Lamp:
    id: str
    state: Power = Power.OFF
    goal: Power = Power.ON

    def read(self) -> Standing[Power, Power]:
        return Standing(self.state, self.goal)

    def action_list(self, state: Power, goal: Power, /) -> ActionList[Lamp]:
        return LAMPS.action_list(state, goal)


async def turn(lamp: Lamp, run: Run) -> None:
    lamp.state = lamp.goal
    run.again(timedelta(seconds=1))


def block(lamp: object, run: Run) -> None:
    print(lamp, run.now())


switch = Action("switch", turn)
LAMPS = ActionTable(Power, Power, when(Power, Power, switch, Action("block", block)))
assert_type(switch, Action[Lamp])
assert_type(LAMPS, ActionTable[Power, Power, Lamp])
assert_type(LAMPS.actions(Power.ON, Power.OFF), tuple[Action[Lamp], ...])

engine = Engine()
engine.enqueue(Lamp("a"))
assert_type(engine.is_scheduled("a"), bool)


async def load(id_: str) -> Lamp:
    return Lamp(id_)


kind = EntityKind("lamp", load, Power)
plain = EntityKind("lamp", Lamp, Power)
assert_type(kind, EntityKind[Power])


async def use(durable: DurableEngine) -> None:
    await durable.enqueue(kind, "a", goal=Power.ON)
    assert_type(await durable.goal(kind, "a"), Power | None)


lamp = transitions(Lamp)
turn_on = lamp.change([Power.OFF], Power.ON)


@lamp.move([Power.ON], Power.OFF)
def turn_off(lamp: Lamp, who: str) -> None: ...


# mypy finds no common type of transitions on different events, unless it is told to look for one.
planner = Planner[Power]([turn_on, turn_off])
assert_type(planner.plan(Power.OFF, Power.ON), tuple[Step[Power], ...])


async def take(lamp: Lamp, step: Step[Power]) -> Power:
    return step.destination


assert_type(plan_actions(planner.plan(Power.OFF, Power.ON), take), list[Action[Lamp]])
driver = NodeDriver(Lamp, [turn_on], goal=lambda lamp: lamp.goal)
assert_type(driver.planner, Planner[Power])
