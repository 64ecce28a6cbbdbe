"""Peer: Valkey by redis-py, one call of a script that checks and writes for each multi, on a pool of connections.

A row is a string of its etag and its value, and its key is all that knows it: there is no index to scan by,
which our store keeps. The script is loaded before and called by its digest. A multi that finds no
connection free waits for one in the order of arrival; redis-py's own pool that waits is slower.
"""

from __future__ import annotations

import asyncio
from typing import Final
from urllib.parse import urlsplit

from redis.asyncio import Redis

from tests.benchmarks.peers.rows import CONNECTIONS, VALUE, Rows, multis_a_second, new_etag

__all__ = ["multis"]

_CHECK_AND_WRITE: Final = """
for i = 1, 2 do
  if redis.call('GETRANGE', KEYS[i], 0, 15) ~= ARGV[i] then
    return 0
  end
end
local row = ARGV[3] .. ARGV[4]
redis.call('SET', KEYS[2], row)
redis.call('SET', KEYS[3], row)
return 1
"""


def multis(url: str, concurrency: int, seconds: float) -> float:
    """Multis a second, below a prefix of keys that stands for the URL's."""
    return asyncio.run(_multis(url, concurrency, seconds))


async def _multis(url: str, concurrency: int, seconds: float) -> float:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    async with Redis(
        host=parts.hostname, port=parts.port, password=parts.password, max_connections=CONNECTIONS
    ) as client:
        digest = await client.script_load(_CHECK_AND_WRITE)
        return await multis_a_second(_PooledRows(client, parts.query, digest), concurrency, seconds)


class _PooledRows(Rows[str]):
    def __init__(self, client: Redis, prefix: str, digest: str) -> None:
        self._client = client
        self._prefix = prefix
        self._digest = digest
        self._free = asyncio.Semaphore(CONNECTIONS)

    def _key(self, partition: str, key: str) -> str:
        return f"{self._prefix}{{{partition}}}{key}"

    async def put(self, partition: str, key: str) -> str:
        etag = new_etag()
        async with self._free:
            await self._client.set(self._key(partition, key), etag.encode() + VALUE)
        return etag

    async def multi(self, partition: str, fence: str, node: str, etag: str, task: str) -> str:
        new = new_etag()
        keys = (self._key(partition, "fence"), self._key(partition, node), self._key(partition, task))
        async with self._free:
            answer = await self._client.evalsha(self._digest, 3, *keys, fence, etag, new, VALUE)
        if answer != 1:
            raise RuntimeError(f"a condition does not hold in partition {partition!r}")
        return new
