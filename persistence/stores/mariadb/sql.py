"""Statements as text: every key and value a hexadecimal literal, which means the same in every sql_mode."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from persistence.decision import Slot
from persistence.migrations import Migration
from persistence.paging import Window
from persistence.statements import named_statements, script

__all__ = ["COMMENT", "TABLES", "Statements", "literal", "migrations", "packets", "row"]

COMMENT: Final = "hsm-toolkit"
"""The comment of each of our tables."""
TABLES: Final = ("meta", "kv", "locks", "outcomes")

_PACKAGE: Final = "persistence.stores.mariadb"
_COMMENT_LINE: Final = re.compile(r"^--.*\n", re.MULTILINE)
_QUERIES: Final = {
    name: " ".join(_COMMENT_LINE.sub("", statement).split())
    for name, statement in named_statements(_PACKAGE, "queries.sql").items()
}
# The server's clock in milliseconds, in whatever zone it is; the same throughout a statement.
_NOW: Final = "(TIMESTAMPDIFF(MICROSECOND,'1970-01-01',UTC_TIMESTAMP(3)) DIV 1000)"
# With a thousand values MariaDB may make a table of an IN and join it, and not use our index.
_MOST_ROWS: Final = 500
_MILLISECONDS: Final = 1000


def literal(text: str) -> str:
    """A partition or key."""
    return f"x'{text.encode().hex()}'"


def migrations(prefix: str) -> Sequence[Migration]:
    """The schema of this release, step by step; each statement can be run again."""

    def of(file: str) -> Sequence[str]:
        return [
            statement.replace("{prefix}", prefix).replace("{comment}", COMMENT)
            for statement in script(_PACKAGE, file)
        ]

    return [Migration(1, of("schema.sql"), oldest=1)]


def packets(statements: Iterable[str], most_bytes: int) -> Iterator[str]:
    """Join statements, so that each packet stays below so many bytes; one that is larger goes alone."""
    joined: list[str] = []
    size = 0
    for statement in statements:
        if joined and size + len(statement) >= most_bytes:
            yield ";".join(joined)
            joined, size = [], 0
        joined.append(statement)
        size += len(statement) + 1
    if joined:
        yield ";".join(joined)


class Statements:
    """The statements for the tables with one prefix.

    What takes any number of rows comes as several statements, none longer than `most_bytes` unless a single
    row is.
    """

    def __init__(self, prefix: str, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._texts: Mapping[str, str] = {
            name: text.replace("{prefix}", prefix).replace("{now}", _NOW) for name, text in _QUERIES.items()
        }
        self.version: str = self._texts["version"]
        self.ping: str = self._texts["ping"]
        self.release_schema_lock: str = self._texts["release-schema-lock"]
        names = ",".join(f"'{prefix}{table}'" for table in TABLES)
        self.tables: str = self._texts["tables"].replace("{tables}", names)

    def set_version(self, version: int, oldest: int) -> str:
        """Note the version of the schema."""
        return self._fill("set-version", version=version, oldest=oldest)

    def take_schema_lock(self, seconds: int) -> str:
        """Keep others from changing the tables; returns 1 if that worked."""
        return self._fill("take-schema-lock", seconds=seconds)

    def lock(self, partitions: Sequence[str]) -> list[str]:
        """Lock partitions, which are sorted; each returns the partitions that it has locked."""
        return self._chunked("lock", "partitions", map(literal, partitions))

    def add_locks(self, partitions: Iterable[str]) -> list[str]:
        """Make partitions that can be locked."""
        return self._chunked("add-locks", "rows", (f"({literal(partition)})" for partition in partitions))

    def etags(self, slots: Iterable[Slot]) -> list[str]:
        """Read the etags of living rows: partition, key, etag."""
        return self._chunked("etags", "slots", _pairs(slots))

    def upsert(self, rows: Iterable[str]) -> list[str]:
        """Write rows, as `row` makes them."""
        return self._chunked("upsert", "rows", rows)

    def delete(self, slots: Iterable[Slot]) -> list[str]:
        """Delete rows."""
        return self._chunked("delete", "slots", _pairs(slots))

    def note_outcome(self, writer: int, number: int) -> str:
        """Note the last transaction of a writer."""
        return self._fill("note-outcome", writer=writer, number=number)

    def outcome(self, writer: int) -> str:
        """The last transaction of a writer."""
        return self._fill("outcome", writer=writer)

    def rows(self, slots: Iterable[Slot]) -> list[str]:
        """Read living rows: partition, key, value, etag, expiry time, content type."""
        return self._chunked("rows", "slots", _pairs(slots))

    def page(self, window: Window, rows: int, inline_bytes: int) -> str:
        """Read rows from the beginning of a window: key, value if it is not too long, etag, length."""
        return self._fill("page", **_range(window), rows=rows, inline_bytes=inline_bytes)

    def keys(self, window: Window, rows: int) -> str:
        """Read keys from the beginning of a window."""
        return self._fill("keys", **_range(window), rows=rows)

    def family(self, window: Window, prefix: str, rows: int) -> str:
        """Read keys with a prefix that have no further `||`."""
        name_start = len(prefix.encode()) + 1
        return self._fill("family", **_range(window), name_start=name_start, rows=rows)

    def claim_cleanup(self, interval_milliseconds: int) -> str:
        """Change a row if it is time to clean up."""
        return self._fill("claim-cleanup", interval=interval_milliseconds)

    def expired(self, rows: int) -> str:
        """Read partitions and keys of expired rows."""
        return self._fill("expired", rows=rows)

    def delete_expired(self, slots: Iterable[Slot]) -> list[str]:
        """Delete rows that are still expired."""
        return self._chunked("delete-expired", "slots", _pairs(slots))

    def forget_outcomes(self, age_milliseconds: int) -> str:
        """Delete what writers noted that are long gone."""
        return self._fill("forget-outcomes", age=age_milliseconds)

    def _fill(self, name: str, **values: str | int) -> str:
        text = self._texts[name]
        for field, value in values.items():
            text = text.replace(f"{{{field}}}", str(value))
        return text

    def _chunked(self, name: str, field: str, items: Iterable[str]) -> list[str]:
        head, tail = self._texts[name].split(f"{{{field}}}")
        room = self._most_bytes - len(head) - len(tail)
        statements: list[str] = []
        taken: list[str] = []
        size = 0
        for item in items:
            if taken and (size + len(item) >= room or len(taken) == _MOST_ROWS):
                statements.append(f"{head}{','.join(taken)}{tail}")
                taken, size = [], 0
            taken.append(item)
            size += len(item) + 1
        if taken:
            statements.append(f"{head}{','.join(taken)}{tail}")
        return statements


def row(slot: Slot, value: bytes, etag: str, ttl_seconds: int | None, content_type: str | None) -> str:
    """A row to be written."""
    expires = "NULL" if ttl_seconds is None else f"{_NOW}+{ttl_seconds * _MILLISECONDS}"
    kind = "NULL" if content_type is None else literal(content_type)
    return f"({literal(slot[0])},{literal(slot[1])},'{etag}',{expires},{kind},x'{value.hex()}')"


def _pairs(slots: Iterable[Slot]) -> Iterator[str]:
    return (f"({literal(partition)},{literal(key)})" for partition, key in slots)


def _range(window: Window) -> dict[str, str]:
    conditions = [f"p = {literal(window.partition)}"]
    if window.start:
        conditions.append(f"k {'>' if window.after else '>='} {literal(window.start)}")
    if window.end:
        conditions.append(f"k < {literal(window.end)}")
    return {"range": " AND ".join(conditions), "direction": "DESC" if window.reverse else "ASC"}
