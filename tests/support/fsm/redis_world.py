"""Data on Redis, Valkey or a cluster that stores of machines are tested on, also as other programs see them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from types import TracebackType
from typing import Final, Self, Unpack

from hsm.fsm.redis import RedisStore, RedisStoreOptions
from tests.conftest import NewServer
from tests.support.fsm.world import Kept
from tests.support.raw_redis import RawRedis
from tests.support.servers import Server

__all__ = ["PATIENCE", "RedisWorld", "raw_redis"]

_DATABASE: Final = 9
# The machine may be busy, and a test that waits for nothing is not slowed down by patience.
PATIENCE: Final = timedelta(seconds=10)


def raw_redis(kind: str, server_of: Callable[[str], Server], new_server: NewServer) -> RawRedis:
    """A database of the session's server that no other test uses; of a server of one's own if it is somebody else's."""
    server = server_of(kind)
    if not server.controllable:
        server = new_server(kind)
    return RawRedis(server, 0 if kind == "valkey-cluster" else _DATABASE)


class RedisWorld:
    """Data on a server, in a database that is empty at the beginning."""

    def __init__(self, raw: RawRedis) -> None:
        self.raw = raw
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        self.raw.clear()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def open(self, *, namespace: str = "default", **kept: Unpack[Kept]) -> RedisStore:
        raw = self.raw
        store = RedisStore(
            raw.address,
            raw.is_cluster,
            raw.database,
            PATIENCE,
            namespace=namespace,
            options=RedisStoreOptions(**kept),
        )
        return await self._stack.enter_async_context(store)

    async def wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds)  # keys expire by the server's clock

    async def damage(self, name: str, machine: str, event_id: str, value: bytes) -> None:
        self.raw.execute("HSET", f"hsm:{{fsm:{name}#{machine}}}:requests", event_id, value)

    async def set_apart(self, name: str, machine: str, event_id: str) -> bytes | None:
        found = self.raw.execute("HGET", f"hsm:{{fsm:{name}#{machine}}}:damaged", event_id)
        assert found is None or isinstance(found, bytes)
        return found
