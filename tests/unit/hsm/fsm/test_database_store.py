"""The store of machines on the storage contract, in memory and in a file."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.fsm.suite import (
    ConfigurationsSuite,
    EventsSuite,
    MachinesSuite,
    ManagerSuite,
    PendingSuite,
)
from tests.support.fsm.world import DatabaseWorld
from tests.support.stores import BACKENDS


@pytest.fixture(params=sorted(BACKENDS))
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[DatabaseWorld]:
    backend = BACKENDS[request.param](tmp_path)
    async with DatabaseWorld(backend.open_store, backend.clock.wait) as world:
        yield world


class TestManager(ManagerSuite): ...


class TestConfigurations(ConfigurationsSuite): ...


class TestMachines(MachinesSuite): ...


class TestEvents(EventsSuite): ...


class TestPending(PendingSuite): ...
