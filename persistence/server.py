"""What stores on a database server have in common: one life, reads that share round trips, scans in pages."""

from __future__ import annotations

import abc
import asyncio
from collections.abc import AsyncIterator, Generator, Hashable, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final

from persistence.base import BatchedStore
from persistence.decision import Slot
from persistence.errors import FeatureMissingError, PersistenceError, StoreClosedError
from persistence.gathering import Gatherer, Rows
from persistence.like import check_keys_like, encode_token
from persistence.options import check_key, check_partition, check_prefix, prefix_end
from persistence.paging import Page, Window, read_pages, scan_window
from persistence.store import (
    Consistency,
    GetRequest,
    GetResponse,
    Item,
    KeysLikeRequest,
    KeysLikeResponse,
    Metadata,
)

__all__ = ["ServerStore"]

_FIRST_PAGE_ROWS: Final = 100
_PAGE_ROWS: Final = 1000


class ServerStore(BatchedStore):
    """The common part of stores on a server; a backend says how to connect, read rows and read pages.

    `_open` ends with `start_lanes`; `_close` is called once, when nothing is under way any more: reads of the
    methods below are waited for, what else a backend does stands in `with self.in_use():`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._opening: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._ready = False
        self._users = 0
        self._unused: asyncio.Future[None] | None = None
        self._gatherers: dict[tuple[Hashable, bool], Gatherer] = {}

    @abc.abstractmethod
    async def _open(self, properties: Mapping[str, str]) -> None:
        """Connect, see to the schema, start the lanes; leaves nothing behind if it raises."""

    @abc.abstractmethod
    async def _close(self) -> None:
        """Release everything."""

    @abc.abstractmethod
    async def _read_rows(self, slots: Sequence[Slot], *, eventual: bool) -> Rows:
        """Read rows at once; absent and expired ones are left out. `eventual`: a replica's answer will do.

        Those who asked for them have nothing to do with each other: an error of one row stands in its place,
        and only what fails for all of them is raised.
        """

    @abc.abstractmethod
    async def _read_page(self, window: Window, rows: int) -> Page:
        """Read at most so many rows from the beginning of a window."""

    @abc.abstractmethod
    async def _ping(self) -> None:
        """Return if the server answers."""

    async def init(self, metadata: Metadata) -> None:
        """Connect, and make the schema if it does not exist; the properties of `metadata` are options.

        Raises:
            InvalidRequestError: an unknown option, or a value that is none.
            StoreCorruptError: what is there is not ours, or too new; it was left as it was.
            StoreUnavailableError: the server cannot be reached, or refuses the credentials.
            StoreClosedError: the store was closed before.
        """
        if self._closing is not None:
            raise StoreClosedError(f"{self!r} was closed; make a new one")
        if self._opening is None or (self._opening.done() and not self._ready):
            self._opening = asyncio.create_task(self._open_once(metadata.properties))
        # A caller that is cancelled leaves the opening to go on, so that `aclose` finds a whole store.
        await asyncio.shield(self._opening)

    async def _open_once(self, properties: Mapping[str, str]) -> None:
        await self._open(properties)
        self._ready = True

    async def aclose(self) -> None:
        """Commit what was accepted, and disconnect; a second call does nothing."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close_once())
        await asyncio.shield(self._closing)

    async def _close_once(self) -> None:
        if self._opening is not None:
            await asyncio.wait((self._opening,))
        if not self._ready:
            return
        self._ready = False
        await self.drain_lanes()
        for gatherer in self._gatherers.values():
            await gatherer.drain()
        if self._users:
            self._unused = asyncio.get_running_loop().create_future()
            await self._unused
        await self._close()

    @contextmanager
    def in_use(self) -> Generator[None]:
        """A block before whose end the store does not disconnect.

        Raises:
            StoreClosedError: the store is not open.
        """
        self.check_open()
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if self._unused is not None and not self._users and not self._unused.done():
                self._unused.set_result(None)

    def check_open(self) -> None:
        """Return if the store is open.

        Raises:
            StoreClosedError: it is not.
        """
        if not self._ready:
            raise StoreClosedError(f"{self!r} is not open; use `async with`, or call `init`")

    async def ping(self) -> None:
        """Return if the server answers and the store accepts writes.

        Raises:
            StoreBrokenError: a commit died earlier.
            StoreUnavailableError: the server does not answer.
        """
        with self.in_use():
            self.check_lanes()
            await self._ping()

    async def get(self, request: GetRequest) -> GetResponse:
        """Read one key; absent or expired is an empty response."""
        self.check_open()
        if check_key(request.partition, request.key) > self.limits.key_bytes:
            return GetResponse()  # no row has it, and it might not fit into the query that it would share
        eventual = request.options.consistency is Consistency.EVENTUAL
        gatherer = self._gatherer(request.partition, eventual=eventual)
        return await gatherer.get((request.partition, request.key))

    async def bulk_values(self, partition: str, keys: Sequence[str]) -> Sequence[bytes | None]:
        """The values of keys of one partition, in order; None for what is absent or expired."""
        limit = self.limits.key_bytes
        with self.in_use():
            found = await self._read_values(
                partition, [key for key in keys if check_key(partition, key) <= limit]
            )
        return [found.get(key) for key in keys]

    async def _read_values(self, partition: str, keys: Sequence[str]) -> Mapping[str, bytes | None]:
        """Read values; those of absent and expired rows may be left out.

        Read with whole rows unless the backend knows better.
        """
        slots = [(partition, key) for key in keys]
        rows = await self._gatherer(partition, eventual=False).get_all(slots)
        found: dict[str, bytes | None] = {}
        for (_, key), row in rows.items():
            if isinstance(row, PersistenceError):
                raise row
            found[key] = row.data
        return found

    def _gatherer(self, partition: str, *, eventual: bool) -> Gatherer:
        place = (self._place_of(partition), eventual)
        gatherer = self._gatherers.get(place)
        if gatherer is None:
            gatherer = self._gatherers[place] = Gatherer(partial(self._read_rows, eventual=eventual))
        return gatherer

    def _place_of(self, partition: str) -> Hashable:  # noqa: ARG002  for stores on several nodes
        """Where a partition is: a node that hangs holds up nobody who reads from another place."""
        return None

    def scan(
        self, partition: str, start: str, end: str, *, limit: int | None = None, reverse: bool = False
    ) -> AsyncIterator[Item]:
        """Rows with start <= key < end in code-point order; "" is no bound."""
        self.check_open()
        window = scan_window(partition, start, end, limit=limit, reverse=reverse)
        return read_pages(self._page, window, limit, first=_FIRST_PAGE_ROWS, following=_PAGE_ROWS)

    async def _page(self, window: Window, rows: int) -> Page:
        with self.in_use():
            return await self._read_page(window, rows)

    async def delete_with_prefix(self, partition: str, prefix: str) -> int:
        """Delete the keys `prefix||name` whose name holds no further `||`; the number deleted.

        Many are deleted in chunks, each of them at once: if it fails in between, some of them are gone.

        Raises:
            InvalidRequestError: the prefix is empty.
            FeatureMissingError: the store does not have DELETE_WITH_PREFIX.
            CommitOutcomeUnknownError: the connection broke; some of the keys may be gone.
        """
        self.check_open()
        check_partition(partition)
        family = check_prefix(prefix)
        with self.in_use():
            return await self._delete_family(partition, family)

    async def _delete_family(self, partition: str, family: str) -> int:
        """Delete the keys that begin with `family` and go on without a further `||`; how many there were.

        For stores that have the feature DELETE_WITH_PREFIX.
        """
        raise FeatureMissingError(
            f"{self!r} cannot delete by prefix, here {family[:100]!r} in partition {partition[:100]!r}"
        )

    async def _read_keys(self, window: Window, rows: int) -> tuple[Sequence[str], bool]:
        """Keys of living rows from the beginning of a window, at most so many, and whether they were all.

        Read with their values unless the backend knows better.
        """
        page = await self._read_page(window, rows)
        return [item.key for item in page.items], page.last

    async def keys_like(self, request: KeysLikeRequest) -> KeysLikeResponse:
        """One page of the keys that match, in code-point order.

        Raises:
            KeysLikeEmptyPatternError: the pattern is empty.
        """
        self.check_open()
        pattern, after = check_keys_like(request)
        matches = pattern.matcher()
        window = Window(request.partition, pattern.prefix, prefix_end(pattern.prefix), reverse=False)
        if after >= pattern.prefix:
            window = window.beyond(after) if after else window
        found: list[str] = []
        with self.in_use():
            while True:
                keys, last = await self._read_keys(window, _PAGE_ROWS)
                for key in keys:
                    if matches(key):
                        # One more than a page holds tells that there is another page.
                        if len(found) == request.page_size:
                            return KeysLikeResponse(tuple(found), encode_token(found[-1]))
                        found.append(key)
                if last or not keys:
                    return KeysLikeResponse(tuple(found))
                window = window.beyond(keys[-1])
