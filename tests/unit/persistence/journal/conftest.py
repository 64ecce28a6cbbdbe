"""Every test of the journal runs in memory, on SQLite, PostgreSQL and Valkey, unless it has no use for a store.

    HSM_TEST_DATABASES="etcd mariadb" pytest tests/unit/persistence/journal

runs them on others.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from hsm.testing import FakeClock
from persistence.journal import Journal
from persistence.store import EngineStore
from tests.support.databases import Database, new_database
from tests.support.servers import KINDS, Server

DATABASES = os.environ.get("HSM_TEST_DATABASES", "memory sqlite postgresql valkey").split()


@pytest.fixture(
    params=[pytest.param(kind, marks=pytest.mark.server if kind in KINDS else ()) for kind in DATABASES]
)
async def database(
    request: pytest.FixtureRequest, tmp_path: Path, server_of: Callable[[str], Server]
) -> AsyncIterator[Database]:
    if request.param in KINDS:
        opening = Database(server_of(request.param).fresh_url())
    else:
        opening = new_database(request.param, tmp_path)
    async with opening as opened:
        yield opened


@pytest.fixture
def store(database: Database) -> EngineStore:
    return database.store


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def journal(store: EngineStore) -> AsyncIterator[Journal]:
    async with Journal(store, "tests") as journal:
        yield journal
