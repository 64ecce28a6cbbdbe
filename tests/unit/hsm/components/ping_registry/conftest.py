"""Tests of the ping-registry workflow run on memory, SQLite, PostgreSQL and Valkey."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from hsm.components.ping_registry import Coordinator
from hsm.testing import FakeClock
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


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def coordinator(world: World, clock: FakeClock) -> Coordinator:
    return Coordinator(world.journal(clock), "reg", clock=clock)


@pytest.fixture
def other(world: World, clock: FakeClock) -> Coordinator:
    """A coordinator in another process."""
    return Coordinator(world.other_journal(clock), "reg", clock=clock)
