"""What the size of a tree costs: one transition, and one leaf of a tree that is not in memory."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from hsm import ExecutionKey, Node, Ref
from hsm.engine import Engine, EngineOptions
from persistence import EngineStore, connect, require
from persistence.proto.hsm_pb2 import StateMachineNode
from tests.benchmarks.deliveries import SLOTS, Delivery, back, new_registry, send
from tests.benchmarks.harness import (
    Line,
    Measure,
    Size,
    Table,
    alternate,
    at_most,
    best_ratio,
    seconds_per_call,
)
from tests.benchmarks.trees import LEAF, new_tree, store_tree

__all__ = ["measure"]

_SIZES: Final = {Size.FULL: (10, 1000, 100_000), Size.QUICK: (10, 1000, 20_000), Size.TINY: (2, 3, 5)}
# Rounds, and pairs of transitions in a round.
_TRANSITIONS: Final = {Size.FULL: (60, 1000), Size.QUICK: (30, 500), Size.TINY: (1, 2)}
_LOADS: Final = {Size.FULL: 5, Size.QUICK: 3, Size.TINY: 1}
_KEY: Final = ExecutionKey("benchmark", "tree")


def measure(size: Size) -> list[Table]:
    """One table of transitions, one of reading a leaf."""
    return [_transitions(size), _one_leaf(size)]


def _transitions(size: Size) -> Table:
    rounds, pairs = _TRANSITIONS[size]
    cases: dict[str, Measure] = {}
    for nodes in _SIZES[size]:
        root = new_tree(nodes)
        cases[f"{nodes:,} nodes"] = partial(_seconds_a_transition, root, pairs)
    figures = alternate(cases, rounds)
    small, *larger = cases
    lines = [Line(small, _microseconds(figures[small]))]
    for name in larger:
        ratio = best_ratio(figures[name], figures[small])
        lines.append(Line(name, _microseconds(figures[name]), ratio, at_most(1.3)))
    return Table("A transition of one leaf, looked up by its path", "against the smallest", lines)


def _seconds_a_transition(root: Node, pairs: int) -> float:
    def loop() -> None:
        for _ in range(pairs):
            root.child(LEAF).apply(send, 1)
            root.child(LEAF).apply(back, 1)
        root.clear_transaction_state()

    return seconds_per_call(loop) / (2 * pairs)


def _one_leaf(size: Size) -> Table:
    nodes = _SIZES[size][-1]
    message = new_tree(nodes).to_proto()
    raw = message.SerializeToString()
    del message
    with tempfile.TemporaryDirectory() as directory, asyncio.Runner() as runner:
        url = f"sqlite:///{Path(directory) / 'tree.db'}"
        ref = runner.run(_store(url, nodes))

        def from_rows(read: Callable[[Node], object]) -> float:
            return runner.run(_seconds_from_rows(url, ref, read))

        cases: dict[str, Measure] = {
            "from bytes, every node": partial(_seconds_from_bytes, raw, _decode_all),
            "from bytes, one leaf": partial(_seconds_from_bytes, raw, _decode_leaf),
            "from rows of SQLite, one leaf": partial(from_rows, _decode_leaf),
            "from rows of SQLite, every node": partial(from_rows, _decode_all),
        }
        figures = alternate(cases, _LOADS[size])
    everything, leaf, leaf_row, every_row = cases
    lines = [
        Line(everything, _milliseconds(figures[everything])),
        Line(
            leaf, _milliseconds(figures[leaf]), best_ratio(figures[leaf], figures[everything]), at_most(0.5)
        ),
        Line(
            leaf_row,
            _milliseconds(figures[leaf_row]),
            best_ratio(figures[leaf_row], figures[everything]),
            at_most(0.1),
        ),
        Line(
            every_row, _milliseconds(figures[every_row]), best_ratio(figures[every_row], figures[everything])
        ),
    ]
    title = f"Reading a tree of {nodes:,} nodes that is not in memory ({len(raw) / 1e6:.1f} MB)"
    return Table(title, "against the first", lines)


def _decode_leaf(root: Node) -> object:
    return root.child(LEAF).data(Delivery)


def _decode_all(root: Node) -> object:
    for node in root.walk():
        node.data(Delivery)
    return None


def _seconds_from_bytes(raw: bytes, read: Callable[[Node], object]) -> float:
    registry = new_registry()
    return seconds_per_call(
        lambda: read(Node.from_proto(registry, SLOTS.id, StateMachineNode.FromString(raw)))
    )


async def _store(url: str, nodes: int) -> Ref:
    async with (
        require(connect(url), EngineStore) as store,
        Engine(new_registry(), store, run_tasks=False) as engine,
    ):
        return await store_tree(engine, _KEY, nodes)


async def _seconds_from_rows(url: str, ref: Ref, read: Callable[[Node], object]) -> float:
    """An engine that has just been opened has nothing in its cache."""
    async with (
        require(connect(url), EngineStore) as store,
        Engine(new_registry(), store, EngineOptions(), run_tasks=False) as engine,
    ):
        start = time.perf_counter()
        await engine.read(ref, read)
        return time.perf_counter() - start


def _microseconds(figures: list[float]) -> str:
    return f"{min(figures) * 1e6:.2f} us"


def _milliseconds(figures: list[float]) -> str:
    return f"{min(figures) * 1e3:.2f} ms"
