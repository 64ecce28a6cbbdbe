"""The statements, from the .sql files beside this module."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Final

from persistence.statements import named_statements, script

__all__ = [
    "ANY_EXPIRED",
    "CLAIM_CLEANUP",
    "DELETE_EXPIRED",
    "DELETE_FAMILY",
    "ETAG",
    "EXPIRED",
    "FILL_LOG",
    "GET",
    "KEYS_LIKE",
    "LARGEST_CHUNK",
    "LARGEST_DELETE",
    "PING",
    "SCAN",
    "SCAN_REVERSE",
    "SCHEMA",
    "chunk_sizes",
    "delete",
    "lookup",
    "upsert",
    "upsert_plain",
    "values",
]

# Statements for powers of two, so that any number of rows takes few statements and few are ever prepared;
# and one for each number of few rows, which is what a transaction that comes alone has.
# 256 rows of 6 columns are far below SQLite's 32 766 parameters.
LARGEST_CHUNK: Final = 256
_FEW_ROWS: Final = 8
LARGEST_DELETE: Final = 64
"""Rows that one delete takes; its condition is as deep as it has rows, and SQLite bounds the depth."""


_PACKAGE: Final = "persistence.stores.sqlite"
_QUERIES: Final = named_statements(_PACKAGE, "queries.sql")

SCHEMA: Final = script(_PACKAGE, "schema.sql")
ANY_EXPIRED: Final = _QUERIES["any-expired"]
CLAIM_CLEANUP: Final = _QUERIES["claim-cleanup"]
DELETE_EXPIRED: Final = _QUERIES["delete-expired"]
DELETE_FAMILY: Final = _QUERIES["delete-family"]
ETAG: Final = _QUERIES["etag"]
EXPIRED: Final = _QUERIES["expired"]
FILL_LOG: Final = _QUERIES["fill-log"]
GET: Final = _QUERIES["get"]
KEYS_LIKE: Final = _QUERIES["keys-like"]
PING: Final = _QUERIES["ping"]
SCAN: Final = _QUERIES["scan"]
SCAN_REVERSE: Final = _QUERIES["scan-reverse"]


@functools.cache
def lookup(rows: int) -> str:
    """The statement that reads the etags of so many keys."""
    return _QUERIES["lookup"].replace("{rows}", ",".join(f"({index},?,?)" for index in range(rows)))


@functools.cache
def values(rows: int) -> str:
    """The statement that reads the values of so many keys of a partition."""
    return _QUERIES["values"].replace("{rows}", ",".join("?" * rows))


@functools.cache
def upsert(rows: int) -> str:
    """The statement that writes so many rows."""
    return _QUERIES["upsert"].replace("{rows}", ",".join(["(?,?,?,?,?,?)"] * rows))


@functools.cache
def upsert_plain(rows: int) -> str:
    """The statement that writes so many rows that do not expire and have no content type."""
    return _QUERIES["upsert"].replace("{rows}", ",".join(["(?,?,?,NULL,NULL,?)"] * rows))


@functools.cache
def delete(rows: int) -> str:
    """The statement that deletes so many rows."""
    return _QUERIES["delete"].replace("{rows}", " OR ".join(["(p=? AND k=?)"] * rows))


def chunk_sizes(count: int, largest: int = LARGEST_CHUNK) -> Iterator[int]:
    """Split a number of rows into sizes for which there are statements: 302 into 256, 32, 8, 6."""
    while count >= largest:
        yield largest
        count -= largest
    size = largest
    while count > _FEW_ROWS:
        size >>= 1
        if count & size:
            yield size
            count -= size
    if count:
        yield count
