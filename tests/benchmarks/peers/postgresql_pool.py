"""Peer: PostgreSQL by psycopg, a transaction for each multi on a pool of connections.

BEGIN and a SELECT that locks both rows, one INSERT ... ON CONFLICT DO UPDATE of both rows, COMMIT. All are
prepared at once, and values go as binary. The fence is locked FOR SHARE, as the workers of a partition
would otherwise wait for each other's disk. psycopg's pipeline mode saves a round trip and costs more
than that on loopback, so it is not used. The transactions are wrong for keys that are absent: nothing
keeps two of them from writing one first, or from each writing what the other has checked.
"""

from __future__ import annotations

import asyncio
from typing import TypeAlias
from urllib.parse import parse_qs, urlsplit

from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from tests.benchmarks.peers.rows import CONNECTIONS, VALUE, Rows, multis_a_second, new_etag

__all__ = ["multis"]

_Pool: TypeAlias = AsyncConnectionPool[AsyncConnection[TupleRow]]

_TABLE = (
    'CREATE TABLE kv (p text COLLATE "C", k text COLLATE "C", e text NOT NULL, v bytea NOT NULL,'
    " PRIMARY KEY (p, k))"
)
_LOCK = (
    "WITH fence AS (SELECT k, e FROM kv WHERE p = %s AND k = 'fence' FOR SHARE),"
    " node AS (SELECT k, e FROM kv WHERE p = %s AND k = %s FOR UPDATE)"
    " SELECT k, e FROM fence UNION ALL SELECT k, e FROM node"
)
_REPLACE = " ON CONFLICT (p, k) DO UPDATE SET e = excluded.e, v = excluded.v"
_WRITE_ONE = "INSERT INTO kv VALUES (%s, %s, %s, %b)" + _REPLACE
_WRITE_TWO = "INSERT INTO kv VALUES (%s, %s, %s, %b), (%s, %s, %s, %b)" + _REPLACE


def multis(url: str, concurrency: int, seconds: float) -> float:
    """Multis a second; the option `schema` of the URL names the schema to make."""
    return asyncio.run(_multis(url, concurrency, seconds))


async def _multis(url: str, concurrency: int, seconds: float) -> float:
    parts = urlsplit(url)
    schema = sql.Identifier(parse_qs(parts.query)["schema"][0])

    async def configure(connection: AsyncConnection[TupleRow]) -> None:
        connection.prepare_threshold = 0
        async with connection.transaction():
            await connection.execute(sql.SQL("SET search_path TO {}").format(schema))

    async with AsyncConnectionPool(
        parts._replace(query="").geturl(),
        min_size=CONNECTIONS,
        max_size=CONNECTIONS,
        configure=configure,
        open=False,
    ) as pool:
        await pool.wait()
        async with pool.connection() as connection:
            await connection.execute(sql.SQL("CREATE SCHEMA {}").format(schema))
            await connection.execute(_TABLE)
        return await multis_a_second(_PooledRows(pool), concurrency, seconds)


class _PooledRows(Rows[str]):
    def __init__(self, pool: _Pool) -> None:
        self._pool = pool

    async def put(self, partition: str, key: str) -> str:
        etag = new_etag()
        async with self._pool.connection() as connection:
            await connection.execute(_WRITE_ONE, (partition, key, etag, VALUE))
        return etag

    async def multi(self, partition: str, fence: str, node: str, etag: str, task: str) -> str:
        new = new_etag()
        async with self._pool.connection() as connection:
            cursor = await connection.execute(_LOCK, (partition, partition, node))
            if dict(await cursor.fetchall()) != {"fence": fence, node: etag}:
                raise RuntimeError(f"a condition does not hold in partition {partition!r}")
            rows = (partition, node, new, VALUE, partition, task, new, VALUE)
            await connection.execute(_WRITE_TWO, rows)
        return new
