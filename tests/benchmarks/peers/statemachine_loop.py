"""Peer: `python-statemachine`, a class whose attributes are states and events."""

from __future__ import annotations

from collections.abc import Callable

from statemachine import State, StateMachine

__all__ = ["plain"]


class _DeliveryMachine(StateMachine):
    waiting = State(initial=True)
    sent = State()

    send_it = waiting.to(sent)
    back = sent.to(waiting)


def plain() -> Callable[[int], None]:
    """Only the state changes."""
    machine = _DeliveryMachine()

    def loop(pairs: int) -> None:
        for _ in range(pairs):
            machine.send_it()
            machine.back()

    return loop
