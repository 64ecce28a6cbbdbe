"""The tree: persistent machines under one root, changed in transactions. Pure, synchronous, without I/O."""

from hsm.tree._collection import Collection
from hsm.tree._delta import MergeResult
from hsm.tree._node import Node, machine_data, machine_transition
from hsm.tree._operation import DeleteOperation, Operation, PathAndOutputs, TransitionOperation
from hsm.tree._replica import Replica
from hsm.tree._source import MissingPart

__all__ = [
    "Collection",
    "DeleteOperation",
    "MergeResult",
    "MissingPart",
    "Node",
    "Operation",
    "PathAndOutputs",
    "Replica",
    "TransitionOperation",
    "machine_data",
    "machine_transition",
]
