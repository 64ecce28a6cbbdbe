"""The service and its clients, over loopback, in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hsm.fsm.database import DatabaseStore
from hsm.fsm.store import StoreManager
from tests.support.fsm.configurations import orders
from tests.support.fsm.service import (
    serving,
)
from tests.support.servers import Server

if TYPE_CHECKING:
    from persistence.proto.statemachine_pb2_grpc import StatemachineServiceAsyncStub

    Client = StatemachineServiceAsyncStub


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[StoreManager]:
    async with DatabaseStore(f"memory://{tmp_path.name}") as opened:
        yield opened


@pytest.fixture
async def client(store: StoreManager) -> AsyncIterator[Client]:
    async with serving(store) as opened:
        yield opened


@pytest.fixture
async def orders_client(client: Client) -> Client:
    await client.PutConfiguration(orders())
    return client


@pytest.fixture(
    params=[
        "memory",
        "sqlite",
        pytest.param("postgresql", marks=pytest.mark.server),
        pytest.param("valkey", marks=pytest.mark.server),
    ]
)
def url(request: pytest.FixtureRequest, tmp_path: Path, server_of: Callable[[str], Server]) -> str:
    if request.param == "memory":
        return f"memory://{tmp_path.name}"
    return (
        f"sqlite:///{tmp_path}/fsm.db" if request.param == "sqlite" else server_of(request.param).fresh_url()
    )
