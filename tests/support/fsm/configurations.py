"""Configurations for tests."""

from __future__ import annotations

from hsm.fsm import new_transition
from persistence.proto.statemachine_pb2 import Configuration


def orders(version: str = "v1", name: str = "orders") -> Configuration:
    """From start over accepted and shipped to delivered or returned, the two final states."""
    return configuration(
        [
            ("start", "accepted", "accept"),
            ("accepted", "shipped", "ship"),
            ("shipped", "delivered", "deliver"),
            ("shipped", "returned", "return"),
        ],
        name=name,
        version=version,
    )


def counter(name: str = "counters", states: int = 3) -> Configuration:
    """A ring: `next` goes on, `stay` stays."""
    names = [f"s{number}" for number in range(states)]
    ring = [(state, names[(number + 1) % states], "next") for number, state in enumerate(names)]
    return configuration([*ring, *((state, state, "stay") for state in names)], name=name)


def configuration(
    transitions: list[tuple[str, str, str]], *, name: str = "test", version: str = "v1", start: str = ""
) -> Configuration:
    """A configuration whose states are those of its transitions; it starts where the first one does."""
    states = dict.fromkeys(state for source, target, _ in transitions for state in (source, target))
    return Configuration(
        name=name,
        version=version,
        states=list(states),
        starting_state=start or transitions[0][0],
        transitions=[new_transition(*each) for each in transitions],
    )
