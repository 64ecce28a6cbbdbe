"""The store of machines on Redis, Valkey and a cluster does what every store of machines does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from tests.conftest import NewServer
from tests.support.fsm.redis_world import RedisWorld, raw_redis
from tests.support.fsm.suite import (
    ConfigurationsSuite,
    EventsSuite,
    MachinesSuite,
    ManagerSuite,
    PendingSuite,
)
from tests.support.servers import Server

pytestmark = pytest.mark.server


@pytest.fixture(params=["valkey", "redis", "valkey-cluster"])
async def world(
    request: pytest.FixtureRequest, server_of: Callable[[str], Server], new_server: NewServer
) -> AsyncIterator[RedisWorld]:
    async with RedisWorld(raw_redis(request.param, server_of, new_server)) as world:
        yield world


class TestManager(ManagerSuite): ...


class TestConfigurations(ConfigurationsSuite): ...


class TestMachines(MachinesSuite): ...


class TestEvents(EventsSuite): ...


class TestPending(PendingSuite): ...
