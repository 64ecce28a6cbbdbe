"""The rows of one tree: as many as were read, and what is known to be absent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from google.protobuf.message import DecodeError

from hsm.errors import SerializationError
from hsm.machine import Key
from hsm.tree import MissingPart
from hsm.tree._source import ChildSource
from persistence.executions import AFTER_SLASH, segment, unescape
from persistence.proto.hsm_pb2 import StateMachineNode

__all__ = ["RowTable", "row_path", "row_segments"]


def row_segments(path: Iterable[Key]) -> str:
    """The part of a row's key that follows the prefix of its tree."""
    return "/".join([segment(key.type, key.id) for key in path])


def row_path(segments: str) -> tuple[Key, ...]:
    """The path that `row_segments` was given."""
    if not segments:
        return ()
    parts = (part.partition(":") for part in segments.split("/"))
    return tuple(Key(int(type_id), unescape(id_)) for type_id, _, id_ in parts)


class RowTable:
    """The rows below the root, by the part of their key that follows the tree's prefix.

    Attributes:
        complete: every row of the tree has been read.
    """

    __slots__ = ("_absent", "_children", "_prefix", "_rows", "_subtrees", "_until", "complete")

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._rows: dict[str, bytes] = {}
        self._absent: set[str] = set()
        self._subtrees: set[str] = set()
        self._until = ""
        self._children: dict[str, list[Key]] | None = None
        self.complete = False

    @property
    def values(self) -> Iterable[bytes]:
        """The rows that were read, dead ones too."""
        return self._rows.values()

    def add(self, segments: str, value: bytes | None) -> None:
        """Note what a read of one row has found."""
        if value is None:
            self._absent.add(segments)
        else:
            self._rows[segments] = value

    def add_first(self, rows: dict[str, bytes], *, complete: bool) -> None:
        """Note the first rows of the tree in the order of their keys."""
        self._rows.update(rows)
        self._until = next(reversed(rows), "")
        self.complete = complete

    def add_subtree(self, segments: str, rows: dict[str, bytes]) -> None:
        """Note all rows below a node."""
        self._rows.update(rows)
        self._children = None
        if segments:
            self._subtrees.add(segments + "/")
        else:
            self.complete = True

    def source(self, segments: str, ordinal: int) -> ChildSource:
        """The children of a node."""
        return _RowSource(self, segments, ordinal)

    def _message(self, segments: str) -> StateMachineNode | None:
        value = self._rows.get(segments)
        if value is None:
            return None
        try:
            return StateMachineNode.FromString(value)
        except DecodeError as error:
            raise SerializationError(f"the row {self._prefix + segments!r} is not a machine") from error

    def _knows(self, segments: str) -> bool:
        return (
            self.complete
            or segments <= self._until
            or segments in self._absent
            or any(segments.startswith(subtree) for subtree in self._subtrees)
        )

    def _knows_below(self, segments: str) -> bool:
        return (
            self.complete
            or (segments != "" and segments + AFTER_SLASH <= self._until)
            or any((segments + "/").startswith(subtree) for subtree in self._subtrees)
        )

    def child(self, segments: str, ordinal: int) -> tuple[StateMachineNode, ChildSource] | None:
        """A row that is a living child of a node with this ordinal."""
        message = self._message(segments)
        if message is None:
            if not self._knows(segments):
                raise MissingPart(row_path(segments), subtree=False)
            return None
        # A row older than its parent belongs to a deleted machine and waits to be swept.
        if message.ordinal < ordinal:
            return None
        return message, _RowSource(self, segments, message.ordinal)

    def child_keys(self, segments: str) -> list[Key]:
        """The keys of all rows right below a node, dead ones too."""
        if not self._knows_below(segments):
            raise MissingPart(row_path(segments), subtree=True)
        if self._children is None:
            self._children = {}
            for row in self._rows:
                if row:
                    parent, _, last = row.rpartition("/")
                    type_id, _, id_ = last.partition(":")
                    self._children.setdefault(parent, []).append(Key(int(type_id), unescape(id_)))
        return self._children.get(segments, [])


class _RowSource:
    """The children of one node, in a table."""

    __slots__ = ("_ordinal", "_segments", "_table")

    def __init__(self, table: RowTable, segments: str, ordinal: int) -> None:
        self._table = table
        self._segments = segments
        self._ordinal = ordinal

    def child(self, key: Key) -> tuple[StateMachineNode, ChildSource | None] | None:
        last = segment(key.type, key.id)
        segments = f"{self._segments}/{last}" if self._segments else last
        return self._table.child(segments, self._ordinal)

    def child_keys(self) -> Iterator[Key]:
        for key in self._table.child_keys(self._segments):
            if self.child(key) is not None:
                yield key
