"""Peer: single commands through the module `sqlite3`, a transaction each, as durable as our store.

One connection in a thread of its own, which is quicker than several that wait for each other's locks.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Final

__all__ = ["Commands", "commands"]

_SCHEMA: Final = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
CREATE TABLE entry (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE member (key TEXT NOT NULL, member TEXT NOT NULL, PRIMARY KEY (key, member)) WITHOUT ROWID;
"""


class Commands:
    """Keys with values and keys with sets."""

    def __init__(self, connection: sqlite3.Connection, thread: ThreadPoolExecutor) -> None:
        self._connection = connection
        self._thread = thread

    async def get(self, key: str) -> bytes:
        ((value,),) = await self._execute("SELECT value FROM entry WHERE key = ?", key)
        return bytes(value)

    async def set(self, key: str, value: bytes) -> None:
        await self._execute("INSERT OR REPLACE INTO entry VALUES (?, ?)", key, value)

    async def add(self, key: str, member: str) -> None:
        await self._execute("INSERT OR IGNORE INTO member VALUES (?, ?)", key, member)

    async def remove(self, key: str, member: str) -> None:
        await self._execute("DELETE FROM member WHERE key = ? AND member = ?", key, member)

    async def _execute(self, statement: str, *parameters: str | bytes) -> list[tuple[bytes]]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._run, statement, parameters)

    def _run(self, statement: str, parameters: tuple[str | bytes, ...]) -> list[tuple[bytes]]:
        return self._connection.execute(statement, parameters).fetchall()


@asynccontextmanager
async def commands(path: str) -> AsyncIterator[Commands]:
    """A client of a new file."""
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as thread:

        def connect() -> sqlite3.Connection:
            connection = sqlite3.connect(path, isolation_level=None)  # each statement is a transaction
            connection.executescript(_SCHEMA)
            return connection

        connection = await loop.run_in_executor(thread, connect)
        try:
            yield Commands(connection, thread)
        finally:
            await loop.run_in_executor(thread, connection.close)
