"""Where a URL may say that a server is: at an address of IPv6, at a Unix socket."""

from __future__ import annotations

import socket
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest

from persistence import GetRequest, SetRequest, connect
from tests.support.relay import Relay
from tests.support.servers import KINDS, Server
from tests.support.servers._postgresql import PostgresqlServer

pytestmark = pytest.mark.server


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


async def use(url: str) -> str:
    """Write and read; what the store says of itself."""
    async with connect(url) as store:
        await store.set(SetRequest(key="key", value=b"value"))
        assert (await store.get(GetRequest(key="key"))).data == b"value"
        return repr(store)


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("kind", KINDS)
async def test_address_of_ipv6_will_do(kind: str, server_of: Callable[[str], Server]) -> None:
    server = server_of(kind)
    async with Relay.to(server.port, "::1") as relay:
        url = urlsplit(server.fresh_url())
        user = url.netloc.rpartition("@")[0]
        place = f"[::1]:{relay.port}"
        said = await use(url._replace(netloc=f"{user}@{place}" if user else place).geturl())
    assert "::1" in said


async def test_unix_socket_of_postgresql_will_do(server_of: Callable[[str], Server]) -> None:
    server = server_of("postgresql")
    if not isinstance(server, PostgresqlServer):
        pytest.skip("the server may be on another machine")
    folder = server.folder.path
    options = f"port={server.port}&{urlsplit(server.fresh_url()).query}"
    for url in (
        f"postgresql://postgres@/postgres?host={folder}&{options}",
        f"postgresql://postgres@{str(folder).replace('/', '%2F')}/postgres?{options}",
    ):
        assert str(folder) in await use(url)
