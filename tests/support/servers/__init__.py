"""Real database servers for tests, benchmarks and crash scripts: started on loopback, killed, removed.

with running("postgresql", durable=True) as server:
    url = server.fresh_url()
    server.kill()
    server.start()
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypedDict, Unpack

from tests.support.servers._cluster import ValkeyCluster
from tests.support.servers._etcd import EtcdServer
from tests.support.servers._external import external_server
from tests.support.servers._mariadb import MariadbServer
from tests.support.servers._pgbouncer import PgBouncer
from tests.support.servers._postgresql import PostgresqlServer
from tests.support.servers._process import MissingServerError, StartError
from tests.support.servers._redis import RedisServer, find_redis, find_valkey
from tests.support.servers._server import Options, Server

__all__ = ["KINDS", "MissingServerError", "Server", "ServerOptions", "StartError", "running", "start_server"]

_MAKERS: Final[dict[str, Callable[[Options], Server]]] = {
    "postgresql": PostgresqlServer,
    "mariadb": MariadbServer,
    "valkey": lambda options: RedisServer("valkey", find_valkey(tls=options.tls), options),
    "redis": lambda options: RedisServer("redis", find_redis(), options),
    "valkey-cluster": ValkeyCluster,
    "etcd": EtcdServer,
}

KINDS: Final = tuple(_MAKERS)

_POOLERS: Final[dict[str, Callable[[Options], Server]]] = {"pgbouncer": PgBouncer}


class ServerOptions(TypedDict, total=False):
    """What is asked of a server; see `Options`."""

    durable: bool
    tls: bool
    password: str | None
    own: bool


def start_server(kind: str, **options: Unpack[ServerOptions]) -> Server:
    """Start a server with nothing in it; it ends at the latest with this process.

    Without options it is the one that an environment variable names, if one does, which cannot be
    controlled; see `Server.controllable`.

    Raises:
        MissingServerError: it is not installed.
        StartError: it does not start.
    """
    wanted = Options(**options)
    if wanted == Options() and (external := external_server(kind)) is not None:
        return external
    server = (_MAKERS | _POOLERS)[kind](wanted)
    try:
        server.start()
    except BaseException:
        server.destroy()
        raise
    return server


@contextmanager
def running(kind: str, **options: Unpack[ServerOptions]) -> Iterator[Server]:
    """A server for the time of a block."""
    server = start_server(kind, **options)
    try:
        yield server
    finally:
        server.destroy()
