"""A PostgreSQL server that dies under load, and the standby that takes its place."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import psycopg
import pytest

from persistence import CommitOutcomeUnknownError, SetRequest, StoreUnavailableError
from persistence.stores.postgresql import PostgresStore, from_url
from tests.conftest import NewServer
from tests.support.servers._postgresql import PostgresqlServer
from tests.support.servers._postgresql_standby import PostgresqlStandby
from tests.support.servers._process import await_that

pytestmark = pytest.mark.server

_WRITERS = 10
_ENOUGH = 20


@pytest.fixture
def pair(new_server: NewServer) -> Iterator[tuple[PostgresqlServer, PostgresqlStandby]]:
    """A primary, and a standby that has every commit before it is acknowledged."""
    primary = new_server("postgresql")
    assert isinstance(primary, PostgresqlServer)
    standby = PostgresqlStandby(primary)
    try:
        standby.start()
        parameters = f"host=127.0.0.1 port={primary.port} user=postgres"
        with psycopg.connect(parameters, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            connection.execute("SELECT pg_reload_conf()")
            await_that(
                lambda: (
                    connection.execute("SELECT FROM pg_stat_replication WHERE sync_state = 'sync'").fetchone()
                    is not None
                ),
                "the standby does not follow",
            )
        yield primary, standby
    finally:
        standby.destroy()


class Writer:
    """Writes rows in pairs until it is told to stop; notes what it was told of each."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.acknowledged: list[str] = []
        self.unavailable: list[str] = []
        self.unknown: list[str] = []
        self._news: asyncio.Queue[str] = asyncio.Queue()

    async def write(self, store: PostgresStore) -> None:
        number = 0
        while True:
            key = f"{self.name}/{number}"
            number += 1
            try:
                await store.multi([SetRequest(key=f"{key}/{half}", value=b"") for half in "ab"])
            except StoreUnavailableError:
                self.unavailable.append(key)
                await asyncio.sleep(0.05)
            except CommitOutcomeUnknownError:
                self.unknown.append(key)
            else:
                self.acknowledged.append(key)
                self._news.put_nowait(key)

    async def has_written(self, more: int) -> None:
        """Wait until so many are acknowledged from now on."""
        self._news = asyncio.Queue()
        for _ in range(more):
            await self._news.get()


async def test_a_standby_takes_over_and_nothing_acknowledged_is_lost(
    pair: tuple[PostgresqlServer, PostgresqlStandby],
) -> None:
    primary, standby = pair
    both = f"@127.0.0.1:{primary.port},127.0.0.1:{standby.port}/"
    url = primary.fresh_url().replace(f"@127.0.0.1:{primary.port}/", both)
    writers = [Writer(str(number)) for number in range(_WRITERS)]
    async with asyncio.timeout(60), from_url(url) as store:
        tasks = [asyncio.create_task(writer.write(store)) for writer in writers]
        await asyncio.gather(*(writer.has_written(_ENOUGH) for writer in writers))
        await asyncio.to_thread(primary.kill)
        await asyncio.to_thread(standby.promote)
        await asyncio.gather(*(writer.has_written(_ENOUGH) for writer in writers))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert f"port {primary.port},{standby.port}" in repr(store)
    async with from_url(url) as store:
        found = {item.key async for item in store.scan("", "", "")}
    for writer in writers:
        for key in writer.acknowledged:
            assert {f"{key}/a", f"{key}/b"} <= found, f"{key} is lost"
        for key in writer.unavailable:
            assert not {f"{key}/a", f"{key}/b"} & found, f"{key} is there"
        for key in writer.unknown:
            assert (f"{key}/a" in found) == (f"{key}/b" in found), f"{key} is half there"
