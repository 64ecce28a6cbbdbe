"""Tests of aggregates run on memory, SQLite, PostgreSQL and Valkey, unless they have no use for a database."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from tests.support.journals import KINDS, World, database_url, world_of
from tests.support.servers import Server


@pytest.fixture(scope="module", params=KINDS)
def url(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    server_of: Callable[[str], Server],
) -> str:
    return database_url(request.param, tmp_path_factory.mktemp("journal"), server_of)


@pytest.fixture
async def world(url: str) -> AsyncIterator[World]:
    async with world_of(url) as opened:
        yield opened
