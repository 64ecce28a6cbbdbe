"""Tables of actions: complete or refused, and drawn."""

from __future__ import annotations

import enum
from datetime import timedelta

import pytest

from hsm.goalstate import Action, ActionTable, InvalidTableError, Run, when


class State(enum.Enum):
    STOPPED = 1
    RUNNING = 2
    BROKEN = 3


class Goal(enum.Enum):
    UP = "up"
    DOWN = "down"


class Thing:
    pass


async def nothing(thing: Thing, run: Run) -> None: ...


START, STOP, REPAIR = (Action("start", nothing), Action("stop", nothing), Action('re"pair', nothing))


def table() -> ActionTable[State, Goal, Thing]:
    return ActionTable(
        State,
        Goal,
        when([State.STOPPED], [Goal.UP], START, leads_to=State.RUNNING),
        when([State.RUNNING], [Goal.DOWN], STOP, leads_to=State.STOPPED),
        when([State.BROKEN], Goal, REPAIR, STOP),
        when([State.RUNNING], [Goal.UP]),
        when([State.STOPPED], [Goal.DOWN]),
        timeout=timedelta(seconds=5),
    )


def test_table_knows_the_actions_of_each_pair() -> None:
    assert table().actions(State.STOPPED, Goal.UP) == (START,)
    assert table().actions(State.BROKEN, Goal.DOWN) == (REPAIR, STOP)
    assert table().actions(State.RUNNING, Goal.UP) == ()
    done: list[int] = []
    actions = table().action_list(State.RUNNING, Goal.DOWN, on_done=lambda: done.append(1))
    assert (list(actions.actions), actions.timeout) == ([STOP], timedelta(seconds=5))
    assert actions.on_done is not None
    actions.on_done()
    assert done == [1]


def test_pairs_without_a_rule_are_named_when_the_table_is_made() -> None:
    with pytest.raises(InvalidTableError) as caught:
        ActionTable(
            State, Goal, when(State, [Goal.UP], START), when([State.STOPPED, State.BROKEN], [Goal.DOWN])
        )
    assert str(caught.value) == "no rule for state RUNNING with goal DOWN"


def test_pairs_with_two_rules_and_unknown_states_are_named() -> None:
    with pytest.raises(InvalidTableError) as caught:
        ActionTable(
            [State.STOPPED],
            [Goal.UP],
            when(State, Goal, START, leads_to=State.RUNNING),
            when([State.STOPPED], [Goal.UP]),
        )
    assert str(caught.value) == (
        "several rules for state STOPPED with goal UP; unknown: BROKEN, DOWN, RUNNING"
    )


def test_states_that_are_no_enum_are_named_by_their_text() -> None:
    small: ActionTable[str, int, Thing] = ActionTable(["a"], [1], when(["a"], [1], START))
    with pytest.raises(InvalidTableError, match="no rule for state b with goal 2"):
        small.actions("b", 2)


def test_table_is_drawn_as_a_table() -> None:
    assert table().markdown() == (
        "| goal \\ state | STOPPED | RUNNING | BROKEN |\n"
        "| --- | --- | --- | --- |\n"
        '| UP | start | - | re"pair, stop |\n'
        '| DOWN | - | stop | re"pair, stop |\n'
    )


def test_table_is_drawn_in_mermaid() -> None:
    assert table().mermaid() == (
        "flowchart LR\n"
        '    subgraph g0 ["goal UP"]\n'
        '        g0s0("STOPPED")\n'
        '        g0s1("RUNNING")\n'
        '        g0s2("BROKEN: re#quot;pair, stop")\n'
        '        g0s0 -->|"start"| g0s1\n'
        "    end\n"
        '    subgraph g1 ["goal DOWN"]\n'
        '        g1s0("STOPPED")\n'
        '        g1s1("RUNNING")\n'
        '        g1s2("BROKEN: re#quot;pair, stop")\n'
        '        g1s1 -->|"stop"| g1s0\n'
        "    end\n"
    )


def test_table_is_drawn_for_graphviz() -> None:
    dot = table().dot()
    assert dot.count("{") == dot.count("}") == 3
    assert 'g0s0 -> g0s1 [label="start"]' in dot
    assert 'g1s2 [label="BROKEN: re\\"pair, stop"]' in dot
