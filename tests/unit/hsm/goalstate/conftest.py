"""Clocks, databases and worlds for the tests of the goal-state engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hsm.testing import FakeClock
from tests.support.databases import Database, new_database
from tests.support.switches import World


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(params=["memory", "sqlite"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    async with new_database(request.param, tmp_path) as opened:
        yield opened


@pytest.fixture
def world() -> World:
    return World(FakeClock())
