"""Real database servers for tests, benchmarks and crash scripts: started on loopback, killed, removed.

with running("postgresql", durable=True) as server:
    url = server.fresh_url()
    server.kill()
    server.start()
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from tests.support.servers._cluster import ValkeyCluster
from tests.support.servers._etcd import EtcdServer
from tests.support.servers._external import external_server
from tests.support.servers._mariadb import MariadbServer
from tests.support.servers._postgresql import PostgresqlServer
from tests.support.servers._process import MissingServerError, StartError
from tests.support.servers._redis import RedisServer, find_redis, find_valkey
from tests.support.servers._server import Options, Server

__all__ = ["KINDS", "MissingServerError", "Server", "StartError", "running", "start_server"]

_MAKERS: Final[dict[str, Callable[[Options], Server]]] = {
    "postgresql": PostgresqlServer,
    "mariadb": MariadbServer,
    "valkey": lambda options: RedisServer("valkey", find_valkey(tls=options.tls), options),
    "redis": lambda options: RedisServer("redis", find_redis(), options),
    "valkey-cluster": ValkeyCluster,
    "etcd": EtcdServer,
}

KINDS: Final = tuple(_MAKERS)


def start_server(
    kind: str, *, durable: bool = False, tls: bool = False, password: str | None = None
) -> Server:
    """Start a server with nothing in it; it ends at the latest with this process.

    Without options it is the one that an environment variable names, if one does, which cannot be
    controlled; see `Server.controllable`.

    Raises:
        MissingServerError: it is not installed.
        StartError: it does not start.
    """
    options = Options(durable, tls, password)
    if options == Options() and (external := external_server(kind)) is not None:
        return external
    server = _MAKERS[kind](options)
    try:
        server.start()
    except BaseException:
        server.destroy()
        raise
    return server


@contextmanager
def running(
    kind: str, *, durable: bool = False, tls: bool = False, password: str | None = None
) -> Iterator[Server]:
    """A server for the time of a block."""
    server = start_server(kind, durable=durable, tls=tls, password=password)
    try:
        yield server
    finally:
        server.destroy()
