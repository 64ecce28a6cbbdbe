"""Where the server is, and the options of a store on it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Final
from urllib.parse import unquote

import attrs

from persistence.errors import InvalidRequestError
from persistence.settings import Properties, host_and_port, split_url

__all__ = ["Address", "RedisOptions", "Target", "parse_url"]

Address = tuple[str, int]
"""Host and port of a node."""

_PORT: Final = 6379
_DATABASE_DIGITS: Final = 9
_PASSWORD_VARIABLES: Final = ("VALKEYCLI_AUTH", "REDISCLI_AUTH")


@attrs.frozen
class Target:
    """What a URL names: a server, or one node of a cluster through which the others are found."""

    host: str
    port: int
    database: int = 0
    username: str | None = None
    password: str | None = attrs.field(default=None, repr=False)
    cluster: bool = False
    tls: bool = False

    def __str__(self) -> str:
        kind = "redis+cluster" if self.cluster else "redis"
        place = host_and_port(self.host, self.port)
        return f"{kind}://{place}" + ("" if self.cluster else f"/{self.database}")


@attrs.frozen
class RedisOptions:
    """How to use a server. In a URL or in `Metadata` times are given in seconds.

    Attributes:
        prefix: begins every key of ours; stores with other prefixes, and other applications, may share the
            server. Without braces and NUL, and not empty.
        lanes: connections to a node that write, each for its share of the partitions. More of them help where
            the server's disk is slow, as one that syncs at every write syncs once for all connections.
        readers: the most connections to a node that read.
        connect_timeout: how long to wait for a connection, and for news of a commit that broke off.
        request_timeout: how long to wait for an answer, before the server is held to hang.
        wait_timeout: how long a write with strong consistency waits for the replicas.
        cleanup_interval: how often index entries of expired rows are looked for; reads skip them at once.
        create: whether our mark is made where there is none yet, and an older one brought up to date; else
            that is `StoreUnavailableError`.
        allow_eviction: use a server whose `maxmemory-policy` lets it throw rows away.
        nodes: further nodes of the cluster to ask where the others are: "host:port,host:port".
        tls_ca: a file with the certificates to trust; else the system's.
        tls_cert: a file with a certificate of our own, which the server may ask for.
        tls_key: a file with its key.
        tls_check_hostname: whether the server's certificate has to name the host.
    """

    prefix: str = "hsm:"
    lanes: int = 4
    readers: int = 8
    connect_timeout: timedelta = timedelta(seconds=5)
    request_timeout: timedelta = timedelta(seconds=10)
    wait_timeout: timedelta = timedelta(seconds=1)
    cleanup_interval: timedelta = timedelta(minutes=1)
    create: bool = True
    allow_eviction: bool = False
    nodes: str = ""
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    tls_check_hostname: bool = True

    def changed(self, texts: Mapping[str, str]) -> RedisOptions:
        """These options with some replaced by texts.

        Raises:
            InvalidRequestError: an unknown name, or a value that is none.
        """
        with Properties("Redis", texts) as properties:
            options = RedisOptions(
                prefix=properties.text("prefix", self.prefix),
                lanes=properties.connections("lanes", self.lanes),
                readers=properties.connections("readers", self.readers),
                connect_timeout=properties.seconds("connect_timeout", self.connect_timeout),
                request_timeout=properties.seconds("request_timeout", self.request_timeout),
                wait_timeout=properties.seconds("wait_timeout", self.wait_timeout),
                cleanup_interval=properties.seconds("cleanup_interval", self.cleanup_interval),
                create=properties.flag("create", self.create),
                allow_eviction=properties.flag("allow_eviction", self.allow_eviction),
                nodes=properties.text("nodes", self.nodes),
                tls_ca=properties.text("tls_ca", self.tls_ca),
                tls_cert=properties.text("tls_cert", self.tls_cert),
                tls_key=properties.text("tls_key", self.tls_key),
                tls_check_hostname=properties.flag("tls_check_hostname", self.tls_check_hostname),
            )
        if not options.prefix or set(options.prefix) & set("{}\0"):
            raise InvalidRequestError(
                f"Redis option prefix={options.prefix!r} is empty, or holds a brace or NUL"
            )
        options.further_nodes()
        return options

    def further_nodes(self) -> list[Address]:
        """The addresses in `nodes`.

        Raises:
            InvalidRequestError: one of them is none.
        """
        addresses: list[Address] = []
        for entry in filter(None, self.nodes.split(",")):
            host, _, port = entry.strip().rpartition(":")
            if not host or not (port.isascii() and port.isdecimal() and 0 < int(port[:6]) < 65536):
                raise InvalidRequestError(f"Redis option nodes={self.nodes!r} is not host:port,host:port")
            addresses.append((host.strip("[]"), int(port)))
        return addresses


def parse_url(url: str) -> tuple[Target, dict[str, str]]:
    """The target of a URL, and the options in its query.

    Without a password in the URL it is taken from the variable that the command line client uses:
    VALKEYCLI_AUTH or REDISCLI_AUTH.

    Raises:
        InvalidRequestError: the URL is none of ours; it is not quoted, as it may hold a password.
    """
    parts, options = split_url(url)
    secured, _, kind = parts.scheme.partition("+")
    cluster = kind == "cluster"
    path = parts.path.strip("/")
    if path and not (path.isascii() and path.isdecimal() and len(path) <= _DATABASE_DIGITS):
        raise InvalidRequestError("the path of a Redis URL is the number of a database: redis://host/0")
    if cluster and int(path or 0):
        raise InvalidRequestError("a Redis cluster has no databases but number 0; leave the path out")
    password = unquote(parts.password) if parts.password else None
    if password is None:
        found = (os.environ.get(name) for name in _PASSWORD_VARIABLES)
        password = next(filter(None, found), None)
    target = Target(
        host=parts.hostname or "localhost",
        port=parts.port or _PORT,
        database=int(path or 0),
        username=unquote(parts.username) if parts.username else None,
        password=password,
        cluster=cluster,
        tls=secured in {"rediss", "valkeys"},
    )
    return target, options
