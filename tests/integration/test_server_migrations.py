"""A newer release opens the database of programs that go on with the older one; and another that has to be alone."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Sequence
from typing import Final

import pytest

from persistence import (
    GetRequest,
    Metadata,
    SetRequest,
    Store,
    StoreCorruptError,
    StoreUnavailableError,
    connect,
)
from persistence.migrations import Migration
from persistence.stores.mariadb import sql as mariadb_sql
from tests.support.servers import Server

pytestmark = pytest.mark.server

_STATEMENTS: Final = {
    "postgresql": ("ALTER TABLE {schema}.kv ADD COLUMN news int NOT NULL DEFAULT 7",),
    "mariadb": ("ALTER TABLE hsm_kv ADD COLUMN IF NOT EXISTS news int NOT NULL DEFAULT 7",),
}


def install(kind: str, release: Sequence[Migration], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process be of a release that knows these migrations, too."""
    if kind == "mariadb":
        known = mariadb_sql.migrations("hsm_")
        monkeypatch.setattr("persistence.stores.mariadb.store.migrations", lambda _: [*known, *release])
        return
    place = {
        "postgresql": "persistence.stores.postgresql.sql._MIGRATIONS",
        "valkey": "persistence.stores.redis.schema.MIGRATIONS",
        "etcd": "persistence.stores.etcd.schema.MIGRATIONS",
    }[kind]
    module, _, name = place.rpartition(".")
    monkeypatch.setattr(place, (*getattr(importlib.import_module(module), name), *release))


async def write(store: Store, key: str, *others: Store) -> None:
    await store.set(SetRequest(key=key, value=key.encode()))
    for each in (store, *others):
        assert (await each.get(GetRequest(key=key))).data == key.encode()


@pytest.mark.parametrize("kind", ["postgresql", "mariadb", "valkey", "etcd"])
async def test_older_and_newer_releases_share_a_database(
    kind: str, server_of: Callable[[str], Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server_of(kind).fresh_url()
    newer = Migration(2, _STATEMENTS.get(kind, ()), oldest=1)
    alone = Migration(3, (), oldest=2)
    async with connect(url) as old:
        await write(old, "before")
        with monkeypatch.context() as release:
            install(kind, [newer], release)
            with pytest.raises(StoreUnavailableError, match="older version 1, and create=false"):
                await connect(url).init(Metadata({"create": "false"}))
            many = [connect(url) for _ in range(4)]
            await asyncio.gather(*(store.init(Metadata()) for store in many), write(old, "meanwhile"))
            await write(many[0], "new", old, *many[1:])
            await write(old, "old", *many)
            await asyncio.gather(*(store.aclose() for store in many))
            async with connect(f"{url}{'&' if '?' in url else '?'}create=false") as unchanged:
                await write(unchanged, "unchanged", old)
        async with connect(url) as old_again:
            await write(old_again, "again", old)
        with monkeypatch.context() as release:
            install(kind, [newer, alone], release)
            async with connect(url) as new:
                await write(new, "alone", old)
        with pytest.raises(
            StoreCorruptError, match="schema version 3, which needs a release that knows version 2"
        ):
            await connect(url).init(Metadata())
