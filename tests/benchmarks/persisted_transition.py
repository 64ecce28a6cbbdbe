"""One transition that changes data, serializes it and logs it, against peers that only change a state."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from hsm import MachineType, Node, Transition, attrs_definition
from tests.benchmarks.deliveries import (
    ATTRS,
    MESSAGE,
    SLOTS,
    URL,
    AttrsDelivery,
    Delivery,
    DeliveryMessage,
    attrs_back,
    attrs_send,
    back,
    message_back,
    message_send,
    new_registry,
    send,
)
from tests.benchmarks.harness import (
    Line,
    Measure,
    Size,
    Table,
    alternate,
    at_least,
    best_ratio,
    load_peer,
    seconds_per_call,
)

__all__ = ["measure"]

# Rounds, and pairs of transitions in a round.
_EFFORT: Final = {Size.FULL: (40, 1000), Size.QUICK: (15, 500), Size.TINY: (1, 2)}
_PAIRS_A_COMMIT: Final = 500
_PEERS: Final = (
    ("transitions, plain machine", "transitions_loop", "plain", "transitions"),
    ("transitions, plain machine with a callback", "transitions_loop", "counting", "transitions"),
    ("transitions, hierarchical machine", "transitions_loop", "hierarchical", "transitions"),
    ("sismic", "sismic_loop", "plain", "sismic"),
    ("python-statemachine", "statemachine_loop", "plain", "statemachine"),
)
_TARGETS: Final = {"transitions, plain machine": at_least(4), "python-statemachine": at_least(40)}
_OURS: Final = ("data is a protobuf message", "data is a class with slots, stored through a fresh message")
_ATTRS_CLASS: Final = "data is an attrs class, stored as JSON"


def measure(size: Size) -> list[Table]:
    """One table for each way to keep the data."""
    rounds, pairs = _EFFORT[size]
    notes: list[str] = []
    ours: dict[str, Measure] = {
        _OURS[0]: _timed(_loop(MESSAGE, DeliveryMessage(url=URL), message_send, message_back), pairs),
        _OURS[1]: _timed(_loop(SLOTS, Delivery(), send, back), pairs),
    }
    try:
        ours[_ATTRS_CLASS] = _timed(_loop(ATTRS, AttrsDelivery(), attrs_send, attrs_back), pairs)
    except ImportError:
        notes.append("cattrs is not installed: attrs classes left out (it is in the extra `attrs-codec`)")
    peers: dict[str, Measure] = {}
    for name, module, loop, package in _PEERS:
        peer = load_peer(module, package, notes)
        if peer is not None:
            # A peer is up to a hundred times as slow: fewer turns make rounds of like length.
            peers[name] = _timed(getattr(peer, loop)(), max(pairs // 10, 1))
    figures = alternate({**ours, **peers}, rounds)
    return [_table(name, figures, list(peers), notes) for name in ours]


def _loop(
    machine_type: MachineType, data: object, there: Transition[Any, Any, int], here: Transition[Any, Any, int]
) -> Callable[[int], None]:
    registry = new_registry()
    if machine_type is ATTRS:
        registry.register_machine(attrs_definition(ATTRS, AttrsDelivery))
    root = Node.new_root(registry, machine_type.id, data)

    def loop(pairs: int) -> None:
        for number in range(pairs):
            root.apply(there, 1)
            root.apply(here, 1)
            if number % _PAIRS_A_COMMIT == 0:
                root.clear_transaction_state()

    return loop


def _timed(loop: Callable[[int], None], pairs: int) -> Measure:
    return lambda: seconds_per_call(partial(loop, pairs)) / (2 * pairs)


def _table(name: str, figures: dict[str, list[float]], peers: list[str], notes: list[str]) -> Table:
    own = figures[name]
    lines = [Line("hsm", _microseconds(own))]
    for peer in peers:
        target = None if name == _ATTRS_CLASS else _TARGETS.get(peer)
        lines.append(Line(peer, _microseconds(figures[peer]), best_ratio(figures[peer], own), target))
    return Table(f"A persisted transition; {name}", "hsm is faster by", lines, notes)


def _microseconds(figures: list[float]) -> str:
    return f"{min(figures) * 1e6:.2f} us"
