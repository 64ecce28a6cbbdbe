"""The PostgreSQL store: lanes that write in batches, sessions that read, a connection that listens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import Final

import attrs
from psycopg.types.numeric import Int8

from persistence.backends import POSTGRESQL
from persistence.batcher import in_task
from persistence.cleaning import Cleaner
from persistence.decision import Slot
from persistence.errors import FeatureMissingError, StoreClosedError
from persistence.options import check_partition, check_text
from persistence.paging import Page, Window
from persistence.server import ServerStore
from persistence.store import Change, Feature, GetResponse, Limits
from persistence.stores.postgresql.listening import Listener
from persistence.stores.postgresql.pool import SessionPool
from persistence.stores.postgresql.reading import Reader
from persistence.stores.postgresql.schema import ensure_schema
from persistence.stores.postgresql.session import Connector, ServerFacts, Session
from persistence.stores.postgresql.settings import PostgresOptions, divide_url
from persistence.stores.postgresql.sql import Statements
from persistence.stores.postgresql.writing import Lane

__all__ = ["PostgresStore", "from_url"]

# Advisory locks live in a table of fixed size, which all sessions of a server share.
_MAX_PARTITIONS: Final = 256
_CLEANUP_ROWS: Final = 1000
_CLEANUP_SLACK_MILLISECONDS: Final = 100


@attrs.frozen
class _Open:
    """What an open store has."""

    facts: ServerFacts
    sql: Statements
    pool: SessionPool
    reader: Reader
    lanes: Sequence[Lane]
    listener: Listener
    cleaner: Cleaner


class PostgresStore(ServerStore):
    """A store in one schema of a PostgreSQL database, version 13 or later, shared by any number of processes.

    A transaction locks its partition, by an advisory lock, before it reads: conditions hold across processes,
    also those about keys that are absent. A commit is as durable as the server makes it, see `durability`;
    `synchronous_commit` is switched on where it is weaker.

    A connection that is lost is replaced by the next request. If it was lost during a commit, the server is
    asked what became of it.
    """

    def __init__(self, parameters: Mapping[str, str], *, options: PostgresOptions | None = None) -> None:
        """Make a store; `parameters` are those of libpq, which takes what is missing from its environment."""
        super().__init__()
        self._parameters = dict(parameters)
        self._options = options or PostgresOptions()
        self._state: _Open | None = None

    def __repr__(self) -> str:
        where = Connector(self._parameters, self._options).where
        return f"<PostgresStore schema {self._options.schema!r} of {where}>"

    @property
    def features(self) -> frozenset[Feature]:
        """Everything; through a pooler, or on what only speaks PostgreSQL's protocol, all but WATCH."""
        if self._state is not None and not self._state.facts.notifies:
            return POSTGRESQL.features - {Feature.WATCH}
        return POSTGRESQL.features

    @property
    def limits(self) -> Limits:
        """What one request may hold."""
        return POSTGRESQL.limits

    @property
    def durability(self) -> str:
        """What a crash of the server can lose, by the settings that it had when the store was opened.

        Raises:
            StoreClosedError: the store is not open.
        """
        return self._opened().facts.sentence()

    @property
    def server_version(self) -> str:
        """Name and version of the server.

        Raises:
            StoreClosedError: the store is not open.
        """
        return self._opened().facts.name

    async def _open(self, properties: Mapping[str, str]) -> None:
        options = self._options = self._options.changed(properties)
        connector = Connector(self._parameters, options)
        session, facts = await connector.connect()
        sql = Statements(options.schema, facts.dialect)
        lanes = [Lane(connector, facts.dialect, sql) for _ in range(options.lanes)]
        try:
            deadline = asyncio.get_running_loop().time() + options.request_timeout.total_seconds()
            await ensure_schema(
                session, options.schema, facts.dialect, create=options.create, deadline=deadline
            )
            for lane in lanes:
                await lane.open()
        except BaseException:
            await session.aclose()
            for lane in lanes:
                await lane.aclose()
            raise
        pool = SessionPool(connector, session, options.readers)
        listener = Listener(connector, pool, sql)
        cleaner = Cleaner(self._clean, options.cleanup_interval.total_seconds())
        self._state = _Open(facts, sql, pool, Reader(pool, sql), lanes, listener, cleaner)
        self.start_lanes(*(in_task(lane.commit) for lane in lanes), max_partitions=_MAX_PARTITIONS)

    async def _close(self) -> None:
        state = self._opened()
        await state.cleaner.aclose()
        await state.listener.aclose()
        for lane in state.lanes:
            await lane.aclose()
        await state.pool.aclose()
        self._state = None

    async def _read_rows(self, slots: Sequence[Slot], *, eventual: bool) -> Mapping[Slot, GetResponse]:  # noqa: ARG002  there is one server
        return await self._opened().reader.rows(slots)

    async def _read_values(self, partition: str, keys: Sequence[str]) -> Mapping[str, bytes | None]:
        return await self._opened().reader.values(partition, keys)

    async def _read_page(self, window: Window, rows: int) -> Page:
        return await self._opened().reader.page(window, rows)

    async def _read_keys(self, window: Window, rows: int) -> tuple[Sequence[str], bool]:
        return await self._opened().reader.keys(window, rows)

    async def _ping(self) -> None:
        await self._opened().reader.ping()

    async def _delete_family(self, partition: str, family: str) -> int:
        return await self._opened().lanes[self.lane_of(partition)].delete_family(partition, family)

    def watch(self, partition: str, prefix: str) -> AsyncIterator[Change]:
        """Keys with this prefix that may change from now on, at least once each.

        A RESYNC comes first, when the server knows of the watch, and after each loss of the connection. That
        a row expires is not told.

        Raises:
            FeatureMissingError: the server has no notifications, or a pooler would not pass them on.
        """
        self.check_open()
        check_partition(partition)
        check_text(prefix, "prefix")
        state = self._opened()
        if not state.facts.notifies:
            raise FeatureMissingError(
                f"{self!r} cannot watch: its server has no LISTEN and NOTIFY, or is behind a pooler"
            )
        return state.listener.watch(partition, prefix)

    async def _clean(self) -> None:
        state = self._opened()
        pool, sql = state.pool, state.sql
        milliseconds = round(self._options.cleanup_interval.total_seconds() * 1000)
        interval = Int8(max(0, milliseconds - _CLEANUP_SLACK_MILLISECONDS))
        if not await pool.run(lambda session: session.count(sql["claim-cleanup"], (interval,))):
            return
        await pool.run(lambda session: session.count(sql["forget-expired"]))
        if await pool.run(lambda session: session.rows(sql["any-expired"])):
            while await pool.run(partial(_delete_expired, sql)) == _CLEANUP_ROWS:
                pass

    def _opened(self) -> _Open:
        if self._state is None:
            raise StoreClosedError(f"{self!r} is not open; use `async with`, or call `init`")
        return self._state


async def _delete_expired(sql: Statements, session: Session) -> int:
    return await session.count(sql["delete-expired"], (Int8(_CLEANUP_ROWS),))


def from_url(url: str) -> PostgresStore:
    """A store for a URL of libpq, whose query may hold `PostgresOptions`, too.

    Raises:
        InvalidRequestError: the URL cannot be read, or holds an unknown option.
    """
    parameters, texts = divide_url(url)
    return PostgresStore(parameters, options=PostgresOptions().changed(texts))
