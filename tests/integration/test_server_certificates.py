"""Certificates that are replaced while a store is open: the next connection goes by the new ones."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from persistence import (
    CommitOutcomeUnknownError,
    GetRequest,
    SetRequest,
    Store,
    StoreUnavailableError,
    connect,
)
from tests.conftest import NewServer
from tests.support.servers._server import LocalServer
from tests.support.servers._tls import Certificate

pytestmark = pytest.mark.server

_PATIENCE_SECONDS = 60


async def write(store: Store, value: bytes) -> None:
    await store.set(SetRequest(key="key", value=value))
    assert (await store.get(GetRequest(key="key"))).data == value


async def write_at_last(store: Store, value: bytes) -> None:
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while True:
            try:
                return await write(store, value)
            except (StoreUnavailableError, CommitOutcomeUnknownError):
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("kind", ["postgresql", "mariadb", "redis", "etcd"])
async def test_connections_go_by_the_certificates_that_there_are_now(
    kind: str, new_server: NewServer, tmp_path: Path
) -> None:
    server = new_server(kind, tls=True)
    assert isinstance(server, LocalServer)
    assert server.ca_file is not None
    trusted = tmp_path / "ca.pem"
    trusted.write_bytes(server.ca_file.read_bytes())
    url = server.url.replace(str(server.ca_file), str(trusted))
    async with connect(f"{url}&connect_timeout=2&request_timeout=2") as store:
        await write(store, b"1")
        server.stop()
        Certificate.issue(server.folder)
        server.start()
        with pytest.raises((StoreUnavailableError, CommitOutcomeUnknownError)):
            await write(store, b"2")
        with pytest.raises(StoreUnavailableError):
            await store.get(GetRequest(key="key"))
        trusted.write_bytes(server.ca_file.read_bytes())
        await write_at_last(store, b"3")
