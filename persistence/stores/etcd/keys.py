"""Where things stand in etcd: a persisted format.

Everything of a store begins with its prefix. A row is `prefix NUL partition NUL key`, in UTF-8. As no text
of ours holds NUL, no two rows share a place, whatever their partitions and the prefixes of their stores,
and rows of a partition are in code-point order. What holds no NUL is not a row: `prefix meta` is the
store's mark, and `prefix commit/<random>` the marks of commits, which vanish by themselves.
"""

from __future__ import annotations

import secrets
from typing import Final

from persistence.decision import Slot
from persistence.errors import StoreCorruptError

__all__ = ["Keyspace"]

_NUL: Final = b"\0"
_AFTER_NUL: Final = b"\1"


class Keyspace:
    """The keys of the stores with one prefix.

    Attributes:
        prefix: what they all begin with.
        meta: the key of the store's mark.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix: bytes = prefix.encode()
        self.meta: bytes = self.prefix + b"meta"
        self._rows = self.prefix + _NUL

    def row(self, slot: Slot) -> bytes:
        """The key of a row."""
        partition, key = slot
        return b"%b%b\0%b" % (self._rows, partition.encode(), key.encode())

    def partition(self, partition: str) -> bytes:
        """What the keys of all rows of a partition begin with; what follows is the row's own key."""
        return self._rows + partition.encode() + _NUL

    def partition_end(self, partition: str) -> bytes:
        """The first key after all rows of a partition."""
        return self._rows + partition.encode() + _AFTER_NUL

    def text(self, partition: str, stored: bytes) -> str:
        """The row's own key.

        Raises:
            StoreCorruptError: it is no text, so that no store of ours has written it.
        """
        try:
            return stored[len(self._rows) + len(partition.encode()) + 1 :].decode()
        except UnicodeDecodeError as error:
            raise StoreCorruptError(f"etcd holds a key that is not of a store of ours: {stored!r}") from error

    def new_commit(self) -> bytes:
        """A key that nobody else has, for the marks of somebody's commits."""
        return self.prefix + b"commit/" + secrets.token_hex(16).encode()

    def everything(self) -> tuple[bytes, bytes]:
        """The range of all keys that begin with the prefix."""
        kept = self.prefix.rstrip(b"\xff")
        # A range from NUL to NUL is all keys there are.
        return (self.prefix, kept[:-1] + bytes([kept[-1] + 1])) if kept else (_NUL, _NUL)
