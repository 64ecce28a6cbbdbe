"""Arrays of parameters in the wire format, packed at once; psycopg would adapt item by item."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import ClassVar, Final

from psycopg import AsyncConnection
from psycopg.adapt import Dumper
from psycopg.pq import Format
from psycopg.rows import TupleRow

__all__ = ["Bigints", "Blobs", "Texts", "adapt"]

_HEADER: Final = struct.Struct("!iIiii")  # dimensions, has NULLs, type of the items; length, lower bound
_EMPTY: Final = struct.Struct("!iII")
_LENGTH: Final = struct.Struct("!i").pack
_BIGINT: Final = struct.Struct("!iq").pack
_NULL: Final = _LENGTH(-1)
_LENGTHS: Final = tuple(_LENGTH(length) for length in range(4096))
_CACHED: Final = len(_LENGTHS)


class _Array:
    __slots__ = ("packed",)
    item_type: ClassVar[int]

    def __init__(self, items: list[bytes], nulls: bool) -> None:
        header = (
            _HEADER.pack(1, nulls, self.item_type, len(items), 1)
            if items
            else _EMPTY.pack(0, 0, self.item_type)
        )
        self.packed: bytes = header + b"".join(items)


def _sized(item: bytes) -> bytes:
    size = len(item)
    return (_LENGTHS[size] if size < _CACHED else _LENGTH(size)) + item


class Texts(_Array):
    """A `text[]`."""

    __slots__ = ()
    item_type = 25

    def __init__(self, items: Iterable[str | None]) -> None:
        packed = [_NULL if item is None else _sized(item.encode()) for item in items]
        super().__init__(packed, nulls=_NULL in packed)


class Blobs(_Array):
    """A `bytea[]`."""

    __slots__ = ()
    item_type = 17

    def __init__(self, items: Iterable[bytes]) -> None:
        super().__init__([_sized(item) for item in items], nulls=False)


class Bigints(_Array):
    """An `int8[]`."""

    __slots__ = ()
    item_type = 20

    def __init__(self, items: Iterable[int | None]) -> None:
        packed = [_NULL if item is None else _BIGINT(8, item) for item in items]
        super().__init__(packed, nulls=_NULL in packed)


class _ArrayDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: _Array) -> bytes:
        return obj.packed


class _TextsDumper(_ArrayDumper):
    oid = 1009


class _BlobsDumper(_ArrayDumper):
    oid = 1001


class _BigintsDumper(_ArrayDumper):
    oid = 1016


def adapt(connection: AsyncConnection[TupleRow]) -> None:
    """Let a connection take these arrays as parameters."""
    connection.adapters.register_dumper(Texts, _TextsDumper)
    connection.adapters.register_dumper(Blobs, _BlobsDumper)
    connection.adapters.register_dumper(Bigints, _BigintsDumper)
