"""The planner: the shortest way, why there is none, and what follows when a step leads elsewhere."""

from __future__ import annotations

import itertools

import attrs
import pytest
from hypothesis import given, strategies as st

from hsm.goalstate import (
    Action,
    ActionList,
    Engine,
    Planner,
    Standing,
    Step,
    UnreachableGoalError,
    plan_actions,
)
from hsm.testing import FakeClock
from hsm.transition import Transition, transitions
from tests.support.goals import SECOND, steady


@attrs.frozen
class Move:
    """A step as a configuration has it."""

    name: str
    sources: frozenset[str]
    destination: str
    price: float = 1.0


def move(sources: str, destination: str, price: float = 1.0) -> Move:
    return Move(f"{sources}{destination}".lower(), frozenset(sources), destination, price)


def names(plan: tuple[Step[str], ...]) -> list[str]:
    return [step.name for step in plan]


STEPS = [move("A", "B"), move("B", "C"), move("C", "D"), move("A", "D", 5.0), move("DE", "F"), move("X", "E")]


def test_shortest_way_is_taken() -> None:
    planner = Planner(STEPS)
    assert names(planner.plan("A", "D")) == ["ad"]
    assert names(planner.plan("A", "F")) == ["ad", "def"]
    assert names(planner.plan("B", "F")) == ["bc", "cd", "def"]
    assert planner.plan("A", "A") == ()
    assert planner.plan("unknown", "unknown") == ()


def test_cheapest_way_is_taken_where_steps_cost() -> None:
    def price(step: Step[str]) -> float:
        assert isinstance(step, Move)
        return step.price

    assert names(Planner(STEPS, cost=price).plan("A", "D")) == ["ab", "bc", "cd"]
    with pytest.raises(ValueError, match="'ab' costs -1"):
        Planner(STEPS, cost=lambda _: -1)


def test_of_equal_ways_the_one_given_first_is_taken() -> None:
    steps = [move("A", "B"), move("A", "C"), move("C", "D"), move("B", "D")]
    assert names(Planner(steps).plan("A", "D")) == ["ab", "bd"]
    assert names(Planner(steps[::-1]).plan("A", "D")) == ["ac", "cd"]


@pytest.mark.parametrize(
    ("state", "goal", "why"),
    [
        (
            "A",
            "E",
            "E cannot be reached from A: only 'xe' from {X} lead there, and A leads only to {A, B, C, D, F}",
        ),
        ("A", "Z", "Z cannot be reached from A: no step leads there, Z is no state of any step"),
        ("A", "X", "X cannot be reached from A: steps begin there, but none leads there"),
        ("Z", "F", "F cannot be reached from Z: Z is no state of any step"),
    ],
)
def test_unreachable_goal_is_explained(state: str, goal: str, why: str) -> None:
    with pytest.raises(UnreachableGoalError) as caught:
        Planner(STEPS).plan(state, goal)
    assert str(caught.value) == why


def test_reachable_goal_is_explained_too() -> None:
    assert Planner(STEPS).explain("A", "F") == "F can be reached from A: 'ad' then 'def'"
    assert Planner(STEPS).explain("A", "A") == "A can be reached from A: nothing is to be done"


@given(
    st.lists(
        st.tuples(st.frozensets(st.integers(0, 6), min_size=1, max_size=3), st.integers(0, 6)), max_size=12
    ),
    st.integers(0, 6),
    st.integers(0, 6),
)
def test_plan_is_a_way_and_none_is_shorter(
    edges: list[tuple[frozenset[int], int]], state: int, goal: int
) -> None:
    steps = [
        Transition[int, "Numbered", None](sources, to, lambda _machine, _event: None) for sources, to in edges
    ]
    distance = {state: 0}
    for length in itertools.count(1):
        new = {to for sources, to in edges if sources & distance.keys()} - distance.keys()
        if not new:
            break
        distance |= dict.fromkeys(new, length)
    planner = Planner(steps)
    assert planner.reachable(state) == distance.keys()
    if goal not in distance:
        with pytest.raises(UnreachableGoalError):
            planner.plan(state, goal)
        return
    plan = planner.plan(state, goal)
    assert len(plan) == distance[goal]
    here = state
    for step in plan:
        assert here in step.sources
        here = step.destination
    assert here == goal


@attrs.define
class Numbered:
    state: int = 0


def test_transitions_of_a_machine_are_steps_and_can_be_drawn() -> None:
    numbered = transitions(Numbered)
    planner = Planner([numbered.change([0, 1], 2), numbered.change([2], 3)])
    assert [step.destination for step in planner.plan(0, 3)] == [2, 3]
    assert planner.mermaid().count("-->") == 3
    assert planner.mermaid().startswith('stateDiagram-v2\n    state "0" as s0\n')
    assert planner.dot().count("->") == 3


@attrs.define
class Walker:
    """Walks over a map on which the ground gives way."""

    planner: Planner[str]
    goal: str
    state: str = "A"
    id: str = "walker"
    slips: dict[str, str] = attrs.field(factory=dict)
    log: list[str] = attrs.field(factory=list)

    def read(self) -> Standing[str, str]:
        return Standing(self.state, self.goal)

    def action_list(self, state: str, goal: str, /) -> ActionList[Walker]:
        return ActionList(plan_actions(self.planner.plan(state, goal), walk))


async def walk(walker: Walker, step: Step[str]) -> str:
    walker.log.append(step.name)
    walker.state = walker.slips.pop(step.name, step.destination)
    return walker.state


async def test_step_that_leads_elsewhere_is_followed_by_another_plan() -> None:
    steps = [move("A", "B"), move("B", "C"), move("C", "D"), move("X", "B")]
    walker = Walker(Planner(steps), "D", slips={"bc": "X"})
    async with Engine(steady(FakeClock())) as engine:
        engine.enqueue(walker)
        await engine.drain()
        assert engine.failures(walker.id) == 0
    assert walker.log == ["ab", "bc", "xb", "bc", "cd"]
    assert walker.state == "D"


async def test_goal_that_cannot_be_reached_gives_the_entity_up_and_says_why() -> None:
    clock = FakeClock()
    walker = Walker(Planner(STEPS), "E")
    async with Engine(steady(clock)) as engine:
        engine.enqueue(walker)
        await clock.skip(100 * SECOND)
        (dead,) = engine.dead()
        assert "E cannot be reached from A: only 'xe'" in dead.error
        walker.goal = "F"
        engine.enqueue(walker)
        await engine.drain()
        assert engine.dead() == []
    assert walker.state == "F"


def test_actions_are_named_after_their_steps() -> None:
    actions: list[Action[Walker]] = plan_actions([move("A", "B"), Move("", frozenset("B"), "C")], walk)
    assert [action.name for action in actions] == ["ab", "to C"]
