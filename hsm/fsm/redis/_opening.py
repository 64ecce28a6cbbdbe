"""Opening: everything that needs the client library, which is imported with this module."""

from __future__ import annotations

from typing import Final

import attrs

from hsm.fsm._lifetimes import ttl_of_event
from hsm.fsm.errors import InvalidDataError
from hsm.fsm.redis._base import Settings
from hsm.fsm.redis._changes import Writer
from hsm.fsm.redis._cluster import ClusterWriter
from hsm.fsm.redis._connections import Connections
from hsm.fsm.redis._layout import Layout
from hsm.fsm.redis._lifetimes import milliseconds_of
from hsm.fsm.redis._single import SingleWriter
from persistence.stores.redis.settings import Address, RedisOptions, Target

__all__ = ["Opened", "open_connections"]

_PORT: Final = 6379


@attrs.frozen
class Opened:
    """What a store uses."""

    connections: Connections
    layout: Layout
    writer: Writer


def open_connections(settings: Settings) -> Opened:
    """Make what a store uses; nothing is connected yet.

    Raises:
        InvalidDataError: the address is none.
    """
    address, is_cluster, options = settings.address, settings.is_cluster, settings.options
    seeds = [_address(each) for each in address.split(",") if each.strip()]
    if not seeds or (len(seeds) > 1 and not is_cluster):
        raise InvalidDataError(
            f"address {address!r} is not host:port, or of a cluster several with commas between"
        )
    if is_cluster and settings.db:
        raise InvalidDataError(f"a cluster has no database but number 0, and not {settings.db}")
    host, port = seeds[0]
    target = Target(
        host=host,
        port=port,
        database=settings.db,
        username=options.username,
        password=options.password,
        cluster=is_cluster,
        tls=options.tls,
    )
    files = RedisOptions(
        tls_ca=options.tls_ca,
        tls_cert=options.tls_cert,
        tls_key=options.tls_key,
        tls_check_hostname=options.tls_check_hostname,
    )
    connections = Connections(target, seeds, files)
    layout = Layout(settings.namespace, cluster=is_cluster)
    make = ClusterWriter if is_cluster else SingleWriter
    event_ttl = milliseconds_of(ttl_of_event(options.event_ttl, options.outcome_ttl))
    writer = make(connections, layout, event_ttl, milliseconds_of(options.outcome_ttl))
    return Opened(connections, layout, writer)


def _address(text: str) -> Address:
    host, colon, port = text.strip().rpartition(":")
    if not colon:
        return text.strip(), _PORT
    if not host or not (port.isascii() and port.isdecimal() and 0 < int(port[:6]) < 65536):
        raise InvalidDataError(f"address {text!r} is not host:port")
    return host.strip("[]"), int(port)
