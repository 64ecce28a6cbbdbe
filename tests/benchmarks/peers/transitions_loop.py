"""Peer: `transitions`, a machine that changes the state of a model."""

from __future__ import annotations

from collections.abc import Callable

from transitions import Machine
from transitions.extensions import HierarchicalMachine

__all__ = ["counting", "hierarchical", "plain"]


class _Model:
    def __init__(self) -> None:
        self.attempts = 0

    def count_up(self) -> None:
        self.attempts += 1

    def count_down(self) -> None:
        self.attempts -= 1


def plain() -> Callable[[int], None]:
    """Only the state changes."""
    model = _Model()
    machine = Machine(model, states=["waiting", "sent"], initial="waiting", auto_transitions=False)
    machine.add_transition("send", "waiting", "sent")
    machine.add_transition("back", "sent", "waiting")
    return _loop(model)


def counting() -> Callable[[int], None]:
    """A callback of the model changes its data on the way."""
    model = _Model()
    machine = Machine(model, states=["waiting", "sent"], initial="waiting", auto_transitions=False)
    machine.add_transition("send", "waiting", "sent", after="count_up")
    machine.add_transition("back", "sent", "waiting", after="count_down")
    return _loop(model)


def hierarchical() -> Callable[[int], None]:
    """Between two states nested in a third; only the state changes."""
    model = _Model()
    states = [{"name": "open", "children": ["waiting", "sent"]}]
    machine = HierarchicalMachine(model, states=states, initial="open_waiting", auto_transitions=False)
    machine.add_transition("send", "open_waiting", "open_sent")
    machine.add_transition("back", "open_sent", "open_waiting")
    return _loop(model)


def _loop(model: _Model) -> Callable[[int], None]:
    # The machine has grafted its triggers onto the model; no type checker can know them.
    send: Callable[[], bool] = getattr(model, "send")  # noqa: B009
    back: Callable[[], bool] = getattr(model, "back")  # noqa: B009

    def loop(pairs: int) -> None:
        for _ in range(pairs):
            send()
            back()

    return loop
