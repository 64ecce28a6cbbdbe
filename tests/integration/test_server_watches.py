"""Watches whose connection breaks again and again: whoever looks for himself at a RESYNC misses nothing."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from typing import Protocol
from urllib.parse import urlsplit

import pytest

from persistence import (
    Change,
    ChangeKind,
    OrderedStore,
    SetRequest,
    StoreUnavailableError,
    WatchableStore,
    connect,
    require,
)
from tests.support.relay import Relay
from tests.support.servers import Server

pytestmark = pytest.mark.server

_WRITES = 150
_PATIENCE_SECONDS = 60


class _Readable(OrderedStore, WatchableStore, Protocol):
    """What a reader needs."""


async def see_all(store: _Readable, changes: AsyncIterator[Change], expected: set[str]) -> None:
    """Return when everything that is expected was told of, or found after a RESYNC."""
    seen: set[str] = set()
    async for change in changes:
        if change.kind is ChangeKind.KEY:
            seen.add(change.key)
        else:
            seen |= await found(store)
        if seen >= expected:
            return


async def found(store: OrderedStore) -> set[str]:
    while True:
        try:
            return {item.key async for item in store.scan("p", "", "")}
        except StoreUnavailableError:
            continue  # the connection was broken again


@pytest.mark.parametrize("kind", ["postgresql", "valkey", "etcd"])
async def test_nothing_is_missed_however_often_the_connection_breaks(
    kind: str, server_of: Callable[[str], Server]
) -> None:
    server = server_of(kind)
    url = server.fresh_url()
    keys = [f"{number:03}" for number in range(_WRITES)]
    async with Relay.to(server.port) as relay, connect(url) as writer:
        parts = urlsplit(url)
        user, at, _ = parts.netloc.rpartition("@")
        through = parts._replace(netloc=f"{user}{at}127.0.0.1:{relay.port}").geturl()
        async with require(connect(through), _Readable) as store, asyncio.timeout(_PATIENCE_SECONDS):
            reader = asyncio.create_task(see_all(store, store.watch("p", ""), set(keys)))
            for key in keys:
                await writer.set(SetRequest(partition="p", key=key, value=b""))
                if random.random() < 0.1:
                    relay.break_connections()
                    # Some of the breaks meet a watch that is there again, and some one that is not yet.
                    await asyncio.sleep(random.random() / 10)
            await reader
