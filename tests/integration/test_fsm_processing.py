"""Processes send events to the same machines, and die; `tests/crash/fsm_processing.py` does the same for longer."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from hsm.fsm import new_transition
from persistence.proto.statemachine_pb2 import Event, EventOutcome, FiniteStateMachine
from tests.crash.fsm_processing import Scale, check_machine, run


async def test_events_have_one_outcome_each_and_none_is_lost(tmp_path: Path) -> None:
    scale = Scale(processes=2, events=90, machines=12, kills=2)

    findings = await run(f"database sqlite:///{tmp_path / 'machines.db'}", scale)

    assert findings.problems == []
    assert findings.acknowledged == 180
    assert findings.kills == 2
    assert findings.moved > findings.refused > 0


def test_history_that_cannot_be_is_found() -> None:
    def step(event_id: str, source: str, target: str) -> Event:
        return Event(event_id=event_id, transition=new_transition(source, target, "next"))

    def wrong(*history: Event, state: str = "s2", revision: int = 3) -> list[str]:
        machine = FiniteStateMachine(history=history, state=state, revision=revision)
        outcomes = {event.event_id: EventOutcome(id="1", revision=n + 2) for n, event in enumerate(history)}
        return check_machine("1", machine, outcomes, Counter())

    first, second = step("0-1", "s0", "s1"), step("0-2", "s1", "s2")
    assert wrong(first, second) == []
    assert "leaves s1" in wrong(second, first)[0]
    assert "its history ends in s1" in wrong(first)[0]
    assert "are in the order" in wrong(step("0-2", "s0", "s1"), step("0-1", "s1", "s2"))[0]
    assert "at 4" in wrong(first, second, revision=4)[0]
