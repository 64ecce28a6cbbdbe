"""The MariaDB store: lanes of group commit, and a few connections that read."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

import attrs

from persistence.backends import MARIADB
from persistence.batcher import in_task
from persistence.cleaning import Cleaner
from persistence.decision import Slot
from persistence.errors import StoreClosedError
from persistence.paging import Page, Window
from persistence.server import ServerStore
from persistence.settings import host_and_port, split_url
from persistence.store import Feature, GetResponse, Limits
from persistence.stores.mariadb.driver import ConnectionLostError, ServerError, Session
from persistence.stores.mariadb.failures import translate
from persistence.stores.mariadb.opening import Opener, ServerFacts
from persistence.stores.mariadb.pool import Pool
from persistence.stores.mariadb.reading import Reader
from persistence.stores.mariadb.schema import prepare_schema
from persistence.stores.mariadb.settings import MariaDBAddress, MariaDBOptions
from persistence.stores.mariadb.sql import Statements, migrations
from persistence.stores.mariadb.writing import Lane

__all__ = ["MariaDBStore", "from_url"]

_MOST_JOINED_BYTES: Final = 8 * 1024 * 1024
_PACKET_MARGIN_BYTES: Final = 1024
_CLEANUP_ROWS: Final = 1000
_CLEANUP_SLACK_MILLISECONDS: Final = 100
_OUTCOME_AGE_MILLISECONDS: Final = 24 * 3600 * 1000
_MILLISECONDS: Final = 1000


@attrs.frozen
class _Open:
    """What an open store has."""

    facts: ServerFacts
    limits: Limits
    statements: Statements
    pool: Pool
    reader: Reader
    lanes: Sequence[Lane]
    cleaner: Cleaner


class MariaDBStore(ServerStore):
    """A store in a database of a MariaDB server (10.4 or newer) or MySQL server (8.0 or newer).

    MySQL has not been tried; what differs there is seen to as its documentation has it.

    What a commit survives is decided by the server; `durability` says what it is set to. That holds for one
    server: a replica that takes its place may lack the last commits.

    Writers of several processes wait for each other partition by partition. Nodes of a Galera cluster do not
    know each other's locks, and are refused.
    """

    def __init__(self, address: MariaDBAddress, *, options: MariaDBOptions | None = None) -> None:
        """Make a store for a database that exists."""
        super().__init__()
        self._address = address
        self._options = options or MariaDBOptions()
        self._state: _Open | None = None

    def __repr__(self) -> str:
        options, address = self._options, self._address
        place = options.socket or host_and_port(address.host, address.port)
        return f"<MariaDBStore {address.database!r} at {place}, prefix {options.prefix!r}>"

    @property
    def features(self) -> frozenset[Feature]:
        """Everything but WATCH."""
        return MARIADB.features

    @property
    def limits(self) -> Limits:
        """What one request may hold; when open, also according to the server's max_allowed_packet."""
        return MARIADB.limits if self._state is None else self._state.limits

    @property
    def durability(self) -> str:
        """What the server's settings can lose.

        Raises:
            StoreClosedError: the store is not open.
        """
        return self._opened().facts.durability

    @property
    def server_version(self) -> str:
        """Name and version of the server.

        Raises:
            StoreClosedError: the store is not open.
        """
        return self._opened().facts.version

    async def _open(self, properties: Mapping[str, str]) -> None:
        options = self._options.changed(properties)
        opener = Opener(self._address, options)
        session, facts = await opener.open()
        most_bytes = min(facts.packet_bytes - _PACKET_MARGIN_BYTES, _MOST_JOINED_BYTES)
        statements = Statements(options.prefix, most_bytes)
        try:
            await _prepare(session, statements, options, opener.where)
        finally:
            await session.close()
        self._options = options
        timeout_seconds = options.request_timeout.total_seconds()
        pool = Pool(opener.open_reader, options.readers)
        lanes = [
            Lane(
                opener.open_writer,
                statements,
                most_bytes=most_bytes,
                timeout_seconds=timeout_seconds,
                lock_seconds=options.lock_timeout.total_seconds(),
                where=opener.where,
                reconnected=pool.forget,
            )
            for _ in range(options.lanes)
        ]
        self._state = _Open(
            facts=facts,
            limits=facts.limits,
            statements=statements,
            pool=pool,
            reader=Reader(
                pool, statements, most_bytes=most_bytes, timeout_seconds=timeout_seconds, where=opener.where
            ),
            lanes=lanes,
            cleaner=Cleaner(self._clean, options.cleanup_interval.total_seconds()),
        )
        self.start_lanes(*(in_task(lane.commit) for lane in lanes))

    async def _close(self) -> None:
        state = self._opened()
        await state.cleaner.aclose()
        await asyncio.gather(state.pool.aclose(), *(lane.aclose() for lane in state.lanes))
        self._state = None

    async def _read_rows(self, slots: Sequence[Slot], *, eventual: bool) -> Mapping[Slot, GetResponse]:  # noqa: ARG002  there is one server
        return await self._opened().reader.rows(slots)

    async def _read_page(self, window: Window, rows: int) -> Page:
        return await self._opened().reader.page(window, rows)

    async def _read_keys(self, window: Window, rows: int) -> tuple[Sequence[str], bool]:
        return await self._opened().reader.keys(window, rows)

    async def _ping(self) -> None:
        await self._opened().reader.ping()

    async def _delete_family(self, partition: str, family: str) -> int:
        return await self._opened().lanes[self.lane_of(partition)].delete_family(partition, family)

    async def _clean(self) -> None:
        state = self._opened()
        run, statements = state.reader.run, state.statements
        interval_milliseconds = int(self._options.cleanup_interval.total_seconds() * _MILLISECONDS)
        (claim,) = await run(
            statements.claim_cleanup(max(0, interval_milliseconds - _CLEANUP_SLACK_MILLISECONDS))
        )
        if not claim.affected:
            return
        await run(statements.forget_outcomes(_OUTCOME_AGE_MILLISECONDS))
        while True:
            (expired,) = await run(statements.expired(_CLEANUP_ROWS))
            slots = [(partition.decode(), key.decode()) for partition, key in expired.rows]
            if slots:
                await state.lanes[0].delete_expired(slots)
            if len(slots) < _CLEANUP_ROWS:
                return

    def _opened(self) -> _Open:
        if self._state is None:
            raise StoreClosedError(f"{self!r} is not open; use `async with`, or call `init`")
        return self._state


async def _prepare(session: Session, statements: Statements, options: MariaDBOptions, where: str) -> None:
    try:
        async with asyncio.timeout(options.request_timeout.total_seconds()):
            await prepare_schema(session, statements, migrations(options.prefix), options, where)
    except (ConnectionLostError, ServerError, TimeoutError) as error:
        raise translate(error, where) from error


def from_url(url: str) -> MariaDBStore:
    """A store for `mysql://user:password@host:port/database`; the query holds `MariaDBOptions`.

    What the URL leaves out comes from the environment, as with the database's own tools: MYSQL_HOST,
    MYSQL_TCP_PORT, MYSQL_PWD. Unlike theirs, our `localhost` is a host; the option `socket` names a Unix
    socket.

    Raises:
        InvalidRequestError: the URL names no database, or holds an unknown option.
    """
    parts, options = split_url(url)
    return MariaDBStore(MariaDBAddress.of_url(parts), options=MariaDBOptions().changed(options))
