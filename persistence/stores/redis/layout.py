"""How rows lie in the server's keyspace. This is a persisted format: it may be added to, not changed.

`P` is the prefix, `T` the partition's tag, which also is the hash tag that keeps a partition on one node:

* `P{T}r:<key>`  string: one row.
* `P{T}i`        sorted set, all scores 0: the index, a member for each row's key, in the order of bytes.
                 A row that expires leaves its member behind; whoever meets it removes it.
* `P{T}c<lane>`  string: the last call of a lane that wrote, and what became of it; lives ten minutes.
* `P{T}w<db>`    channel on which changed keys are told, joined by NUL.
* `Pmeta`        hash: our mark, with `application`, `version` and `oldest`.

The tag is the partition with `%` as `%25` and `}` as `%7D`; that of the partition "" is `%`.

A row is 16 hexadecimal digits of etag, one character that says what follows, and the value:

* `0`  nothing;
* `1`  8 hexadecimal digits of length, and a content type of so many bytes;
* `2`  15 decimal digits, the moment when it expires in milliseconds since 1970 by the server's clock;
* `3`  the moment, then the content type.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Final

from redis.crc import key_slot

from persistence.paging import expiry_metadata
from persistence.store import GetResponse

__all__ = ["ETAG_BYTES", "Layout", "MalformedRowError", "read_row", "row_head", "row_tail"]

ETAG_BYTES: Final = 16
_FORM_END: Final = ETAG_BYTES + 1
_LENGTH_DIGITS: Final = 8
_MOMENT_DIGITS: Final = 15


class MalformedRowError(ValueError):
    """A string at the place of a row is none."""


class Layout:
    """The names of keys under a prefix."""

    def __init__(self, prefix: str, database: int) -> None:
        self._prefix = prefix
        self._database = database
        # Names are asked for with every request, and there are few partitions at a time.
        self.base: Callable[[str], bytes] = lru_cache(maxsize=4096)(self._base)
        self.hash_slot: Callable[[str], int] = lru_cache(maxsize=4096)(self._hash_slot)

    def _base(self, partition: str) -> bytes:
        """What all keys of a partition begin with."""
        tag = partition.replace("%", "%25").replace("}", "%7D") or "%"
        return f"{self._prefix}{{{tag}}}".encode()

    def _hash_slot(self, partition: str) -> int:
        return int(key_slot(self.base(partition)))

    @staticmethod
    def hash_slot_of(name: bytes) -> int:
        """The hash slot of a key that is no partition's."""
        return int(key_slot(name))

    def row_prefix(self, partition: str) -> bytes:
        """What the rows of a partition begin with."""
        return self.base(partition) + b"r:"

    def row(self, partition: str, key: str) -> bytes:
        """The key of a row."""
        return b"%br:%b" % (self.base(partition), key.encode())

    def index(self, partition: str) -> bytes:
        """The key of a partition's index."""
        return self.base(partition) + b"i"

    def log(self, partition: str, lane: str) -> bytes:
        """The key where a lane notes its last call."""
        return b"%bc%b" % (self.base(partition), lane.encode())

    def channel(self, partition: str) -> bytes:
        """The channel of a partition; its name has the database, because channels are the server's."""
        return b"%bw%d" % (self.base(partition), self._database)

    def trial(self, name: str) -> tuple[bytes, bytes, bytes, bytes]:
        """Keys of an index, a log and a row, and a channel, in a place that no partition has."""
        base = f"{self._prefix}{{%trial}}".encode()
        end = name.encode()
        return base + b"i", base + b"c" + end, base + b"r:" + end, base + b"w" + end

    @property
    def meta(self) -> bytes:
        """The key of our mark."""
        return f"{self._prefix}meta".encode()

    def index_pattern(self) -> bytes:
        """A pattern that all indexes match, and perhaps other keys."""
        quoted = "".join(
            f"\\{character}" if character in "*?[]^\\" else character for character in self._prefix
        )
        return f"{quoted}{{*}}i".encode()

    def partition_of(self, name: bytes) -> str | None:
        """The partition whose index has this name; None if it is not that of an index."""
        tag = name[len(self._prefix.encode()) + 1 : -2].decode("utf-8", "replace")
        if "}" in tag or self.index(partition := _partition(tag)) != name:
            return None
        return partition


def _partition(tag: str) -> str:
    return "" if tag == "%" else tag.replace("%7D", "}").replace("%25", "%")


def row_head(etag: str, content_type: str | None, *, expires: bool) -> bytes:
    """What a row begins with, up to the moment when it expires."""
    form = (2 if expires else 0) + (1 if content_type else 0)
    return b"%b%d" % (etag.encode(), form)


def row_tail(value: bytes, content_type: str | None) -> bytes:
    """What follows the moment when a row expires."""
    if not content_type:
        return value
    encoded = content_type.encode()
    return b"%08x%b%b" % (len(encoded), encoded, value)


def read_row(row: bytes) -> GetResponse:
    """What a row holds.

    Raises:
        MalformedRowError: it is not one of ours.
    """
    etag, form = row[:ETAG_BYTES].decode("latin-1"), row[ETAG_BYTES:_FORM_END]
    if form == b"0":
        return GetResponse(row[_FORM_END:], etag)
    try:
        bits = int(form)
        at = _FORM_END
        moment = None
        if bits & 2:
            moment = int(row[at : at + _MOMENT_DIGITS])
            at += _MOMENT_DIGITS
        content_type = None
        if bits & 1:
            size = int(row[at : at + _LENGTH_DIGITS], 16)
            at += _LENGTH_DIGITS
            content_type = row[at : at + size].decode()
            at += size
        if bits > 3 or at > len(row):
            raise MalformedRowError("unknown form of a row")
    except ValueError as error:
        raise MalformedRowError("not a row") from error
    if moment is None:
        return GetResponse(row[at:], etag, content_type=content_type)
    return GetResponse(row[at:], etag, expiry_metadata(moment), content_type)
