"""The slow walk over all indexes that removes what expired rows have left there, a few steps at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from persistence.paging import Window
from persistence.stores.redis.layout import Layout
from persistence.stores.redis.nodes import Nodes
from persistence.stores.redis.reading import Reader
from persistence.stores.redis.settings import Address

__all__ = ["Sweeper"]

_STEPS: Final = 50
_KEYS: Final = 500


class Sweeper:
    """Walks over the keyspace of each node in turn, and over each index that it finds there.

    Scans remove what they meet; this is for partitions that nobody scans.
    """

    def __init__(self, nodes: Nodes, reader: Reader, layout: Layout) -> None:
        self._nodes = nodes
        self._reader = reader
        self._layout = layout
        self._addresses: list[Address] = []
        self._cursor = b"0"
        self._windows: list[Window] = []

    async def turn(self) -> None:
        """Some steps of the walk, which begins again when it is through."""
        for _ in range(_STEPS):
            if self._windows:
                left = await self._reader.sweep(self._windows.pop(), _KEYS)
                if left is not None:
                    self._windows.append(left)
            elif not await self._find_indexes():
                return

    async def _find_indexes(self) -> bool:
        """Look for further indexes; whether the walk is not through."""
        if not self._addresses:
            self._addresses = list(self._nodes.masters())
        pattern = self._layout.index_pattern()
        command = (b"SCAN", self._cursor, b"MATCH", pattern, b"COUNT", b"%d" % _KEYS, b"TYPE", b"zset")
        try:
            reply = await self._reader.ask_node(self._addresses[0], command)
        except BaseException:
            self._addresses, self._cursor = [], b"0"
            raise
        assert isinstance(reply, Sequence)  # so SCAN answers
        cursor, names = reply
        assert isinstance(cursor, bytes)
        assert isinstance(names, Sequence)
        for name in names:
            assert isinstance(name, bytes)
            partition = self._layout.partition_of(name)
            if partition is not None:
                self._windows.append(Window(partition, "", "", reverse=False))
        self._cursor = cursor
        if cursor == b"0":
            del self._addresses[0]
        return bool(self._addresses or self._windows)
