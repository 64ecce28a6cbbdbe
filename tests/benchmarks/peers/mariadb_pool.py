"""Peer: MariaDB by asyncmy, a transaction for each multi on a pool of connections.

A SELECT that locks both rows and begins the transaction, one INSERT ... ON DUPLICATE KEY UPDATE of both
rows, COMMIT; READ COMMITTED, so that there are no locks on gaps. The fence is locked in shared mode, as the
workers of a partition would otherwise wait for each other's disk. asyncmy is compiled, and has no
prepared statements. The transactions are naive, and wrong for keys that are absent: nothing keeps two of them
from writing one first, or from each writing what the other has checked.
"""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

from asyncmy import create_pool
from asyncmy.pool import Pool

from tests.benchmarks.peers.rows import CONNECTIONS, VALUE, Rows, multis_a_second, new_etag

__all__ = ["multis"]

_TABLE = (
    "CREATE TABLE kv (p VARBINARY(100), k VARBINARY(100), e VARBINARY(16) NOT NULL, v LONGBLOB NOT NULL,"
    " PRIMARY KEY (p, k))"
)
_LOCK = (
    "(SELECT k, e FROM kv WHERE p = %s AND k = 'fence' LOCK IN SHARE MODE)"
    " UNION ALL (SELECT k, e FROM kv WHERE p = %s AND k = %s FOR UPDATE)"
)
_REPLACE = " ON DUPLICATE KEY UPDATE e = VALUES(e), v = VALUES(v)"
_WRITE_ONE = "INSERT INTO kv VALUES (%s, %s, %s, %s)" + _REPLACE
_WRITE_TWO = "INSERT INTO kv VALUES (%s, %s, %s, %s), (%s, %s, %s, %s)" + _REPLACE


def multis(url: str, concurrency: int, seconds: float) -> float:
    """Multis a second in the URL's database."""
    return asyncio.run(_multis(url, concurrency, seconds))


async def _multis(url: str, concurrency: int, seconds: float) -> float:
    parts = urlsplit(url)
    pool = await create_pool(
        minsize=CONNECTIONS,
        maxsize=CONNECTIONS,
        host=parts.hostname,
        port=parts.port,
        user=parts.username,
        password=parts.password or "",
        db=parts.path.removeprefix("/"),
        init_command="SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
    )
    try:
        async with pool.acquire() as connection, connection.cursor() as cursor:
            await cursor.execute(_TABLE)
        return await multis_a_second(_PooledRows(pool), concurrency, seconds)
    finally:
        pool.close()
        await pool.wait_closed()


class _PooledRows(Rows[str]):
    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def put(self, partition: str, key: str) -> str:
        etag = new_etag()
        async with self._pool.acquire() as connection:
            async with connection.cursor() as cursor:
                await cursor.execute(_WRITE_ONE, (partition, key, etag, VALUE))
            await connection.commit()
        return etag

    async def multi(self, partition: str, fence: str, node: str, etag: str, task: str) -> str:
        new = new_etag()
        async with self._pool.acquire() as connection:
            async with connection.cursor() as cursor:
                await cursor.execute(_LOCK, (partition, partition, node))
                if dict(await cursor.fetchall()) != {b"fence": fence.encode(), node.encode(): etag.encode()}:
                    raise RuntimeError(f"a condition does not hold in partition {partition!r}")
                await cursor.execute(_WRITE_TWO, (partition, node, new, VALUE, partition, task, new, VALUE))
            await connection.commit()
        return new
