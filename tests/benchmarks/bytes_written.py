"""What one transition hands to the store, counted byte by byte, in a small tree and in a large one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Final

from hsm import ExecutionKey, Node, Ref
from hsm.engine import Engine, EngineOptions
from persistence import Operation, SetRequest
from persistence.stores.memory import MemoryStore
from tests.benchmarks.deliveries import new_registry, schedule, send
from tests.benchmarks.harness import Line, Size, Table, at_most
from tests.benchmarks.trees import LEAF, store_tree

__all__ = ["measure"]

_SIZES: Final = {Size.FULL: (10, 10_000), Size.QUICK: (10, 10_000), Size.TINY: (10, 1000)}
_CASES: Final[dict[str, Callable[[Node], None]]] = {
    "a transition of a leaf": lambda leaf: leaf.apply(send, 1),
    "a transition of a leaf that asks for a task": lambda leaf: leaf.apply(schedule, "example.org"),
}


class _CountingStore(MemoryStore):
    """Counts the bytes of the keys and values in its transactions."""

    def __init__(self) -> None:
        super().__init__("")
        self.transactions = 0
        self.bytes = 0

    async def multi(self, operations: Sequence[Operation]) -> str:
        self.transactions += 1
        for operation in operations:
            self.bytes += len(operation.key.encode())
            if isinstance(operation, SetRequest):
                self.bytes += len(operation.value)
        return await super().multi(operations)


def measure(size: Size) -> list[Table]:
    """A table with the bytes of a commit."""
    small, large = _SIZES[size]
    counts = {nodes: asyncio.run(_count(nodes)) for nodes in (small, large)}
    lines: list[Line] = []
    for name in _CASES:
        few, many = counts[small][name], counts[large][name]
        lines.extend(
            (
                Line(f"{name}, {small:,} nodes", f"{few} bytes"),
                Line(f"{name}, {large:,} nodes", f"{many} bytes", many / few, at_most(1.2)),
            )
        )
    return [
        Table("Bytes of the keys and values that one commit hands to the store", "against the smaller", lines)
    ]


async def _count(nodes: int) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name, change in _CASES.items():
        store = _CountingStore()
        options = EngineOptions(random=random.Random(1))
        async with store, Engine(new_registry(), store, options, run_tasks=False) as engine:
            root = await store_tree(engine, ExecutionKey("benchmark", "tree"), nodes)
            store.bytes = store.transactions = 0
            await engine.update(Ref(root.execution, LEAF), change)
            assert store.transactions == 1
            counts[name] = store.bytes
    return counts
