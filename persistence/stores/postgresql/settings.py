"""The options of a PostgreSQL store, and how they stand in a URL beside those of libpq."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Final
from urllib.parse import quote, unquote, unquote_to_bytes

import attrs
from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Conninfo

from persistence.errors import InvalidRequestError
from persistence.settings import Properties

__all__ = ["PostgresOptions", "divide_url"]

_IDENTIFIER_BYTES: Final = 63
_UNREADABLE: Final = (
    "the URL of the store cannot be read; it is postgresql://user:password@host:port/database, with special"
    " characters of each part as %xx"
)
_LARGEST_PORT: Final = 65535
_JDBC_NAMES: Final = frozenset({"ssl"})


@attrs.frozen
class PostgresOptions:
    """How to use a server. In a URL or in `Metadata` times are given in seconds.

    Attributes:
        schema: where our tables stand; different schemas are different stores.
        create: whether a schema that does not exist is made, and an older one brought up to date; else
            that is `StoreUnavailableError`.
        lanes: connections that write, each carrying out the transactions of some partitions. More of them
            use more of the server's cores, but share fewer commits.
        readers: connections that read, at most; they are made when they are needed.
        connect_timeout: how long one host may take to accept a connection; two seconds at least, as in libpq.
        request_timeout: how long a request waits for a server that does not answer.
        lock_timeout: how long a transaction waits for another process to be through with a partition.
        idle_timeout: after this time the server ends a transaction of ours that a stopped process left open.
        cleanup_interval: how often expired rows are deleted; reads hide them at once in any case.
        prepare: whether statements are prepared. A pooler, which may give each transaction another
            connection, is noticed by itself; if one is not, it takes `false`. Through a pooler each
            transaction makes its settings anew, and nothing can be watched.
    """

    schema: str = "hsm"
    create: bool = True
    lanes: int = 1
    readers: int = 4
    connect_timeout: timedelta = timedelta(seconds=5)
    request_timeout: timedelta = timedelta(seconds=10)
    lock_timeout: timedelta = timedelta(seconds=5)
    idle_timeout: timedelta = timedelta(seconds=2)
    cleanup_interval: timedelta = timedelta(minutes=1)
    prepare: bool = True

    def changed(self, texts: Mapping[str, str]) -> PostgresOptions:
        """These options with some replaced by texts.

        Raises:
            InvalidRequestError: an unknown name, or a value that is none.
        """
        with Properties("PostgreSQL", texts) as properties:
            return PostgresOptions(
                schema=_identifier(properties.text("schema", self.schema)),
                create=properties.flag("create", self.create),
                lanes=properties.connections("lanes", self.lanes),
                readers=properties.connections("readers", self.readers),
                connect_timeout=properties.seconds("connect_timeout", self.connect_timeout),
                request_timeout=properties.seconds("request_timeout", self.request_timeout),
                lock_timeout=properties.seconds("lock_timeout", self.lock_timeout),
                idle_timeout=properties.seconds("idle_timeout", self.idle_timeout),
                cleanup_interval=properties.seconds("cleanup_interval", self.cleanup_interval),
                prepare=properties.flag("prepare", self.prepare),
            )


def _identifier(schema: str) -> str:
    # The server cuts longer names off, and two schemas would become one.
    if not schema or "\0" in schema or len(schema.encode(errors="replace")) > _IDENTIFIER_BYTES:
        raise InvalidRequestError(
            f"PostgreSQL option schema={schema[:100]!r} is not a name of 1 to {_IDENTIFIER_BYTES} bytes"
        )
    return schema


def divide_url(url: str) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """The connection parameters for libpq, and the options of ours, from the query of a URL.

    The rest of the URL is libpq's own affair: several hosts, sockets, a service, TLS.

    Raises:
        InvalidRequestError: libpq does not understand the URL, or an option is given twice. No message quotes
            the URL, because it may hold a password.
    """
    base, _, query = url.partition("?")
    authority = base.partition("://")[2].partition("/")[0]
    if authority.count("@") > 1 or "@" in query.partition("=")[0]:
        # libpq would take a part of the password for the host, or we for an option, and name it.
        raise InvalidRequestError(_UNREADABLE)
    ours = {field.name for field in attrs.fields(PostgresOptions)}
    theirs = {option.keyword.decode() for option in Conninfo.get_defaults()} | _JDBC_NAMES
    options: dict[str, str] = {}
    kept: list[str] = []
    for pair in filter(None, query.split("&")):
        name, _, text = pair.partition("=")
        name = unquote(name)
        if name not in ours and name not in theirs:
            known = ", ".join(sorted(ours))
            raise InvalidRequestError(
                f"unknown PostgreSQL option {name!r}; known are {known}, and the parameters of libpq"
            )
        if name in theirs - ours:
            # libpq does not take an equals sign as it is, but people write `options=-c jit=off`.
            kept.append(f"{name}={quote(unquote_to_bytes(text))}")
        elif name in options:
            raise InvalidRequestError(f"PostgreSQL option {name} is given twice")
        else:
            options[name] = unquote(text)
    scheme, _, rest = base.partition("://")
    try:
        parameters = conninfo_to_dict(f"{scheme.lower()}://{rest}" + (f"?{'&'.join(kept)}" if kept else ""))
    except (ProgrammingError, UnicodeError):
        raise InvalidRequestError(_UNREADABLE) from None
    for port in str(parameters.get("port", "")).split(","):
        # libpq would find out when it connects.
        if port and not (port.isascii() and port.isdecimal() and 0 < int(port) <= _LARGEST_PORT):
            # Not quoted: after a slash that is not escaped it is the beginning of a password.
            raise InvalidRequestError(f"the port is not a number up to {_LARGEST_PORT}; {_UNREADABLE}")
    return {name: str(value) for name, value in parameters.items()}, options
