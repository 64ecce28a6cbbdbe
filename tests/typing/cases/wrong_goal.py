"""Tables, actions and goals of another kind of entity."""

from __future__ import annotations

import enum
from datetime import datetime

from right_goal import LAMPS, Lamp, Power, switch

from hsm.goalstate import Action, ActionList, ActionTable, DurableEngine, Engine, EntityKind, Run, when


class Colour(enum.Enum):
    RED = "red"


class Door:
    async def lock(self, run: Run) -> None: ...


lock = Action("lock", Door.lock)

# mypy-error: "Colour"; expected "Power"
# pyright-error: Colour.RED
LAMPS.actions(Colour.RED, Power.ON)

# mypy-error: "Colour"; expected "Power"
# pyright-error: Colour.RED
LAMPS.actions(Power.ON, Colour.RED)

# mypy-error: incompatible type
# pyright-error: Door
TABLE: ActionTable[Power, Power, Lamp] = ActionTable(Power, Power, when(Power, Power, lock))

# mypy-error: incompatible type
# pyright-error: Door
LIST: ActionList[Lamp] = ActionList([switch, lock])


def without_run(lamp: Lamp) -> None: ...


# mypy-error: incompatible type
# pyright-error: without_run|cannot be assigned
Action("switch", without_run)


class NoEntity:
    id = "nothing"


# mypy-error: incompatible type "NoEntity"
# pyright-error: "NoEntity"
Engine().enqueue(NoEntity())


async def enqueue(engine: DurableEngine, kind: EntityKind[Power]) -> None:
    # mypy-error: Cannot infer value of type parameter "GoalT"
    # pyright-error: Colour
    await engine.enqueue(kind, "a", goal=Colour.RED)
    # mypy-error: incompatible type "int"
    # pyright-error: "Literal\[5\]|int"
    Engine().enqueue(Lamp("a"), 5)
    # mypy-error: Missing positional argument
    # pyright-error: Argument missing
    await engine.goal(kind)
    await engine.enqueue(kind, "a", datetime.now().astimezone(), goal=Power.ON)
