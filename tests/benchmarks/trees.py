"""Trees of a given size, in memory and in a store; one and the same leaf stands in all of them."""

from __future__ import annotations

from functools import partial
from typing import Final

from hsm import ExecutionKey, Key, Node, Ref
from hsm.engine import Engine
from tests.benchmarks.deliveries import SLOTS, Delivery, new_registry

__all__ = ["LEAF", "add_leaves", "new_tree", "store_tree"]

LEAF: Final = (Key(SLOTS.id, "leaf-00000"),)
_LEAVES_A_COMMIT: Final = 1000


def new_tree(nodes: int) -> Node:
    """A clean tree: a root, and everything else right below it, which is the worst case of a look-up."""
    root = Node.new_root(new_registry(), SLOTS.id, Delivery())
    add_leaves(root, 0, nodes - 1)
    root.clear_transaction_state()
    return root


def add_leaves(root: Node, start: int, stop: int) -> None:
    for number in range(start, stop):
        root.add_child(Key(SLOTS.id, f"leaf-{number:05d}"), Delivery())


async def store_tree(engine: Engine, key: ExecutionKey, nodes: int) -> Ref:
    """Start an execution with such a tree, in commits of a bounded size; a reference to its root."""
    ref = Ref((await engine.start(key, Delivery())).execution)
    for start in range(0, nodes - 1, _LEAVES_A_COMMIT):
        stop = min(start + _LEAVES_A_COMMIT, nodes - 1)
        await engine.update(ref, partial(add_leaves, start=start, stop=stop))
    return ref
