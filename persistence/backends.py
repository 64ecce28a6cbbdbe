"""The backends that come with the library: their schemes, what they can do, and what has to be installed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs

from persistence.store import Feature, Limits

__all__ = [
    "BACKENDS",
    "ETCD",
    "MARIADB",
    "MEMORY",
    "POSTGRESQL",
    "REDIS",
    "SQLITE",
    "Backend",
    "backend_of",
    "scheme_of",
]

_KIBIBYTE: Final = 1024
_MEBIBYTE: Final = 1024 * 1024


@attrs.frozen(kw_only=True)
class Backend:
    """One of our backends.

    Attributes:
        name: what people call the database.
        schemes: of its URLs; the first one is the usual one.
        example: a URL.
        module: has the function `from_url`, from a URL to a store that is not open yet.
        features: what it can do as it usually stands; an open store knows better.
        limits: what one request may hold as it usually stands; an open store knows better.
        extra: the extra of hsm-toolkit that brings its client library, "" if it needs none.
        requires: the modules of the client library.
    """

    name: str
    schemes: tuple[str, ...]
    example: str
    module: str
    features: frozenset[Feature]
    limits: Limits
    extra: str = ""
    requires: tuple[str, ...] = ()


_ALL: Final = frozenset(Feature)

MEMORY: Final = Backend(
    name="memory",
    schemes=("memory",),
    example="memory://name",
    module="persistence.stores.memory",
    features=_ALL,
    # The same as in SQLite, so that tests in memory meet the same limits.
    limits=Limits(
        operations=10_000, transaction_bytes=64 * _MEBIBYTE, key_bytes=2048, value_bytes=16 * _MEBIBYTE
    ),
)
SQLITE: Final = Backend(
    name="SQLite",
    schemes=("sqlite",),
    example="sqlite:///relative.db",
    module="persistence.stores.sqlite",
    features=_ALL - {Feature.WATCH},
    limits=Limits(
        operations=10_000, transaction_bytes=64 * _MEBIBYTE, key_bytes=2048, value_bytes=16 * _MEBIBYTE
    ),
    requires=("sqlite3",),
)
POSTGRESQL: Final = Backend(
    name="PostgreSQL",
    schemes=("postgresql", "postgres"),
    example="postgresql://user:password@host/database?schema=hsm",
    module="persistence.stores.postgresql",
    features=_ALL,
    limits=Limits(
        operations=10_000, transaction_bytes=64 * _MEBIBYTE, key_bytes=2048, value_bytes=16 * _MEBIBYTE
    ),
    extra="postgresql",
    requires=("psycopg",),
)
MARIADB: Final = Backend(
    name="MariaDB, MySQL",
    schemes=("mysql", "mariadb"),
    example="mysql://user:password@host/database",
    module="persistence.stores.mariadb",
    features=_ALL - {Feature.WATCH},
    # Two key columns share the 3 072 bytes of an InnoDB index; a value has to fit into max_allowed_packet.
    limits=Limits(
        operations=10_000, transaction_bytes=64 * _MEBIBYTE, key_bytes=1536, value_bytes=16 * _MEBIBYTE
    ),
    extra="mariadb",
    requires=("asyncmy",),
)
REDIS: Final = Backend(
    name="Redis, Valkey",
    schemes=("redis", "rediss", "valkey", "valkeys", "redis+cluster", "rediss+cluster"),
    example="redis://:password@host/0?prefix=hsm:",
    module="persistence.stores.redis",
    features=_ALL,
    limits=Limits(
        operations=1000, transaction_bytes=64 * _MEBIBYTE, key_bytes=2048, value_bytes=16 * _MEBIBYTE
    ),
    extra="redis",
    requires=("redis",),
)
ETCD: Final = Backend(
    name="etcd",
    schemes=("etcd", "etcds"),
    example="etcd://user:password@host:2379?prefix=hsm/",
    module="persistence.stores.etcd",
    features=_ALL,
    # The server's own defaults: --max-txn-ops=128, and --max-request-bytes=1.5 MiB with room for the keys.
    limits=Limits(operations=100, transaction_bytes=1280 * _KIBIBYTE, key_bytes=2048, value_bytes=_MEBIBYTE),
    extra="etcd",
    requires=("grpc",),
)

BACKENDS: Final = (MEMORY, SQLITE, POSTGRESQL, MARIADB, REDIS, ETCD)
"""All of them."""

_BY_SCHEME: Final[Mapping[str, Backend]] = {
    scheme: backend for backend in BACKENDS for scheme in backend.schemes
}


def scheme_of(url: str) -> str:
    """What stands before `://`, in lower case; "" if that is missing."""
    return url.partition("://")[0].lower() if "://" in url else ""


def backend_of(url: str) -> Backend | None:
    """Which of our backends a URL is for; None if it is for none of them."""
    return _BY_SCHEME.get(scheme_of(url))
