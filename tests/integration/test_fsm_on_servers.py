"""The store of machines on the storage contract, on every kind of server."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from functools import partial

import pytest

import persistence
from persistence import EngineStore
from tests.support.fsm.suite import (
    ConfigurationsSuite,
    EventsSuite,
    MachinesSuite,
    ManagerSuite,
    PendingSuite,
)
from tests.support.fsm.world import DatabaseWorld
from tests.support.servers import KINDS, Server

pytestmark = pytest.mark.server


def open_store(url: str) -> EngineStore:
    return persistence.require(persistence.connect(url), EngineStore)


@pytest.fixture(scope="session")
def url_of(server_of: Callable[[str], Server]) -> Callable[[str], str]:
    """One place on each server for all tests, as each has a namespace of its own in it."""
    urls: dict[str, str] = {}

    def url_of_kind(kind: str) -> str:
        if kind not in urls:
            urls[kind] = server_of(kind).fresh_url()
        return urls[kind]

    return url_of_kind


@pytest.fixture(params=KINDS)
async def world(request: pytest.FixtureRequest, url_of: Callable[[str], str]) -> AsyncIterator[DatabaseWorld]:
    url = url_of(request.param)
    async with DatabaseWorld(partial(open_store, url), asyncio.sleep, apart=f"{uuid.uuid4()}/") as world:
        yield world


class TestManager(ManagerSuite): ...


class TestConfigurations(ConfigurationsSuite): ...


class TestMachines(MachinesSuite): ...


class TestEvents(EventsSuite): ...


class TestPending(PendingSuite): ...
