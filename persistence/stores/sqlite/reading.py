"""Reading: what is short in the event loop's thread, the rest in a thread of its own.

No cursor is left open across an await: it would keep an old state of the file alive, and the WAL growing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from persistence.paging import Page, Window, expiry_metadata
from persistence.store import GetResponse, Item
from persistence.stores.sqlite import sql
from persistence.stores.sqlite.failures import is_busy, translate
from persistence.stores.sqlite.files import open_reader
from persistence.stores.sqlite.worker import Worker

__all__ = ["SHORT_PAGE_ROWS", "Reader"]

T = TypeVar("T")

SHORT_PAGE_ROWS: Final = 200
"""So many rows are read in the event loop's thread at most: a hop to another one costs more."""

_NOTHING: Final = GetResponse()
_NO_END: Final = b""
_PAGE_BYTES: Final = 1024 * 1024


class Reader:
    """Two read-only connections: one for the event loop's thread, one for a thread made when needed."""

    def __init__(self, path: Path, *, busy_timeout: timedelta, now: Callable[[], int]) -> None:
        self._path = path
        self._busy_timeout = busy_timeout
        self._now = now
        # In the event loop's thread nothing may wait for a lock; what meets one goes to the other thread.
        self._connection = open_reader(path, busy_timeout=timedelta())
        self._thread: Worker | None = None
        self._thread_connection: sqlite3.Connection | None = None

    async def get(self, partition: str, key: str) -> GetResponse:
        """Read one key."""
        try:
            return _get(self._connection, partition, key, self._now)
        except sqlite3.Error as error:
            return await self._after_busy(error, lambda reader: _get(reader, partition, key, self._now))

    async def values(self, partition: str, keys: Sequence[str]) -> Mapping[str, bytes]:
        """The values of keys; absent and expired ones are left out."""
        if len(keys) > SHORT_PAGE_ROWS:
            return await self._in_thread(lambda reader: _values(reader, partition, keys, self._now()))
        try:
            return _values(self._connection, partition, keys, self._now())
        except sqlite3.Error as error:
            return await self._after_busy(error, lambda reader: _values(reader, partition, keys, self._now()))

    async def page(self, window: Window, rows: int) -> Page:
        """Read at most so many rows from the beginning of a window, fewer if their values are large."""
        if rows > SHORT_PAGE_ROWS:
            return await self._in_thread(lambda reader: _page(reader, window, rows, self._now()))
        try:
            return _page(self._connection, window, rows, self._now())
        except sqlite3.Error as error:
            return await self._after_busy(error, lambda reader: _page(reader, window, rows, self._now()))

    async def keys_like(
        self, partition: str, start: str, end: str, glob: str, limit: int | None
    ) -> list[str]:
        """The first `limit` keys of a range that match a GLOB pattern."""
        parameters = (partition, start, end or _NO_END, glob, self._now(), -1 if limit is None else limit)
        return await self._in_thread(
            lambda reader: [key for (key,) in reader.execute(sql.KEYS_LIKE, parameters).fetchall()]
        )

    async def any_expired(self) -> bool:
        """Whether there is an expired row."""
        parameters = (self._now(),)
        return await self._in_thread(
            lambda reader: reader.execute(sql.ANY_EXPIRED, parameters).fetchone() is not None
        )

    async def ping(self) -> None:
        """Return if the file answers."""
        await self._in_thread(lambda reader: reader.execute(sql.PING).fetchone())

    async def aclose(self) -> None:
        """Finish what was begun, and close both connections."""
        self._connection.close()
        if self._thread is not None:
            await self._thread.stop()
        if self._thread_connection is not None:
            self._thread_connection.close()

    async def _after_busy(self, error: sqlite3.Error, work: Callable[[sqlite3.Connection], T]) -> T:
        if is_busy(error):
            return await self._in_thread(work)
        raise translate(error, self._path) from error

    async def _in_thread(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._thread is None:
            self._thread = Worker(f"sqlite reader {self._path.name}")
        return await self._thread.run(partial(self._with_connection, work))

    def _with_connection(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._thread_connection is None:
            self._thread_connection = open_reader(self._path, busy_timeout=self._busy_timeout)
        try:
            return work(self._thread_connection)
        except sqlite3.Error as error:
            raise translate(error, self._path) from error


def _get(connection: sqlite3.Connection, partition: str, key: str, now: Callable[[], int]) -> GetResponse:
    row = connection.execute(sql.GET, (partition, key)).fetchone()
    if row is None:
        return _NOTHING
    value, etag, expires, content_type = row
    if expires is None:
        return GetResponse(data=value, etag=etag, content_type=content_type)
    if expires <= now():
        return _NOTHING
    return GetResponse(value, etag, expiry_metadata(expires), content_type)


def _values(
    connection: sqlite3.Connection, partition: str, keys: Sequence[str], now: int
) -> Mapping[str, bytes]:
    found: dict[str, bytes] = {}
    start = 0
    for size in sql.chunk_sizes(len(keys)):
        chunk = keys[start : start + size]
        start += size
        found.update(connection.execute(sql.values(size), (partition, now, *chunk)).fetchall())
    return found


def _page(connection: sqlite3.Connection, window: Window, rows: int, now: int) -> Page:
    # Keys have no NUL, so nothing lies between a key and the key with a NUL at its end.
    start = window.start + "\0" if window.after else window.start
    statement = sql.SCAN_REVERSE if window.reverse else sql.SCAN
    cursor = connection.execute(statement, (window.partition, start, window.end or _NO_END, now, rows))
    items: list[Item] = []
    size = 0
    try:
        for key, value, etag in cursor:
            items.append(Item(key, value, etag))
            size += len(value)
            if size > _PAGE_BYTES:
                return Page(items, last=False)
    finally:
        cursor.close()
    return Page(items, last=len(items) < rows)
