"""The numbers under which partitions are locked."""

from __future__ import annotations

import functools
from hashlib import blake2b
from typing import Final

__all__ = ["channel", "lock_id", "partition_id"]

_BYTES: Final = 8
_CACHED_PARTITIONS: Final = 10_000


def lock_id(schema: str, table: str, partition: str) -> int:
    """The number of an advisory lock; their space is shared by everybody in a database."""
    # No name holds NUL, so that no two triples are one text.
    digest = blake2b(f"hsm-toolkit\0{schema}\0{table}\0{partition}".encode(), digest_size=_BYTES)
    return int.from_bytes(digest.digest(), "big", signed=True)


@functools.lru_cache(_CACHED_PARTITIONS)
def partition_id(schema: str, partition: str) -> int:
    """The number of the lock of one partition."""
    return lock_id(schema, "kv", partition)


def channel(schema: str) -> str:
    """The name under which changes of a schema are told."""
    return f"hsm_{lock_id(schema, 'watchers', '') & (2**64 - 1):016x}"
