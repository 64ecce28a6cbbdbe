"""Every test of the engine runs on memory and on SQLite, unless it has no use for a database.

    HSM_TEST_DATABASES="postgresql etcd" pytest tests/unit/hsm/engine

runs them on servers.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from hsm.testing import FakeClock
from tests.support.databases import Database, new_database
from tests.support.jobs import World
from tests.support.servers import KINDS, Server


@pytest.fixture(params=os.environ.get("HSM_TEST_DATABASES", "memory sqlite").split())
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
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def world() -> World:
    return World()
