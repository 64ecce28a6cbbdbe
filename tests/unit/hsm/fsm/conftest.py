"""Data for machines, in every embedded database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hsm.fsm import DatabaseStore
from tests.support.fsm.processing import prepared
from tests.support.fsm.world import DatabaseWorld
from tests.support.stores import BACKENDS


@pytest.fixture(params=sorted(BACKENDS))
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[DatabaseWorld]:
    backend = BACKENDS[request.param](tmp_path)
    async with DatabaseWorld(backend.open_store, backend.clock.wait) as world:
        yield world


@pytest.fixture
async def store(world: DatabaseWorld) -> DatabaseStore:
    return await prepared(world)
