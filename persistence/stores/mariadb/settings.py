"""Where the database is, and the options of a store in it."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Final
from urllib.parse import SplitResult, unquote

import attrs

from persistence.errors import InvalidRequestError
from persistence.settings import Properties

__all__ = ["MariaDBAddress", "MariaDBOptions", "whole_seconds"]

_PREFIX: Final = re.compile(r"[a-z0-9_]{0,40}", re.ASCII).fullmatch
_TLS: Final = frozenset({"", "disable", "require", "verify"})
_PORT: Final = 3306
_YEAR_SECONDS: Final = 31_536_000


@attrs.frozen
class MariaDBAddress:
    """A database, and who we are there. Neither user nor password is ever shown.

    Attributes:
        database: its name.
        host: name or number of the server's machine.
        port: of the server.
        user: whom we log in as; None is the user of this process.
        password: of that user.
    """

    database: str
    host: str = "localhost"
    port: int = _PORT
    user: str | None = attrs.field(default=None, repr=False)
    password: str = attrs.field(default="", repr=False)

    @classmethod
    def of_url(cls, parts: SplitResult) -> MariaDBAddress:
        """The address in a URL; what it leaves out comes from MYSQL_HOST, MYSQL_TCP_PORT and MYSQL_PWD.

        Raises:
            InvalidRequestError: it names no database, or MYSQL_TCP_PORT is no number.
        """
        database = unquote(parts.path.removeprefix("/"))
        if not database or "/" in database:
            raise InvalidRequestError("a mysql URL names a database: mysql://user:password@host/database")
        environment = os.environ
        port = environment.get("MYSQL_TCP_PORT") or str(_PORT)
        if not port.isdecimal():
            raise InvalidRequestError(f"MYSQL_TCP_PORT={port!r} is not a port")
        return cls(
            database=database,
            host=unquote(parts.hostname or "") or environment.get("MYSQL_HOST") or "localhost",
            port=parts.port or int(port),
            user=None if parts.username is None else unquote(parts.username),
            password=environment.get("MYSQL_PWD", "") if parts.password is None else unquote(parts.password),
        )


def _check_prefix(_: object, __: object, prefix: str) -> None:
    # Anything else would have to be quoted, and means different things on different systems.
    if _PREFIX(prefix) is None:
        raise InvalidRequestError(
            f"prefix {prefix!r} is not made of at most 40 lower-case letters, digits and underscores"
        )


@attrs.frozen
class MariaDBOptions:
    """How to use a database. In a URL or in `Metadata` times are given in seconds.

    Attributes:
        connect_timeout: how long a connection may take, logging in included.
        request_timeout: how long a request may take; nothing waits longer for a server that hangs.
        lock_timeout: how long to wait for another process that writes to the same partition, before
            `StoreBusyError`. The server counts whole seconds.
        idle_timeout: when the server ends a transaction of a process that was stopped in the middle, and
            with it its locks, in whole seconds. MySQL knows no such time for transactions alone and ends
            idle connections then; they are opened again when needed.
        cleanup_interval: how often expired rows are deleted; reads hide them at once in any case.
        create: whether tables that do not exist are made, and older ones brought up to date; else that is
            `StoreUnavailableError`.
        prefix: of the names of our tables.
        lanes: connections that write; the transactions of a partition share one.
        readers: connections that read, at most.
        socket: path of the server's Unix socket, in place of host and port.
        tls: `disable`; `require` encrypts, and checks who signed the certificate if `tls_ca` is given;
            `verify` also checks that it is the host's. Without a word: `verify` if another option of TLS is
            given, else `disable`.
        tls_ca: file with the certificates that are trusted, in place of the system's.
        tls_cert: file with our own certificate.
        tls_key: file with the key of `tls_cert`, if it is not in the same file.
    """

    connect_timeout: timedelta = timedelta(seconds=5)
    request_timeout: timedelta = timedelta(seconds=10)
    lock_timeout: timedelta = timedelta(seconds=5)
    idle_timeout: timedelta = timedelta(seconds=2)
    cleanup_interval: timedelta = timedelta(minutes=1)
    create: bool = True
    prefix: str = attrs.field(default="hsm_", validator=_check_prefix)
    lanes: int = 1
    readers: int = 4
    socket: str = ""
    tls: str = ""
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""

    def changed(self, texts: Mapping[str, str]) -> MariaDBOptions:
        """These options with some replaced by texts.

        Raises:
            InvalidRequestError: an unknown name, or a value that is none.
        """
        with Properties("MariaDB", texts) as properties:
            return MariaDBOptions(
                connect_timeout=properties.seconds("connect_timeout", self.connect_timeout),
                request_timeout=properties.seconds("request_timeout", self.request_timeout),
                lock_timeout=properties.seconds("lock_timeout", self.lock_timeout),
                idle_timeout=properties.seconds("idle_timeout", self.idle_timeout),
                cleanup_interval=properties.seconds("cleanup_interval", self.cleanup_interval),
                create=properties.flag("create", self.create),
                prefix=properties.text("prefix", self.prefix),
                lanes=properties.connections("lanes", self.lanes),
                readers=properties.connections("readers", self.readers),
                socket=properties.text("socket", self.socket),
                tls=properties.choice("tls", self.tls, _TLS),
                tls_ca=properties.text("tls_ca", self.tls_ca),
                tls_cert=properties.text("tls_cert", self.tls_cert),
                tls_key=properties.text("tls_key", self.tls_key),
            )


def whole_seconds(time: timedelta) -> int:
    """What a server is told that counts whole seconds, takes 0 for no limit, and no more than a year."""
    return min(max(1, math.ceil(time.total_seconds())), _YEAR_SECONDS)
