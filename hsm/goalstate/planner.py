"""The planner: the shortest way to a goal, over the transitions that a machine has."""

from __future__ import annotations

import heapq
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence, Set as AbstractSet
from datetime import timedelta
from typing import Final, Generic, Protocol, TypeVar

from hsm.goalstate._pictures import dot_quoted, mermaid_quoted, name_of
from hsm.goalstate.entity import Action, Run
from hsm.goalstate.errors import UnreachableGoalError

__all__ = ["Planner", "Step", "plan_actions"]

StateT = TypeVar("StateT", bound=Hashable)
StateT_co = TypeVar("StateT_co", bound=Hashable, covariant=True)
EntityT = TypeVar("EntityT")

_MOST_PLANS: Final = 10_000


class Step(Protocol[StateT_co]):
    """What the planner has to know of a transition. `hsm.Transition` is one."""

    @property
    def name(self) -> str:
        """For people."""
        ...

    @property
    def sources(self) -> AbstractSet[StateT_co]:
        """States that it may be taken from."""
        ...

    @property
    def destination(self) -> StateT_co:
        """The state that it should lead to."""
        ...


class Planner(Generic[StateT]):
    """Finds the cheapest way from a state to a goal: the same for the same steps, whatever is in memory.

    Of ways of one cost the one with fewer steps is taken, then the one whose steps were given first. What was
    found is remembered.
    """

    def __init__(
        self, steps: Iterable[Step[StateT]], *, cost: Callable[[Step[StateT]], float] | None = None
    ) -> None:
        """Make a planner.

        Args:
            steps: the ways from state to state.
            cost: of a step, not below 0; without it the way with the fewest steps is the cheapest.

        Raises:
            ValueError: a step costs less than nothing.
        """
        self._steps = tuple(steps)
        self._costs = [1.0 if cost is None else cost(step) for step in self._steps]
        for step, price in zip(self._steps, self._costs, strict=True):
            if not price >= 0:
                raise ValueError(f"step {step.name!r} costs {price}, which is below 0")
        self._outgoing: dict[StateT, list[int]] = {}
        for number, step in enumerate(self._steps):
            for source in step.sources:
                self._outgoing.setdefault(source, []).append(number)
        self._plans: dict[tuple[StateT, StateT], tuple[Step[StateT], ...]] = {}

    @property
    def states(self) -> frozenset[StateT]:
        """The states that any step knows of."""
        return frozenset(self._outgoing) | {step.destination for step in self._steps}

    def plan(self, state: StateT, goal: StateT) -> tuple[Step[StateT], ...]:
        """The steps from `state` to `goal`, in order; none if it is there.

        Raises:
            UnreachableGoalError: there is no way; says why.
        """
        plan = self._plans.get((state, goal))
        if plan is None:
            found = self._find(state, goal)
            if found is None:
                raise UnreachableGoalError(self.explain(state, goal))
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            plan = self._plans[state, goal] = found
        return plan

    def reachable(self, state: StateT) -> frozenset[StateT]:
        """The states that can be got to, `state` among them."""
        seen = {state}
        left = [state]
        while left:
            for number in self._outgoing.get(left.pop(), ()):
                destination = self._steps[number].destination
                if destination not in seen:
                    seen.add(destination)
                    left.append(destination)
        return frozenset(seen)

    def explain(self, state: StateT, goal: StateT) -> str:
        """Why `goal` cannot be reached from `state`, or by which steps it can."""
        start, end = name_of(state), name_of(goal)
        reachable = self.reachable(state)
        if goal in reachable:
            names = " then ".join(repr(step.name) for step in self.plan(state, goal))
            return f"{end} can be reached from {start}: {names or 'nothing is to be done'}"
        known = self.states
        if goal not in known:
            return f"{end} cannot be reached from {start}: no step leads there, {end} is no state of any step"
        entries = [step for step in self._steps if step.destination == goal]
        if not entries:
            return f"{end} cannot be reached from {start}: steps begin there, but none leads there"
        if state not in known:
            return f"{end} cannot be reached from {start}: {start} is no state of any step"
        ways = ", ".join(f"{step.name!r} from {_names(step.sources)}" for step in entries)
        return (
            f"{end} cannot be reached from {start}: only {ways} lead there,"
            f" and {start} leads only to {_names(reachable)}"
        )

    def mermaid(self) -> str:
        """A Mermaid state diagram of all steps."""
        order = {state: f"s{number}" for number, state in enumerate(self._in_order())}
        lines = [f"    state {mermaid_quoted(name_of(state))} as {name}" for state, name in order.items()]
        lines += [
            f"    {order[source]} --> {order[step.destination]}: {mermaid_quoted(step.name)[1:-1]}"
            for step in self._steps
            for source in sorted(step.sources, key=name_of)
        ]
        return "\n".join(["stateDiagram-v2", *lines]) + "\n"

    def dot(self) -> str:
        """The same for Graphviz."""
        order = {state: f"s{number}" for number, state in enumerate(self._in_order())}
        lines = [f"    {name} [label={dot_quoted(name_of(state))}]" for state, name in order.items()]
        lines += [
            f"    {order[source]} -> {order[step.destination]} [label={dot_quoted(step.name)}]"
            for step in self._steps
            for source in sorted(step.sources, key=name_of)
        ]
        return "\n".join(["digraph {", "    rankdir=LR", *lines, "}"]) + "\n"

    def _in_order(self) -> list[StateT]:
        return sorted(self.states, key=name_of)

    def _find(self, state: StateT, goal: StateT) -> tuple[Step[StateT], ...] | None:
        """Dijkstra's algorithm; ties by the number of steps, then by their places in the list."""
        heap: list[tuple[float, int, tuple[int, ...]]] = [(0.0, 0, ())]
        settled: set[StateT] = set()
        while heap:
            price, length, path = heapq.heappop(heap)
            here = self._steps[path[-1]].destination if path else state
            if here in settled:
                continue
            settled.add(here)
            if here == goal:
                return tuple(self._steps[number] for number in path)
            for number in self._outgoing.get(here, ()):
                if self._steps[number].destination not in settled:
                    heapq.heappush(heap, (price + self._costs[number], length + 1, (*path, number)))
        return None


def plan_actions(
    plan: Sequence[Step[StateT]],
    take: Callable[[EntityT, Step[StateT]], Awaitable[StateT]],
    *,
    timeout: timedelta | None = None,
) -> list[Action[EntityT]]:
    """The steps of a plan as actions, named after them.

    `take` takes one step, and answers with the state that it has led to. If that is not where it should lead,
    the rest of the plan is worth nothing: the entity is evaluated again, with another plan.
    """
    return [_action(step, take, timeout) for step in plan]


def _action(
    step: Step[StateT],
    take: Callable[[EntityT, Step[StateT]], Awaitable[StateT]],
    timeout: timedelta | None,
) -> Action[EntityT]:
    async def execute(entity: EntityT, run: Run) -> None:
        if await take(entity, step) != step.destination:
            run.skip_rest()
            run.again()

    return Action(step.name or f"to {name_of(step.destination)}", execute, timeout)


def _names(states: Iterable[object]) -> str:
    return "{" + ", ".join(sorted(map(name_of, states))) + "}"
