"""The SQLite store: one thread writes in batches, the event loop's thread reads what is short."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, Final
from urllib.parse import unquote

import attrs

from persistence.backends import SQLITE
from persistence.base import BatchedStore
from persistence.cleaning import Cleaner
from persistence.errors import InvalidRequestError, StoreClosedError
from persistence.like import check_keys_like, encode_token
from persistence.options import check_key, check_partition, check_prefix, prefix_end
from persistence.paging import Page, Window, read_pages, scan_window
from persistence.settings import split_url
from persistence.store import (
    Feature,
    GetRequest,
    GetResponse,
    Item,
    KeysLikeRequest,
    KeysLikeResponse,
    Limits,
    Metadata,
)
from persistence.stores.sqlite.committing import Committer
from persistence.stores.sqlite.files import open_writer
from persistence.stores.sqlite.reading import SHORT_PAGE_ROWS, Reader
from persistence.stores.sqlite.settings import SqliteOptions
from persistence.stores.sqlite.worker import Worker
from persistence.stores.sqlite.writing import Writer

__all__ = ["SqliteStore", "from_url"]

_NANOSECONDS_PER_MILLISECOND: Final = 1_000_000
_LONG_PAGE_ROWS: Final = 1000


@attrs.frozen
class _Open:
    """What an open store has."""

    thread: Worker
    writer: Writer
    reader: Reader
    cleaner: Cleaner


class SqliteStore(BatchedStore):
    """A store in one file, durable against power loss (WAL, synchronous=FULL).

    Several processes may use the file at once, one of them writing at a time.

    Reads of one key, and the first rows of a scan, take microseconds in the event loop's thread; the rest
    of a scan is read in a thread of its own. Writes wait for the disk in the writer thread; only where the
    disk takes less than a millisecond, a transaction that comes alone is waited for in place. In a program
    whose event loop is busy, `sys.setswitchinterval(0.0005)` lets that thread go on sooner.
    """

    READS_WITHOUT_WAITING: ClassVar[bool] = True

    def __init__(
        self,
        path: str | Path,
        *,
        options: SqliteOptions | None = None,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        """Make a store for a file; `clock` tells the time for expiry, in nanoseconds since 1970."""
        super().__init__()
        self._path = Path(path).absolute()
        self._options = options or SqliteOptions()
        self._clock = clock
        self._state: _Open | None = None
        self._opening: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<SqliteStore {self._path}>"

    @property
    def features(self) -> frozenset[Feature]:
        """Everything but WATCH."""
        return SQLITE.features

    @property
    def limits(self) -> Limits:
        """What one request may hold."""
        return SQLITE.limits

    @property
    def durability(self) -> str:
        """What can be lost: nothing, if the disk does what it is told."""
        return "a commit is on the disk when it returns (WAL, synchronous=FULL): a crash loses none"

    @property
    def server_version(self) -> str:
        """The version of the library that is linked to this Python."""
        return f"SQLite {sqlite3.sqlite_version}"

    async def init(self, metadata: Metadata) -> None:
        """Open the file, and make it if it does not exist; the properties of `metadata` are `SqliteOptions`.

        Raises:
            InvalidRequestError: an unknown property.
            StoreCorruptError: the file is damaged, newer than this release, or not ours; it was not touched.
            StoreBusyError: somebody else holds the file locked.
            StoreUnavailableError: the file or its directory cannot be used.
            StoreClosedError: the store was closed before.
        """
        if self._closing is not None:
            raise StoreClosedError(f"{self!r} was closed; make a new one")
        options = self._options.changed(metadata.properties)
        if self._opening is None or (self._opening.done() and self._state is None):
            self._options = options
            self._opening = asyncio.create_task(self._open())
        # A caller that is cancelled leaves the opening to go on, so that `aclose` finds a whole store.
        await asyncio.shield(self._opening)

    async def _open(self) -> None:
        options = self._options
        thread = Worker(f"sqlite writer {self._path.name}")
        try:
            connection = await thread.run(
                partial(
                    open_writer,
                    self._path,
                    busy_timeout=options.busy_timeout,
                    open_timeout=options.open_timeout,
                    create=options.create,
                )
            )
            writer = Writer(connection, self._path, self._now, options.busy_timeout)
            reader = Reader(self._path, busy_timeout=options.busy_timeout, now=self._now)
        except BaseException:
            await thread.stop()
            raise
        cleaner = Cleaner(self._clean, options.cleanup_interval.total_seconds())
        self._state = _Open(thread, writer, reader, cleaner)
        self.start_lanes(Committer(thread, writer).begin)

    async def aclose(self) -> None:
        """Commit what was accepted, and close the file; a second call does nothing."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        if self._opening is not None:
            await asyncio.wait((self._opening,))
        state = self._state
        if state is None:
            return
        await self.drain_lanes()
        self._state = None
        try:
            await state.cleaner.aclose()
            await state.reader.aclose()
            # Last, because the last connection writes the log back and removes it.
            await state.thread.run(state.writer.close)
        finally:
            await state.thread.stop()

    async def ping(self) -> None:
        """Return if the file answers and the store accepts writes.

        Raises:
            StoreBrokenError: a commit died earlier.
            StoreCorruptError: the file is damaged.
            StoreBusyError: somebody else holds the file locked.
        """
        reader = self._opened().reader
        self.check_lanes()
        await reader.ping()

    async def get(self, request: GetRequest) -> GetResponse:
        """Read one key; absent or expired is an empty response.

        Raises:
            StoreCorruptError: the file is damaged.
        """
        check_key(request.partition, request.key)
        return await self._opened().reader.get(request.partition, request.key)

    async def bulk_values(self, partition: str, keys: Sequence[str]) -> Sequence[bytes | None]:
        """The values of keys of one partition, in order; None for what is absent or expired.

        Raises:
            StoreCorruptError: the file is damaged.
        """
        for key in keys:
            check_key(partition, key)
        found = await self._opened().reader.values(partition, keys)
        return [found.get(key) for key in keys]

    def scan(
        self, partition: str, start: str, end: str, *, limit: int | None = None, reverse: bool = False
    ) -> AsyncIterator[Item]:
        """Rows with start <= key < end in code-point order; "" is no bound."""
        self._opened()
        window = scan_window(partition, start, end, limit=limit, reverse=reverse)
        return read_pages(self._read_page, window, limit, first=SHORT_PAGE_ROWS, following=_LONG_PAGE_ROWS)

    async def _read_page(self, window: Window, rows: int) -> Page:
        return await self._opened().reader.page(window, rows)

    async def keys_like(self, request: KeysLikeRequest) -> KeysLikeResponse:
        """One page of the keys that match, in code-point order.

        Raises:
            KeysLikeEmptyPatternError: the pattern is empty.
        """
        reader = self._opened().reader
        pattern, after = check_keys_like(request)
        start = max(pattern.prefix, after + "\0" if after else "")
        limit = None if request.page_size is None else request.page_size + 1
        keys = await reader.keys_like(
            request.partition, start, prefix_end(pattern.prefix), pattern.glob(), limit
        )
        if limit is None or len(keys) < limit:
            return KeysLikeResponse(tuple(keys))
        return KeysLikeResponse(tuple(keys[:-1]), encode_token(keys[-2]))

    async def delete_with_prefix(self, partition: str, prefix: str) -> int:
        """Delete the keys `prefix||name` whose name holds no further `||`; the number deleted.

        Raises:
            InvalidRequestError: the prefix is empty.
        """
        state = self._opened()
        check_partition(partition)
        return await state.thread.run(partial(state.writer.delete_family, partition, check_prefix(prefix)))

    async def _clean(self) -> None:
        state = self._opened()
        if not await state.reader.any_expired():
            return
        interval_milliseconds = int(self._options.cleanup_interval.total_seconds() * 1000)
        more = await state.thread.run(partial(state.writer.claim_cleanup, interval_milliseconds))
        while more:
            more = await state.thread.run(state.writer.delete_expired)

    def _opened(self) -> _Open:
        if self._state is None:
            raise StoreClosedError(f"{self!r} is not open; use `async with`, or call `init`")
        return self._state

    def _now(self) -> int:
        return self._clock() // _NANOSECONDS_PER_MILLISECOND


def from_url(url: str) -> SqliteStore:
    """A store for `sqlite:///relative.db` or `sqlite:////absolute.db`; the query holds `SqliteOptions`.

    Raises:
        InvalidRequestError: the URL names no file, or holds an unknown option.
    """
    parts, options = split_url(url)
    if parts.netloc:
        raise InvalidRequestError(
            "a sqlite URL has three slashes before a relative path and four before an absolute one: "
            "sqlite:///relative.db, sqlite:////absolute.db"
        )
    path = unquote(parts.path.removeprefix("/"))
    if path in {"", ":memory:"}:
        raise InvalidRequestError("a sqlite URL names a file; use memory:// for a store in memory")
    return SqliteStore(path, options=SqliteOptions().changed(options))
