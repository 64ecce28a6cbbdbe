"""Statements that go to PostgreSQL together: what they answer, and what is left when one of them fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow

from persistence.stores.postgresql.exchange import Exchange, Statement
from persistence.stores.postgresql.packing import Texts, adapt
from tests.support.servers import Server

pytestmark = pytest.mark.server

BEGIN: Statement = (b"BEGIN", ())
COMMIT: Statement = (b"COMMIT", ())
PREPARED = b"SELECT count(*) FROM pg_prepared_statements"


@asynccontextmanager
async def connected(server: Server) -> AsyncIterator[AsyncConnection[TupleRow]]:
    url = urlsplit(server.url)._replace(query="").geturl()
    async with await AsyncConnection.connect(url, autocommit=True) as connection:
        adapt(connection)
        yield connection


@pytest.fixture
def server(server_of: Callable[[str], Server]) -> Server:
    return server_of("postgresql")


@pytest.mark.parametrize("prepare", [True, False])
async def test_each_statement_has_its_answer(server: Server, prepare: bool) -> None:
    async with connected(server) as connection:
        exchange = Exchange(connection, prepare=prepare)
        for _ in range(2):
            one, two, three = await exchange.run(
                (b"SELECT %b::text, 7 %% 4", ("ä",)),
                (b"SELECT n FROM unnest(%b::text[]) AS n WHERE n <> %b", (Texts(["a", "b", "c"]), "b")),
                (b"SELECT 1 WHERE false", ()),
            )
            assert one == ([("ä", 3)], 1)
            assert two.rows == [("a",), ("c",)]
            assert three == ([], 0)


@pytest.mark.parametrize("prepare", [True, False])
async def test_changed_rows_are_counted(server: Server, prepare: bool) -> None:
    async with connected(server) as connection:
        exchange = Exchange(connection, prepare=prepare)
        await exchange.run((b"CREATE TEMPORARY TABLE t (n int)", ()))
        answers = await exchange.run(
            BEGIN,
            (b"INSERT INTO t SELECT generate_series(1, 3)", ()),
            (b"DELETE FROM t WHERE n > 1", ()),
            COMMIT,
        )
        assert [answer.affected for answer in answers] == [0, 3, 2, 0]


async def test_refused_statement_leaves_the_connection_in_its_transaction(server: Server) -> None:
    async with connected(server) as connection:
        exchange = Exchange(connection, prepare=True)
        with pytest.raises(psycopg.errors.DivisionByZero):
            await exchange.run(BEGIN, (b"SELECT 1 / 0", ()), (b"SELECT 2", ()), COMMIT)
        assert connection.info.transaction_status is TransactionStatus.INERROR
        await exchange.run((b"ROLLBACK", ()))
        (answer,) = await exchange.run((b"SELECT 2", ()))
        assert answer.rows == [(2,)]


async def test_statement_is_prepared_once_also_when_it_was_sent_after_one_that_was_refused(
    server: Server,
) -> None:
    async with connected(server) as connection:
        exchange = Exchange(connection, prepare=True)
        with pytest.raises(psycopg.errors.UndefinedTable):
            await exchange.run((PREPARED, ()), (b"SELECT * FROM nowhere", ()), (b"SELECT 2", ()))
        statements: list[Statement] = [(b"SELECT 2", ()), (b"SELECT 2", ()), (PREPARED, ())]
        first = await exchange.run(*statements)
        # The one of the exchange that failed is left over.
        assert first[-1].rows == [(3,)]
        assert await exchange.run(*statements) == first


async def test_parameter_that_cannot_be_sent_leaves_the_connection_as_it_was(server: Server) -> None:
    async with connected(server) as connection:
        exchange = Exchange(connection, prepare=True)
        with pytest.raises(psycopg.ProgrammingError, match="adapt"):
            await exchange.run(BEGIN, (b"SELECT %b::text", (object(),)))
        assert connection.info.transaction_status is TransactionStatus.IDLE


async def test_large_values_go_both_ways_at_once(server: Server) -> None:
    value = b"x" * 8_000_000
    async with connected(server) as connection:
        exchange = Exchange(connection, prepare=True)
        answers = await exchange.run(*[(b"SELECT %b::bytea", (value,))] * 5)
        assert all(answer.rows == [(value,)] for answer in answers)


async def test_lost_connection_is_closed_and_the_server_s_reason_told(server: Server) -> None:
    async with connected(server) as connection:
        exchange = Exchange(connection, prepare=True)
        with pytest.raises(psycopg.errors.AdminShutdown):
            await exchange.run((b"SELECT pg_terminate_backend(pg_backend_pid())", ()), (b"SELECT 1", ()))
        assert connection.closed
        with pytest.raises(psycopg.OperationalError):
            await exchange.run((b"SELECT 1", ()))


async def test_server_ends_a_transaction_that_is_left_open_between_two_exchanges(server: Server) -> None:
    async with connected(server) as connection:
        exchange = Exchange(connection, prepare=True)
        await exchange.run((b"SET idle_in_transaction_session_timeout = 20", ()))
        await exchange.run(BEGIN, (b"SELECT 1", ()))
        farewell = asyncio.Event()
        asyncio.get_running_loop().add_reader(connection.fileno(), farewell.set)
        async with asyncio.timeout(20):
            await farewell.wait()
        asyncio.get_running_loop().remove_reader(connection.fileno())
        with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
            await exchange.run((b"SELECT 2", ()))
