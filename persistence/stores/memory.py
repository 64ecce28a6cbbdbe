"""`memory://`: everything in this process's memory, with the semantics of a database and none of its disk."""

from __future__ import annotations

import heapq
import time
import weakref
from bisect import bisect_left, bisect_right, insort
from collections.abc import AsyncIterator, Callable, Sequence
from typing import ClassVar, Final, NamedTuple
from urllib.parse import unquote

from persistence.backends import MEMORY
from persistence.base import BaseStore
from persistence.decision import Slot, Transaction, Write, decide, new_etags, prepare
from persistence.errors import InvalidRequestError, StoreClosedError
from persistence.like import check_keys_like, encode_token
from persistence.options import check_key, check_partition, check_prefix, check_text, prefix_end
from persistence.paging import Page, Window, expiry_metadata, read_pages, scan_window
from persistence.settings import split_url
from persistence.store import (
    Change,
    Feature,
    GetRequest,
    GetResponse,
    Item,
    KeysLikeRequest,
    KeysLikeResponse,
    Limits,
    Metadata,
    Operation,
)
from persistence.watching import Watch

__all__ = ["MemoryStore", "from_url"]

_NANOSECONDS_PER_MILLISECOND: Final = 1_000_000
_PAGE_ROWS: Final = 500


class MemoryStore(BaseStore):
    """A store without a disk, for tests and for state that may be lost with the process.

    Stores of the same name in one process share their data for as long as one of them exists; a store
    without a name is alone. All of them must be used from one event loop's thread.

    Every request is carried out at once, so that a multi is atomic without a lock and a page of a scan
    is a snapshot.
    """

    READS_WITHOUT_WAITING: ClassVar[bool] = True

    def __init__(self, name: str = "", *, clock: Callable[[], int] = time.time_ns) -> None:
        """Make a store; `clock` tells the time for expiry, in nanoseconds since 1970."""
        self._name = name
        self._clock = clock
        self._data = _named(name) if name else _Data()
        self._watches: weakref.WeakSet[Watch] = weakref.WeakSet()
        self._open = False
        self._closed = False

    def __repr__(self) -> str:
        return f"<MemoryStore memory://{self._name}>"

    @property
    def features(self) -> frozenset[Feature]:
        """Every feature there is."""
        return MEMORY.features

    @property
    def limits(self) -> Limits:
        """What one request may hold: the same as in SQLite, so that tests here meet the same limits."""
        return MEMORY.limits

    @property
    def durability(self) -> str:
        """What can be lost: everything."""
        return "everything is lost with the process"

    async def init(self, metadata: Metadata) -> None:  # noqa: ARG002  there is nothing to configure
        """Open the store.

        Raises:
            StoreClosedError: it was closed before.
        """
        if self._closed:
            raise StoreClosedError(f"{self!r} was closed; make a new one")
        self._open = True

    async def aclose(self) -> None:
        """Close the store; data without another store of the same name is gone."""
        self._open = False
        self._closed = True
        self._data = _Data()
        for watch in self._watches:
            watch.end()

    async def ping(self) -> None:
        """Return if the store is open."""
        self._live_data()

    async def get(self, request: GetRequest) -> GetResponse:
        """Read one key; absent or expired is an empty response."""
        data = self._live_data()
        check_key(request.partition, request.key)
        row = data.row((request.partition, request.key))
        if row is None:
            return GetResponse()
        if row.expires is None:
            return GetResponse(data=row.value, etag=row.etag, content_type=row.content_type)
        return GetResponse(row.value, row.etag, expiry_metadata(row.expires), row.content_type)

    async def bulk_values(self, partition: str, keys: Sequence[str]) -> Sequence[bytes | None]:
        """The values of keys of one partition, in order; None for what is absent or expired."""
        data = self._live_data()
        values: list[bytes | None] = []
        for key in keys:
            check_key(partition, key)
            row = data.row((partition, key))
            values.append(None if row is None else row.value)
        return values

    async def multi(self, operations: Sequence[Operation]) -> str:
        """Carry out all operations or none; the etag of every row that was written ("" if none was).

        All conditions see the state before; then the writes happen in order.

        Raises:
            ETagMismatchError: a condition does not hold; names the key.
            ETagInvalidError: an etag that this store can never have given out.
            TransactionTooLargeError: over `limits`.
        """
        data = self._live_data()
        if not operations:
            return ""
        return data.commit(prepare(operations, self.limits), self._now())

    def scan(
        self, partition: str, start: str, end: str, *, limit: int | None = None, reverse: bool = False
    ) -> AsyncIterator[Item]:
        """Rows with start <= key < end in code-point order; "" is no bound."""
        self._live_data()
        window = scan_window(partition, start, end, limit=limit, reverse=reverse)
        return read_pages(self._read_page, window, limit, first=_PAGE_ROWS, following=_PAGE_ROWS)

    async def _read_page(self, window: Window, rows: int) -> Page:
        return self._live_data().page(window, rows)

    async def keys_like(self, request: KeysLikeRequest) -> KeysLikeResponse:
        """One page of the keys that match, in code-point order.

        Raises:
            KeysLikeEmptyPatternError: the pattern is empty.
        """
        data = self._live_data()
        pattern, after = check_keys_like(request)
        matches = pattern.matcher()
        table = data.tables.get(request.partition, _EMPTY)
        low = max(bisect_left(table.keys, pattern.prefix), bisect_right(table.keys, after) if after else 0)
        end = prefix_end(pattern.prefix)
        high = bisect_left(table.keys, end) if end else len(table.keys)
        found: list[str] = []
        for key in table.keys[low:high]:
            if matches(key):
                if len(found) == request.page_size:
                    return KeysLikeResponse(tuple(found), encode_token(found[-1]))
                found.append(key)
        return KeysLikeResponse(tuple(found))

    async def delete_with_prefix(self, partition: str, prefix: str) -> int:
        """Delete the keys `prefix||name` whose name holds no further `||`; the number deleted.

        Raises:
            InvalidRequestError: the prefix is empty.
        """
        data = self._live_data()
        check_partition(partition)
        family = check_prefix(prefix)
        keys = data.tables.get(partition, _EMPTY).keys
        relatives = keys[bisect_left(keys, family) : bisect_left(keys, prefix_end(family))]
        members = [key for key in relatives if "||" not in key[len(family) :]]
        for key in members:
            data.put((partition, key), None)
        return len(members)

    def watch(self, partition: str, prefix: str) -> AsyncIterator[Change]:
        """Keys with this prefix that may have changed from now on, at least once each."""
        data = self._live_data()
        check_partition(partition)
        check_text(prefix, "prefix")
        watch = Watch(prefix)
        data.watches.setdefault(partition, weakref.WeakSet()).add(watch)
        self._watches.add(watch)
        return watch

    def _live_data(self) -> _Data:
        if not self._open:
            raise StoreClosedError(f"{self!r} is not open; use `async with`, or call `init`")
        data = self._data
        if data.expiries:
            data.drop_expired(self._now())
        return data

    def _now(self) -> int:
        return self._clock() // _NANOSECONDS_PER_MILLISECOND


class _Row(NamedTuple):
    value: bytes
    etag: str
    expires: int | None
    content_type: str | None


class _Table:
    """The rows of a partition, and their keys in order."""

    __slots__ = ("keys", "rows")

    def __init__(self) -> None:
        self.rows: dict[str, _Row] = {}
        self.keys: list[str] = []


_EMPTY: Final = _Table()


class _Data:
    """What stores of one name share."""

    def __init__(self) -> None:
        self.tables: dict[str, _Table] = {}
        self.watches: dict[str, weakref.WeakSet[Watch]] = {}
        self.expiries: list[tuple[int, Slot]] = []

    def row(self, slot: Slot) -> _Row | None:
        table = self.tables.get(slot[0])
        return None if table is None else table.rows.get(slot[1])

    def commit(self, transaction: Transaction, now: int) -> str:
        stored: dict[Slot, str] = {}
        for slot, _ in transaction.conditions:
            row = self.row(slot)
            if row is not None:
                stored[slot] = row.etag
        decision = decide((transaction,), stored, new_etags(1))
        (result,) = decision.results
        if not isinstance(result, str):
            raise result
        for write, etag in decision.writes.values():
            self._write(write, etag, now)
        return result

    def _write(self, write: Write, etag: str, now: int) -> None:
        slot, value, ttl_seconds, content_type = write
        if value is None:
            self.put(slot, None)
            return
        expires = None
        if ttl_seconds is not None:
            expires = now + ttl_seconds * 1000
            heapq.heappush(self.expiries, (expires, slot))
        self.put(slot, _Row(value, etag, expires, content_type))

    def put(self, slot: Slot, row: _Row | None) -> None:
        partition, key = slot
        table = self.tables.get(partition)
        if table is None:
            table = self.tables[partition] = _Table()
        if row is not None:
            if key not in table.rows:
                insort(table.keys, key)
            table.rows[key] = row
        elif table.rows.pop(key, None) is None:
            return
        else:
            del table.keys[bisect_left(table.keys, key)]
        if partition in self.watches:
            for watch in self.watches[partition]:
                watch.notify(key)

    def drop_expired(self, now: int) -> None:
        while self.expiries and self.expiries[0][0] <= now:
            _, slot = heapq.heappop(self.expiries)
            row = self.row(slot)
            if row is not None and row.expires is not None and row.expires <= now:
                self.put(slot, None)

    def page(self, window: Window, rows: int) -> Page:
        table = self.tables.get(window.partition, _EMPTY)
        keys = table.keys
        low = (bisect_right if window.after else bisect_left)(keys, window.start)
        high = bisect_left(keys, window.end) if window.end else len(keys)
        chosen = (
            keys[max(low, high - rows) : high][::-1] if window.reverse else keys[low : min(high, low + rows)]
        )
        found = [(key, table.rows[key]) for key in chosen]
        return Page([Item(key, row.value, row.etag) for key, row in found], last=high - low <= rows)


_shared: weakref.WeakValueDictionary[str, _Data] = weakref.WeakValueDictionary()


def _named(name: str) -> _Data:
    data = _shared.get(name)
    if data is None:
        data = _shared[name] = _Data()
    return data


def from_url(url: str) -> MemoryStore:
    """A store for `memory://` or `memory://name`.

    Raises:
        InvalidRequestError: a path or an option is given.
    """
    parts, options = split_url(url)
    if parts.path.strip("/") or options:
        raise InvalidRequestError("a memory URL is memory:// or memory://name, without path and options")
    return MemoryStore(unquote(parts.netloc))
