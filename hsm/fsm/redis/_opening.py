"""Opening: everything that needs the client library, which is imported with this module."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import attrs

from hsm.fsm.errors import InvalidDataError
from hsm.fsm.redis._changes import Writer
from hsm.fsm.redis._cluster import ClusterWriter
from hsm.fsm.redis._connections import Connections
from hsm.fsm.redis._layout import Layout
from hsm.fsm.redis._single import SingleWriter
from hsm.fsm.redis.options import RedisStoreOptions
from persistence.stores.redis.settings import Address, RedisOptions, Target

__all__ = ["Opened", "open_connections"]

_PORT: Final = 6379


@attrs.frozen
class Opened:
    """What a store uses."""

    connections: Connections
    layout: Layout
    writer: Writer


def open_connections(
    address: str, *, is_cluster: bool, db: int, namespace: str, options: RedisStoreOptions
) -> Opened:
    """Make what a store uses; nothing is connected yet.

    Raises:
        InvalidDataError: the address is none.
    """
    seeds = [_address(each) for each in address.split(",") if each.strip()]
    if not seeds or (len(seeds) > 1 and not is_cluster):
        raise InvalidDataError(
            f"address {address!r} is not host:port, or of a cluster several with commas between"
        )
    if is_cluster and db:
        raise InvalidDataError(f"a cluster has no database but number 0, and not {db}")
    host, port = seeds[0]
    target = Target(
        host=host,
        port=port,
        database=db,
        username=options.username,
        password=options.password,
        cluster=is_cluster,
        tls=options.tls,
    )
    settings = RedisOptions(
        tls_ca=options.tls_ca,
        tls_cert=options.tls_cert,
        tls_key=options.tls_key,
        tls_check_hostname=options.tls_check_hostname,
    )
    connections = Connections(target, seeds, settings)
    layout = Layout(namespace, cluster=is_cluster)
    make = ClusterWriter if is_cluster else SingleWriter
    writer = make(
        connections, layout, milliseconds_of(options.event_ttl), milliseconds_of(options.outcome_ttl)
    )
    return Opened(connections, layout, writer)


def milliseconds_of(ttl: timedelta) -> int:
    """A time to live as Redis takes it; 0 for one without an end.

    Raises:
        InvalidDataError: it is negative, or too short.
    """
    milliseconds = ttl // timedelta(milliseconds=1)
    if ttl < timedelta() or (ttl and not milliseconds):
        raise InvalidDataError(f"a time to live of {ttl} is none; a millisecond is the shortest")
    return milliseconds


def _address(text: str) -> Address:
    host, colon, port = text.strip().rpartition(":")
    if not colon:
        return text.strip(), _PORT
    if not host or not (port.isascii() and port.isdecimal() and 0 < int(port[:6]) < 65536):
        raise InvalidDataError(f"address {text!r} is not host:port")
    return host.strip("[]"), int(port)
