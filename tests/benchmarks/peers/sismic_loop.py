"""Peer: `sismic`, an interpreter of statecharts."""

from __future__ import annotations

from collections.abc import Callable

from sismic.interpreter import Interpreter
from sismic.io import import_from_yaml

__all__ = ["plain"]

_CHART = """
statechart:
  name: delivery
  root state:
    name: root
    initial: waiting
    states:
      - name: waiting
        transitions:
          - event: send
            target: sent
      - name: sent
        transitions:
          - event: back
            target: waiting
"""


def plain() -> Callable[[int], None]:
    """Only the state changes."""
    interpreter = Interpreter(import_from_yaml(_CHART))
    interpreter.execute()

    def loop(pairs: int) -> None:
        for _ in range(pairs):
            interpreter.queue("send")
            interpreter.execute_once()
            interpreter.queue("back")
            interpreter.execute_once()

    return loop
