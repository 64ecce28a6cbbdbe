"""What the nodes of one tree share: the transaction's log, its undo list and its set of dirty nodes."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from hsm.machine import Key, VersionedTransition
from hsm.registry import Registry
from hsm.tree._data import check_untracked
from hsm.tree._operation import LogEntry
from hsm.tree._proto import highest_ordinal
from persistence.proto.hsm_pb2 import StateMachineNode

if TYPE_CHECKING:
    from hsm.tree._node import Node

__all__ = ["DELETED", "IN_TRANSITION", "LIVE", "Savepoint", "TreeState", "Undo"]

# A function and its arguments. A tuple, because a transition makes one and a bound partial costs three.
Undo: TypeAlias = "tuple[Callable[..., None], *tuple[Any, ...]]"

# The status of a node. Plain numbers, because a transition sets two, and 0 must be the false one.
LIVE: Final = 0
IN_TRANSITION: Final = 1
DELETED: Final = 2


class TreeState:
    """The transaction of one tree.

    Attributes:
        version: what this transaction stamps on the nodes it changes.
        log: operations so far, not compacted.
        undo: how to take them back, kept only while somebody may ask for it (`depth` > 0).
        depth: transitions and savepoints that are open.
        dirty: nodes that differ from the store; the value tells whether the node's own row does.
        removed: paths of deleted nodes, for whoever deletes their rows, with an ordinal that all of the
            deleted have less than, and all that are added later have not.
        next_ordinal: greater than every ordinal of the tree; 0 if that is not known yet.
        unnumbered: where to look for the highest ordinal then.
        sealed: handles may not be used now.
    """

    __slots__ = (
        "debug",
        "depth",
        "dirty",
        "log",
        "next_ordinal",
        "registry",
        "removed",
        "sealed",
        "undo",
        "unnumbered",
        "version",
    )

    def __init__(self, registry: Registry, version: VersionedTransition) -> None:
        self.registry: Registry = registry
        self.debug: bool = registry.debug
        self.version: VersionedTransition = version
        self.log: list[LogEntry] = []
        self.undo: list[Undo] = []
        self.depth: int = 0
        self.dirty: dict[Node, bool] = {}
        self.removed: list[tuple[tuple[Key, ...], int]] = []
        self.next_ordinal: int = 1
        self.unnumbered: StateMachineNode | None = None
        self.sealed: bool = False

    def roll_back(self, undo_mark: int, log_mark: int) -> None:
        """Take back everything after the marks, last first."""
        undo = self.undo
        while len(undo) > undo_mark:
            function, *arguments = undo.pop()
            function(*arguments)
        del self.log[log_mark:]

    def take_ordinal(self) -> int:
        """A number greater than every ordinal of the tree; not given back by a rollback."""
        if not self.next_ordinal and self.unnumbered is not None:
            self.next_ordinal = highest_ordinal(self.unnumbered) + 1
        ordinal = self.next_ordinal
        self.next_ordinal = ordinal + 1
        return ordinal

    def restore_dirty(self, node: Node, was_dirty: bool | None) -> None:
        """Set a node's entry in `dirty` back."""
        if was_dirty is None:
            self.dirty.pop(node, None)
        else:
            self.dirty[node] = was_dirty

    def check(self) -> None:
        """Debug mode: raise if the data of a dirty node was changed outside a transition."""
        if self.debug:
            for node in self.dirty:
                check_untracked(node)

    def clear(self) -> None:
        """Forget the transaction, which has been committed."""
        self.dirty.clear()
        self.log.clear()
        self.removed.clear()
        self.undo.clear()


class Savepoint:
    """Undoes all edits of the tree inside its block if the block raises."""

    __slots__ = ("_log_mark", "_state", "_undo_mark")

    def __init__(self, state: TreeState) -> None:
        self._state = state
        self._undo_mark = 0
        self._log_mark = 0

    def __enter__(self) -> None:
        state = self._state
        self._undo_mark = len(state.undo)
        self._log_mark = len(state.log)
        state.depth += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        state = self._state
        if kind is not None:
            state.roll_back(self._undo_mark, self._log_mark)
        state.depth -= 1
        if not state.depth:
            state.undo.clear()
