"""Opening connections: how each of them is set up, and what a server must be like that we write to."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from typing import Final

from persistence.backends import MARIADB
from persistence.errors import InvalidRequestError, PersistenceError, StoreUnavailableError
from persistence.settings import host_and_port
from persistence.store import Limits
from persistence.stores.mariadb.driver import ConnectionLostError, ServerError, Session, connect_session
from persistence.stores.mariadb.failures import translate
from persistence.stores.mariadb.settings import MariaDBAddress, MariaDBOptions, whole_seconds

__all__ = ["Opener", "ServerFacts", "tls_context"]

_LEAST_PACKET_BYTES: Final = 1024 * 1024
# For the keys, the content type and the words of a statement, at their largest; all but the words twice as
# long as they are, being hexadecimal.
_STATEMENT_BYTES: Final = 256 * 1024
_MILLISECONDS: Final = 1000
_MOST_REQUEST_SECONDS: Final = 30 * 24 * 3600
_VARIABLES: Final = (
    "binlog_format",
    "group_replication_group_name",
    "group_replication_single_primary_mode",
    "idle_transaction_timeout",
    "in_predicate_conversion_threshold",
    "innodb_flush_log_at_trx_commit",
    "innodb_read_only",
    "log_bin",
    "max_allowed_packet",
    "max_execution_time",
    "max_statement_time",
    "read_only",
    "super_read_only",
    "sync_binlog",
    "wsrep_on",
)
# Each of these has a default that somebody can have changed for the whole server; sql_select_limit would even
# shorten the list of the variables.
_COMMON_SETTINGS: Final = (
    "SET SESSION sql_mode='STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION,NO_BACKSLASH_ESCAPES',"
    "SESSION time_zone='+00:00',SESSION autocommit=1,SESSION completion_type='NO_CHAIN',"
    f"SESSION sql_select_limit={2**64 - 1},SESSION sql_safe_updates=0,SESSION sql_big_selects=1;"
    "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE"
)
_READ_VARIABLES: Final = "SHOW VARIABLES WHERE Variable_name IN ({})".format(
    ",".join(f"'{name}'" for name in _VARIABLES)
)


class ServerFacts:
    """What a server is and how it is set up."""

    def __init__(self, server_version: str, variables: Mapping[str, str]) -> None:
        version, is_mariadb, _ = server_version.removeprefix("5.5.5-").partition("-MariaDB")
        self.version: str = f"{'MariaDB' if is_mariadb else 'MySQL'} {version}"
        self.variables: Mapping[str, str] = variables

    @property
    def packet_bytes(self) -> int:
        """What one packet of statements may have."""
        return int(self.variables.get("max_allowed_packet", "0"))

    @property
    def limits(self) -> Limits:
        """What one request may hold.

        A row has to fit into a packet, in hexadecimal; larger transactions are sent in several packets.
        """
        room = (self.packet_bytes - _STATEMENT_BYTES) // 2
        usual = MARIADB.limits
        return Limits(
            operations=usual.operations,
            transaction_bytes=usual.transaction_bytes,
            key_bytes=usual.key_bytes,
            value_bytes=min(usual.value_bytes, room),
        )

    @property
    def durability(self) -> str:
        """What the server's settings can lose; one sentence."""
        flush = self.variables.get("innodb_flush_log_at_trx_commit", "")
        setting = f"innodb_flush_log_at_trx_commit={flush}"
        if flush == "2":
            return f"{setting}: a crash of the server's machine can lose about the last second"
        if flush not in {"1", "3"}:
            return f"{setting}: a crash of the server can lose about the last second"
        sync = self.variables.get("sync_binlog", "")
        if self._is_on("log_bin") and sync != "1":
            return (
                f"{setting}, but sync_binlog={sync}:"
                " a crash of the server's machine can lose commits that the binary log does not have yet"
            )
        return f"a commit is on the server's disk when it returns ({setting}): a crash loses none"

    def check(self, where: str) -> None:
        """Refuse a server on which transactions are not what we need.

        Raises:
            StoreUnavailableError: says which of its settings is in the way.
        """
        obstacle = self._obstacle()
        if obstacle:
            raise StoreUnavailableError(f"{where} cannot be used: {obstacle}")

    def _obstacle(self) -> str:
        for name in ("read_only", "super_read_only", "innodb_read_only"):
            if self._is_on(name):
                return f"{name} is on; is it a replica?"
        if self._is_on("wsrep_on"):
            return "it is a node of a Galera cluster (wsrep_on), where other nodes do not heed its locks"
        if (
            self.variables.get("group_replication_group_name")
            and self.variables.get("group_replication_single_primary_mode") == "OFF"
        ):
            return "its replication group has several primaries, which do not heed each other's locks"
        if self._is_on("log_bin") and self.variables.get("binlog_format") == "STATEMENT":
            return "binlog_format is STATEMENT, which does not go with READ COMMITTED; set ROW or MIXED"
        if self.packet_bytes < _LEAST_PACKET_BYTES:
            return f"max_allowed_packet is {self.packet_bytes}; {_LEAST_PACKET_BYTES} is the least"
        return ""

    def settings(self, options: MariaDBOptions) -> str:
        """The statement that tells a session how long to wait, as far as this server knows how."""
        idle_seconds = whole_seconds(options.idle_timeout)
        # 0 would be no limit, and a month is far less than the most that there can be.
        request_seconds = min(max(0.001, options.request_timeout.total_seconds()), _MOST_REQUEST_SECONDS)
        values: dict[str, int | float] = {
            "innodb_lock_wait_timeout": whole_seconds(options.lock_timeout),
            # For a client that was stopped while it sends a statement, or is to be sent an answer.
            "net_read_timeout": idle_seconds,
            "net_write_timeout": idle_seconds,
        }
        if "idle_transaction_timeout" in self.variables:
            values["idle_transaction_timeout"] = idle_seconds
        else:
            values["wait_timeout"] = idle_seconds
        if "max_statement_time" in self.variables:
            values["max_statement_time"] = request_seconds
        elif "max_execution_time" in self.variables:
            values["max_execution_time"] = int(request_seconds * _MILLISECONDS)
        if "in_predicate_conversion_threshold" in self.variables:
            # Else a long IN becomes a table that is joined, and our index is not used.
            values["in_predicate_conversion_threshold"] = 0
        return "SET " + ",".join(f"SESSION {name}={value}" for name, value in values.items())

    def _is_on(self, name: str) -> bool:
        return self.variables.get(name, "OFF") not in {"OFF", "0"}


class Opener:
    """Opens sessions with the database, all set up the same way."""

    def __init__(self, address: MariaDBAddress, options: MariaDBOptions) -> None:
        self._address = address
        self._options = options
        place = options.socket or host_and_port(address.host, address.port)
        self.where: str = f"database {address.database!r} at {place}"

    async def open(self, *, to_write: bool = True) -> tuple[Session, ServerFacts]:
        """Open a session, and look at the server.

        Raises:
            StoreUnavailableError: there is no server, it refuses us, or is not one `to_write` to.
        """
        session: Session | None = None
        tls = tls_context(self._options)  # each time, as the certificates may be new
        try:
            async with asyncio.timeout(self._options.connect_timeout.total_seconds()):
                session = await connect_session(self._address, self._options.socket, tls)
                *_, answer = await session.run(f"{_COMMON_SETTINGS};{_READ_VARIABLES}")
                facts = ServerFacts(session.server_version, dict(answer.rows))
                if to_write:
                    facts.check(self.where)
                await session.run(facts.settings(self._options))
        except (ConnectionLostError, ServerError, TimeoutError) as error:
            if session is not None:
                session.abort()
            raise self._unavailable(error) from error
        except BaseException:
            if session is not None:
                session.abort()
            raise
        return session, facts

    async def open_writer(self) -> Session:
        """Open a session that writes.

        Raises:
            StoreUnavailableError: there is no server, it refuses us, or is not one to write to.
        """
        session, _ = await self.open()
        return session

    async def open_reader(self) -> Session:
        """Open a session that reads.

        Raises:
            StoreUnavailableError: there is no server, or it refuses us.
        """
        session, _ = await self.open(to_write=False)
        return session

    def _unavailable(self, error: Exception) -> PersistenceError:
        translated = translate(error, self.where)
        if isinstance(translated, StoreUnavailableError):
            return translated
        return StoreUnavailableError(f"cannot use {self.where}: {error}")


def tls_context(options: MariaDBOptions) -> ssl.SSLContext | None:
    """How connections are encrypted; None if they are not.

    Raises:
        InvalidRequestError: the options contradict each other.
        StoreUnavailableError: a file cannot be read.
    """
    files = (options.tls_ca, options.tls_cert, options.tls_key)
    mode = options.tls or ("verify" if any(files) else "disable")
    if mode == "disable":
        if any(files):
            raise InvalidRequestError("tls=disable does not go with tls_ca, tls_cert or tls_key")
        return None
    try:
        context = ssl.create_default_context(cafile=options.tls_ca or None)
        if options.tls_cert:
            context.load_cert_chain(options.tls_cert, options.tls_key or None)
    except OSError as error:
        raise StoreUnavailableError(f"cannot read a certificate or key for TLS: {error}") from error
    if mode == "require":
        context.check_hostname = False
        if not options.tls_ca:
            context.verify_mode = ssl.CERT_NONE
    return context
