"""The PostgreSQL store through PgBouncer, where the next transaction is on another connection, and was somebody's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from persistence import (
    CommitOutcomeUnknownError,
    ETagMismatchError,
    Feature,
    FeatureMissingError,
    GetRequest,
    SetRequest,
    StoreUnavailableError,
    conformance,
)
from persistence.stores.postgresql import PostgresStore, from_url
from persistence.stores.postgresql.session import Connector
from persistence.stores.postgresql.settings import PostgresOptions, divide_url
from tests.conftest import NewServer
from tests.support.servers import Server
from tests.support.servers._pgbouncer import CONNECTIONS, PgBouncer

pytestmark = pytest.mark.server


@pytest.fixture
def url(server_of: Callable[[str], Server]) -> str:
    return server_of("pgbouncer").fresh_url()


@asynccontextmanager
async def every_connection(url: str) -> AsyncIterator[list[psycopg.AsyncConnection[Any]]]:
    """Clients of the pooler that have all its connections to the server for the time of the block."""
    conninfo = make_conninfo("", **divide_url(url)[0])
    async with AsyncExitStack() as stack:
        clients: list[psycopg.AsyncConnection[Any]] = []
        for _ in range(CONNECTIONS):
            client = await psycopg.AsyncConnection.connect(conninfo, prepare_threshold=None)
            clients.append(await stack.enter_async_context(client))
            await clients[-1].execute("SELECT 1")  # which begins a transaction
        yield clients


async def shown(client: psycopg.AsyncConnection[Any], name: str) -> str:
    row = await (await client.execute(f"SHOW {name}".encode())).fetchone()
    assert row is not None
    return str(row[0])


async def use(store: PostgresStore) -> None:
    """Do everything that uses a connection."""
    await store.set(SetRequest(key="key", value=b"1", metadata={"ttlInSeconds": "100"}))
    await store.get(GetRequest(key="key"))
    assert [item.key async for item in store.scan("", "", "")] == ["key"]
    assert await store.delete_with_prefix("", "key") == 0
    await store.ping()


async def test_the_contract_holds_through_a_pooler(url: str) -> None:
    open_store = partial(from_url, url)
    possible = PostgresStore({}).features - {Feature.WATCH}
    # What is large costs the server time, and is no other through a pooler.
    cases = [case for case in conformance.CASES if case.needs <= possible and "limit" not in case.name]
    async with asyncio.TaskGroup() as group:
        for case in cases:
            if Feature.TTL in case.needs:
                group.create_task(case.check(open_store), name=case.name)
    for case in cases:
        if Feature.TTL not in case.needs:
            await case.check(open_store)


async def test_nothing_is_left_on_connections_that_others_get(url: str) -> None:
    names = ("enable_seqscan", "statement_timeout", "lock_timeout", "synchronous_commit", "jit")
    async with every_connection(url) as clients:
        before = [[await shown(client, name) for name in names] for client in clients]
    async with from_url(url) as store:
        await use(store)
        async with every_connection(url) as clients:
            assert [[await shown(client, name) for name in names] for client in clients] == before


async def test_what_others_have_left_on_a_connection_does_not_weaken_conditions(url: str) -> None:
    left = {
        "default_transaction_isolation": "repeatable read",
        "default_transaction_read_only": "on",
        "synchronous_commit": "off",
        "lock_timeout": "1",
    }
    async with from_url(url) as store, from_url(url) as other:
        async with every_connection(url) as clients:
            for client in clients:
                for name, value in left.items():
                    await client.execute("SELECT set_config(%s, %s, false)", (name, value))
        try:
            await use(store)

            async def increment(through: PostgresStore) -> None:
                for _ in range(10):
                    while True:
                        row = await through.get(GetRequest(key="counter"))
                        value = b"%d" % (int(row.data or b"0") + 1)
                        try:
                            await through.set(SetRequest(key="counter", value=value, etag=row.etag))
                        except ETagMismatchError:
                            continue
                        break

            await store.set(SetRequest(key="counter", value=b"0"))
            await asyncio.gather(*(increment(each) for each in (store, other) for _ in range(5)))
            assert (await store.get(GetRequest(key="counter"))).data == b"100"
        finally:
            async with every_connection(url) as clients:
                for client in clients:
                    await client.execute("RESET ALL")
                    await client.commit()


async def test_our_settings_hold_in_every_transaction(url: str) -> None:
    parameters, texts = divide_url(url)
    session, facts = await Connector(parameters, PostgresOptions().changed(texts)).connect()
    assert facts.pooled
    assert await session.rows(b"SHOW enable_seqscan") == [("off",)]
    assert await session.rows(b"SHOW statement_timeout") == [("10s",)]
    with pytest.raises(psycopg.Error):
        await session.rows(b"SELECT 1/0")
    assert session.idle
    await session.aclose()


async def test_a_watch_that_would_be_told_nothing_is_not_offered(url: str) -> None:
    async with from_url(url) as store:
        assert Feature.WATCH not in store.features
        with pytest.raises(FeatureMissingError, match="pooler"):
            store.watch("", "")


async def test_a_store_outlives_its_pooler_and_the_server_behind_it(new_server: NewServer) -> None:
    pooler = new_server("pgbouncer")
    assert isinstance(pooler, PgBouncer)
    acknowledged: asyncio.Queue[str] = asyncio.Queue()

    async def write(store: PostgresStore, partition: str) -> None:
        for turn in range(100):
            while True:
                try:
                    await store.set(SetRequest(key=f"{turn}", value=b"", partition=partition))
                except (StoreUnavailableError, CommitOutcomeUnknownError):
                    await asyncio.sleep(0.02)
                else:
                    acknowledged.put_nowait(partition)
                    break

    partitions = [f"p{number}" for number in range(5)]
    async with from_url(pooler.fresh_url()) as store:
        async with asyncio.TaskGroup() as group:
            for partition in partitions:
                group.create_task(write(store, partition))
            for each in (pooler, pooler.server):
                for _ in range(50):
                    await acknowledged.get()
                await asyncio.to_thread(each.kill)
                await asyncio.to_thread(each.start)
        rows = [len([item async for item in store.scan(each, "", "")]) for each in partitions]
        assert rows == [100] * len(partitions)
