"""Every test of the engine runs on memory and on SQLite, unless it has no use for a database.

    HSM_TEST_DATABASES="postgresql etcd" pytest tests/unit/hsm/engine

runs them on servers.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from hsm.testing import FakeClock, TestEngine
from tests.support.clusters import EAST, RETENTION, WEST, Side, Two
from tests.support.databases import Database, new_database
from tests.support.jobs import World, small
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


@pytest.fixture
async def two(
    world: World, database: Database, clock: FakeClock, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Two]:
    (tmp_path / "west").mkdir()
    kind = request.node.callspec.params["database"]
    async with AsyncExitStack() as stack:
        other = await stack.enter_async_context(
            new_database(kind if kind in {"memory", "sqlite"} else "memory", tmp_path / "west")
        )
        sides: list[Side] = []
        for opened, cluster in ((database, EAST), (other, WEST)):
            engine = TestEngine(
                world.registry, opened.store, small(cluster=cluster, retention=RETENTION), clock=clock
            )
            sides.append(Side(opened, await stack.enter_async_context(engine)))
        yield Two(*sides)
