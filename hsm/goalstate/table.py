"""Tables of actions: what is done in which state with which goal, complete by construction."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from datetime import timedelta
from typing import Final, Generic, TypeVar

import attrs

from hsm.goalstate._pictures import dot_quoted, mermaid_quoted, name_of
from hsm.goalstate.entity import Action, ActionList
from hsm.goalstate.errors import InvalidTableError

__all__ = ["ActionTable", "Rule", "when"]

StateT = TypeVar("StateT", bound=Hashable)
GoalT = TypeVar("GoalT", bound=Hashable)
EntityT = TypeVar("EntityT")

_NOTHING: Final = "-"


@attrs.frozen
class Rule(Generic[StateT, GoalT, EntityT]):
    """What to do in some states with some goals. `when` makes one.

    Attributes:
        states: in any of them.
        goals: with any of them.
        actions: in order; none is to do nothing.
        leads_to: the state that the actions lead to, for the picture alone; None is not said.
    """

    states: frozenset[StateT]
    goals: frozenset[GoalT]
    actions: tuple[Action[EntityT], ...]
    leads_to: StateT | None = None


def when(
    states: Iterable[StateT],
    goals: Iterable[GoalT],
    *actions: Action[EntityT],
    leads_to: StateT | None = None,
) -> Rule[StateT, GoalT, EntityT]:
    """A rule: in each of these states, with each of these goals, do this."""
    return Rule(frozenset(states), frozenset(goals), actions, leads_to)


class ActionTable(Generic[StateT, GoalT, EntityT]):
    """The actions for each pair of state and goal.

    ```
    TABLE = ActionTable(
        State,
        Goal,
        when([State.STOPPED], [Goal.UP], start, leads_to=State.RUNNING),
        when([State.RUNNING], [Goal.DOWN], stop, leads_to=State.STOPPED),
        when([State.RUNNING], [Goal.UP]),
        when([State.STOPPED], [Goal.DOWN]),
    )
    ```

    Made when the module is imported, so that a pair that was forgotten is found before anything runs.

    Attributes:
        states: all of them, in order.
        goals: all of them, in order.
    """

    def __init__(
        self,
        states: Iterable[StateT],
        goals: Iterable[GoalT],
        *rules: Rule[StateT, GoalT, EntityT],
        timeout: timedelta | None = None,
    ) -> None:
        """Make a table.

        Args:
            states: all that there are: usually an enum.
            goals: likewise.
            rules: exactly one for each pair.
            timeout: of each list.

        Raises:
            InvalidTableError: pairs have no rule, or several, or there is no such state or goal.
        """
        self.states: tuple[StateT, ...] = tuple(states)
        self.goals: tuple[GoalT, ...] = tuple(goals)
        self._timeout = timeout
        self._rules: Mapping[tuple[StateT, GoalT], Rule[StateT, GoalT, EntityT]] = self._sorted(rules)

    def _sorted(
        self, rules: Iterable[Rule[StateT, GoalT, EntityT]]
    ) -> dict[tuple[StateT, GoalT], Rule[StateT, GoalT, EntityT]]:
        found: dict[tuple[StateT, GoalT], Rule[StateT, GoalT, EntityT]] = {}
        twice: list[tuple[StateT, GoalT]] = []
        strange: set[str] = set()
        for rule in rules:
            led: set[StateT] = set() if rule.leads_to is None else {rule.leads_to}
            strange |= {name_of(state) for state in (rule.states | led) - set(self.states)}
            strange |= {name_of(goal) for goal in rule.goals - set(self.goals)}
            for pair in ((state, goal) for goal in rule.goals for state in rule.states):
                if pair in found:
                    twice.append(pair)
                found[pair] = rule
        missing = [
            (state, goal) for goal in self.goals for state in self.states if (state, goal) not in found
        ]
        faults = [
            _fault("no rule for", missing),
            _fault("several rules for", twice),
            f"unknown: {', '.join(sorted(strange))}" if strange else "",
        ]
        if any(faults):
            raise InvalidTableError("; ".join(filter(None, faults)))
        return found

    def actions(self, state: StateT, goal: GoalT) -> tuple[Action[EntityT], ...]:
        """What to do in a state with a goal.

        Raises:
            InvalidTableError: there is no such state or goal.
        """
        return self._rule(state, goal).actions

    def action_list(
        self, state: StateT, goal: GoalT, *, on_done: Callable[[], None] | None = None
    ) -> ActionList[EntityT]:
        """The same as an entity's `action_list` has to answer.

        Raises:
            InvalidTableError: there is no such state or goal.
        """
        return ActionList(self._rule(state, goal).actions, self._timeout, on_done)

    def _rule(self, state: StateT, goal: GoalT) -> Rule[StateT, GoalT, EntityT]:
        rule = self._rules.get((state, goal))
        if rule is None:
            raise InvalidTableError(_fault("no rule for", [(state, goal)]))
        return rule

    # Pictures

    def markdown(self) -> str:
        """The table as one: a row for each goal, a column for each state."""
        rows = [
            ["goal \\ state", *map(name_of, self.states)],
            ["---"] * (len(self.states) + 1),
            *([name_of(goal), *(self._names(state, goal) for state in self.states)] for goal in self.goals),
        ]
        return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"

    def mermaid(self) -> str:
        """A Mermaid flowchart: for each goal, which actions lead from which state to which."""
        lines = ["flowchart LR"]
        for number, goal in enumerate(self.goals):
            lines.append(f"    subgraph g{number} [{mermaid_quoted('goal ' + name_of(goal))}]")
            for index, state in enumerate(self.states):
                lines.append(f"        g{number}s{index}({mermaid_quoted(self._label(state, goal))})")
            for index, to in self._arrows(goal):
                text = mermaid_quoted(self._names(self.states[index], goal))
                lines.append(f"        g{number}s{index} -->|{text}| g{number}s{to}")
            lines.append("    end")
        return "\n".join(lines) + "\n"

    def dot(self) -> str:
        """The same for Graphviz."""
        lines = ["digraph {", "    rankdir=LR", "    node [shape=box, style=rounded]"]
        for number, goal in enumerate(self.goals):
            lines.append(f"    subgraph cluster_{number} {{")
            lines.append(f"        label={dot_quoted('goal ' + name_of(goal))}")
            for index, state in enumerate(self.states):
                lines.append(f"        g{number}s{index} [label={dot_quoted(self._label(state, goal))}]")
            for index, to in self._arrows(goal):
                text = dot_quoted(self._names(self.states[index], goal))
                lines.append(f"        g{number}s{index} -> g{number}s{to} [label={text}]")
            lines.append("    }")
        return "\n".join([*lines, "}"]) + "\n"

    def _names(self, state: StateT, goal: GoalT) -> str:
        return ", ".join(action.name for action in self.actions(state, goal)) or _NOTHING

    def _label(self, state: StateT, goal: GoalT) -> str:
        """A state in the picture; with its actions, if there is no arrow to write them on."""
        rule = self._rule(state, goal)
        if rule.leads_to is not None or not rule.actions:
            return name_of(state)
        return f"{name_of(state)}: {self._names(state, goal)}"

    def _arrows(self, goal: GoalT) -> Iterable[tuple[int, int]]:
        for index, state in enumerate(self.states):
            to = self._rule(state, goal).leads_to
            if to is not None:
                yield index, self.states.index(to)


def _fault(text: str, pairs: Iterable[tuple[object, object]]) -> str:
    names = [f"state {name_of(state)} with goal {name_of(goal)}" for state, goal in pairs]
    return f"{text} {', '.join(names)}" if names else ""
