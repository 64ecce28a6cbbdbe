"""Reading: one statement a read, on any of a few connections."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Final

from persistence.decision import Slot
from persistence.errors import StoreUnavailableError
from persistence.paging import Page, RowSizes, Window, expiry_metadata
from persistence.store import GetResponse, Item
from persistence.stores.mariadb.driver import Answer, ConnectionLostError, ServerError
from persistence.stores.mariadb.failures import translate
from persistence.stores.mariadb.pool import Pool
from persistence.stores.mariadb.sql import Statements, packets

__all__ = ["Reader"]

_PAGE_BYTES: Final = 16 * 1024 * 1024


class Reader:
    """Reads with the sessions of a pool; what fails because a connection is gone is tried once more."""

    def __init__(
        self, pool: Pool, statements: Statements, *, most_bytes: int, timeout_seconds: float, where: str
    ) -> None:
        self._pool = pool
        self._statements = statements
        self._most_bytes = most_bytes
        self._timeout_seconds = timeout_seconds
        self._where = where
        self._sizes = RowSizes(_PAGE_BYTES)

    async def run(self, sql: str) -> Sequence[Answer]:
        """Run statements that can be run twice, with one round trip; an answer for each.

        Raises:
            StoreUnavailableError: the server does not answer, or refuses.
        """
        try:
            async with asyncio.timeout(self._timeout_seconds):
                try:
                    async with self._pool.session(fresh=False) as session:
                        return await session.run(sql)
                except ConnectionLostError:
                    # The server may have ended it long ago, and the others with it.
                    async with self._pool.session(fresh=True) as session:
                        return await session.run(sql)
        except (ConnectionLostError, ServerError, TimeoutError) as error:
            raise translate(error, self._where) from error

    async def rows(self, slots: Sequence[Slot]) -> Mapping[Slot, GetResponse]:
        """Living rows."""
        found: dict[Slot, GetResponse] = {}
        for packet in packets(self._statements.rows(slots), self._most_bytes):
            for answer in await self.run(packet):
                for partition, key, value, etag, expires, content_type in answer.rows:
                    found[partition.decode(), key.decode()] = (
                        GetResponse(value, etag)
                        if expires is None and content_type is None
                        else _response(value, etag, expires, content_type)
                    )
        return found

    async def page(self, window: Window, rows: int) -> Page:
        """At most so many rows from the beginning of a window, fewer if their values are large."""
        # The server reads a value whole to learn its size, so there must not be many that are left out.
        rows = self._sizes.fitting(rows)
        try:
            (answer,) = await self.run(self._statements.page(window, rows, max(1, _PAGE_BYTES // rows)))
        except StoreUnavailableError:
            self._sizes.fear()
            raise
        found = answer.rows
        self._sizes.learn(len(found), sum(size for *_, size in found))
        last = len(found) < rows
        short = next((index for index, row in enumerate(found) if row[1] is None), len(found))
        if short < len(found):
            last = False
        if not short and found:
            # The first ones, one at least, now as they are.
            sizes = accumulate(size for *_, size in found)
            fitting = max(1, sum(size <= _PAGE_BYTES for size in sizes))
            (answer,) = await self.run(self._statements.page(window, fitting, 2**32))
            found, short = answer.rows, fitting
            last = len(found) < fitting
        return Page([Item(key.decode(), value, etag) for key, value, etag, _ in found[:short]], last)

    async def keys(self, window: Window, rows: int) -> tuple[Sequence[str], bool]:
        """At most so many keys from the beginning of a window, and whether they were all."""
        (answer,) = await self.run(self._statements.keys(window, rows))
        return [key.decode() for (key,) in answer.rows], len(answer.rows) < rows

    async def ping(self) -> None:
        """Return if the server answers."""
        await self.run(self._statements.ping)


def _response(value: bytes, etag: str, expires: int | None, content_type: bytes | None) -> GetResponse:
    metadata: Mapping[str, str] = {} if expires is None else expiry_metadata(expires)
    return GetResponse(value, etag, metadata, None if content_type is None else content_type.decode())
