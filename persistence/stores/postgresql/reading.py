"""Reading rows and pages, each with one statement, so that it sees one state of the database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

from psycopg.types.numeric import Int8

from persistence.decision import Slot
from persistence.paging import Page, Window, expiry_metadata
from persistence.store import GetResponse, Item
from persistence.stores.postgresql.packing import Texts
from persistence.stores.postgresql.pool import SessionPool
from persistence.stores.postgresql.session import Session
from persistence.stores.postgresql.sql import Statements

__all__ = ["Reader"]

_PAGE_BYTES: Final = 1024 * 1024
_ANSWER_BYTES: Final = 16 * 1024 * 1024
_MAX_KEYS: Final = 1000


class Reader:
    """Reads by the sessions of a pool."""

    def __init__(self, pool: SessionPool, sql: Statements) -> None:
        self._pool = pool
        self._sql = sql

    async def rows(self, slots: Sequence[Slot]) -> Mapping[Slot, GetResponse]:
        """Rows by key, absent and expired ones left out; many large ones take several round trips."""
        found: dict[Slot, GetResponse] = {}
        left = slots
        while left:
            left = await self._pool.run(partial(self._some_rows, left, found))
        return found

    async def _some_rows(
        self, slots: Sequence[Slot], found: dict[Slot, GetResponse], session: Session
    ) -> Sequence[Slot]:
        """Read rows into `found`; those for which there was no room."""
        parameters = (
            Int8(_ANSWER_BYTES),
            Texts([partition for partition, _ in slots]),
            Texts([key for _, key in slots]),
        )
        left: list[Slot] = []
        for number, etag, expires, content_type, value in await session.rows(self._sql["rows"], parameters):
            slot = slots[int(number) - 1]
            if value is None:
                left.append(slot)
            elif expires is None:
                found[slot] = GetResponse(value, etag, content_type=content_type)
            else:
                found[slot] = GetResponse(value, etag, expiry_metadata(expires), content_type)
        return left

    async def values(self, partition: str, keys: Sequence[str]) -> Mapping[str, bytes | None]:
        """Values by key, absent and expired ones left out; many, or large ones, take several round trips."""
        found: dict[str, bytes | None] = {}
        for first in range(0, len(keys), _MAX_KEYS):
            left = keys[first : first + _MAX_KEYS]
            while left:
                rows = await self._pool.run(partial(self._some_values, partition, left))
                left = [key for key, value in rows if value is None]
                found.update(rows)
        return found

    async def _some_values(
        self, partition: str, keys: Sequence[str], session: Session
    ) -> Sequence[tuple[str, bytes | None]]:
        """Values by key; None for those for which there was no room."""
        return await session.rows(self._sql["values"], (Int8(_ANSWER_BYTES), partition, Texts(keys)))

    async def page(self, window: Window, rows: int) -> Page:
        """Rows from the beginning of a window, fewer if their values are large."""
        statement, parameters = self._sql.window("scan", window)
        found = await self._pool.run(
            lambda session: session.rows(statement, (*parameters, Int8(rows), Int8(_PAGE_BYTES)))
        )
        items = [Item(key, value, etag) for key, value, etag in found]
        full = len(items) == rows or sum(len(item.value) for item in items) >= _PAGE_BYTES
        return Page(items, last=not full)

    async def keys(self, window: Window, rows: int) -> tuple[Sequence[str], bool]:
        """Keys from the beginning of a window, and whether they were all."""
        statement, parameters = self._sql.window("keys", window)
        found = await self._pool.run(lambda session: session.rows(statement, (*parameters, Int8(rows))))
        return [key for (key,) in found], len(found) < rows

    async def ping(self) -> None:
        """Return if the server answers, and our tables are there."""
        await self._pool.run(lambda session: session.rows(self._sql["ping"]))
