"""A connection as we use it: checked, and with time-outs on both sides."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Generator, Mapping, Sequence
from typing import Any, Final

import attrs
import psycopg
from psycopg import AsyncConnection
from psycopg.conninfo import make_conninfo
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow

from persistence.errors import PersistenceError, StoreUnavailableError
from persistence.stores.postgresql.dialect import Dialect, dialect_of
from persistence.stores.postgresql.exchange import Answer, Exchange, Parameters, Statement
from persistence.stores.postgresql.failures import translate
from persistence.stores.postgresql.packing import Texts, adapt
from persistence.stores.postgresql.settings import PostgresOptions
from persistence.stores.postgresql.sql import Statements

__all__ = ["Connector", "ServerFacts", "Session"]

_OLDEST_SERVER: Final = 130000
_SESSION_TIMEOUT_SERVER: Final = 140000
_TRANSACTION_TIMEOUT_SERVER: Final = 170000
_WEAKER_THAN_ON: Final = frozenset({"off", "local", "remote_write"})
_STRONGER_THAN_ON: Final = "remote_apply"
_LEAST_CONNECT_SECONDS: Final = 2
_IDLE_SECONDS_BEFORE_PROBES: Final = "30"
# Every statement of ours is meant to go through an index. Without statistics, which a fresh table has not,
# the planner may believe that reading and sorting a whole partition is as good.
_PLANS: Final = {
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_sort": "off",
    "jit": "off",
}


@attrs.frozen
class ServerFacts:
    """What a server says of itself.

    Attributes:
        dialect: what it has in common with PostgreSQL.
        name: its own name and version.
        encoding: of the database.
        replica: it only repeats what another one writes.
        pooled: somebody stands in between, and may give each transaction another connection to it.
        version: as a number, 180001 being 18.1.
        durability: settings by name that decide what a crash can lose.
    """

    dialect: Dialect
    name: str
    encoding: str
    replica: bool
    pooled: bool
    version: int
    durability: Mapping[str, str]

    @property
    def notifies(self) -> bool:
        """Whether a session that listens is told what others say."""
        return self.dialect.notifies and not self.pooled

    def sentence(self) -> str:
        """What a crash can lose."""
        if self.durability.get("fsync") == "off":
            return "fsync=off: a crash of the server's machine can lose or damage everything"
        if self.durability.get("full_page_writes") == "off":
            return "full_page_writes=off: a crash of the server's machine can damage everything"
        if self.durability.get("synchronous_standby_names"):
            return "what is committed is on the disks of the server and of its synchronous standbys"
        return "what is committed survives a crash of the server; a failover may lose the last of it"


class Session:
    """One connection to the server, for one piece of work at a time.

    A server that hangs is noticed by a timer that cuts the connection. To cancel psycopg instead would not
    do: it asks the server to cancel, and waits for the answer.
    """

    def __init__(self, connection: AsyncConnection[TupleRow], where: str) -> None:
        self.connection: Final = connection
        self._exchange = Exchange(connection, prepare=False)
        self.where: Final = where
        self.hung: bool = False
        self._opening: Sequence[Statement] = ()
        self._pooled = False

    @property
    def lost(self) -> bool:
        """Whether the connection is of no use any more."""
        return self.connection.closed

    @property
    def idle(self) -> bool:
        """Whether the connection can be used for the next piece of work."""
        return self.connection.info.transaction_status is TransactionStatus.IDLE

    @contextlib.contextmanager
    def until(self, deadline: float) -> Generator[None]:
        """Cut the connection if the block has not ended by then, on the event loop's clock."""
        timer = asyncio.get_running_loop().call_at(deadline, self._cut)
        try:
            yield
        finally:
            timer.cancel()

    @property
    def opening(self) -> Sequence[Statement]:
        """What a transaction of several statements begins with."""
        return self._opening

    async def apply(self, settings: Mapping[str, str], facts: ServerFacts, sql: Statements) -> None:
        """Have settings from now on."""
        names, values = Texts(settings), Texts(settings.values())
        self._pooled = facts.pooled
        if facts.pooled:
            # Every transaction may be on another connection, and the next one there may be somebody else's.
            self._opening = ((facts.dialect.begin, ()), (sql["settings"], (True, names, values)))
        else:
            self._opening = ((facts.dialect.begin, ()),)
            self.connection.prepare_threshold = 0
            self._exchange = Exchange(self.connection, prepare=True)
            await self.rows(sql["settings"], (False, names, values))

    async def rows(self, statement: bytes, parameters: Parameters = ()) -> Sequence[tuple[Any, ...]]:
        """Run one statement, and read what it returns."""
        if self._pooled and self.idle:
            return (await self._alone(statement, parameters)).rows
        async with self.connection.cursor(binary=True) as cursor:
            await cursor.execute(statement, parameters)
            return [] if cursor.description is None else await cursor.fetchall()

    async def count(self, statement: bytes, parameters: Parameters = ()) -> int:
        """Run one statement, and tell how many rows it has changed."""
        if self._pooled and self.idle:
            return (await self._alone(statement, parameters)).affected
        async with self.connection.cursor(binary=True) as cursor:
            await cursor.execute(statement, parameters)
            return cursor.rowcount

    async def transact(self, *statements: Statement) -> list[Answer]:
        """Run statements in one round trip, and answer each; those after one that is refused are not run."""
        return await self._exchange.run(*statements)

    async def _alone(self, statement: bytes, parameters: Parameters) -> Answer:
        """Run one statement in a transaction of its own."""
        try:
            *_, answer, _ = await self.transact(*self._opening, (statement, parameters), (b"COMMIT", ()))
        except psycopg.Error:
            if not self.lost and not self.idle:
                await self.rows(b"ROLLBACK")
            raise
        return answer

    def failure(self, error: psycopg.Error) -> PersistenceError:
        """The error of ours for an error of psycopg's that was met in this session."""
        if self.hung:
            return StoreUnavailableError(f"{self.where} does not answer in time")
        return translate(error, self.where)

    async def aclose(self) -> None:
        """Disconnect; without waiting for the server."""
        await self.connection.close()

    def _cut(self) -> None:
        self.hung = True
        if self.connection.closed:
            return
        # Not closed, as psycopg is waiting for it and would be told nothing.
        view = socket.socket(fileno=self.connection.fileno())
        try:
            with contextlib.suppress(OSError):
                view.shutdown(socket.SHUT_RDWR)
        finally:
            view.detach()


class Connector:
    """Makes sessions that have our settings; knows where the server is and what may be said about it."""

    def __init__(self, parameters: Mapping[str, str], options: PostgresOptions) -> None:
        self.options: Final = options
        self._parameters = parameters
        self.where: Final = _where(parameters)

    async def connect(self, deadline: float | None = None) -> tuple[Session, ServerFacts]:
        """Make a session, by a time on the event loop's clock.

        Raises:
            StoreUnavailableError: the server cannot be reached, refuses us, or is none that we can use.
        """
        if deadline is None:
            deadline = asyncio.get_running_loop().time() + self.options.request_timeout.total_seconds()
        session = Session(await self._connection(deadline), self.where)
        try:
            with session.until(deadline):
                facts = await self._set_up(session)
        except psycopg.Error as error:
            await session.aclose()
            raise session.failure(error) from error
        except BaseException:
            await session.aclose()
            raise
        return session, facts

    async def _connection(self, deadline: float) -> AsyncConnection[TupleRow]:
        options = self.options
        seconds = max(options.connect_timeout.total_seconds(), _LEAST_CONNECT_SECONDS)
        hosts = _hosts(self._parameters).split(",")
        parameters: dict[str, str] = {
            "fallback_application_name": "hsm-toolkit",
            "keepalives_idle": _IDLE_SECONDS_BEFORE_PROBES,
            "tcp_user_timeout": _milliseconds(options.request_timeout.total_seconds()),
        }
        if len(hosts) > 1:
            parameters["target_session_attrs"] = "read-write"
        parameters |= self._parameters
        parameters |= {"connect_timeout": str(int(seconds)), "client_encoding": "utf8"}
        # The parameter is for each address.
        patience = asyncio.get_running_loop().time() + seconds * len(hosts)
        try:
            async with asyncio.timeout_at(min(patience, deadline)):
                connection = await AsyncConnection.connect(
                    make_conninfo("", **parameters),
                    autocommit=True,
                    prepare_threshold=None,  # until it is known who is there
                )
        except TimeoutError as error:
            raise StoreUnavailableError(f"{self.where} does not accept a connection in time") from error
        except psycopg.Error as error:
            raise StoreUnavailableError(f"cannot connect to {self.where}: {str(error).strip()}") from error
        adapt(connection)
        return connection

    async def _set_up(self, session: Session) -> ServerFacts:
        sql = Statements(self.options.schema, dialect_of(""))
        ((version, number, encoding, replica, process, synchronous, *crash),) = await session.rows(
            sql["server"]
        )
        fsync, full_page_writes, standbys = crash
        dialect = dialect_of(version)
        # A pooler has no process of the server's to tell its client about, as it lends many of them.
        in_between = not dialect.plain and process != session.connection.info.backend_pid
        facts = ServerFacts(
            dialect=dialect,
            name=" ".join(version.split()[:2]),
            encoding=encoding,
            replica=replica,
            pooled=in_between or not self.options.prepare,
            version=number,
            durability={
                "fsync": fsync or "",
                "full_page_writes": full_page_writes or "",
                "synchronous_standby_names": standbys or "",
            },
        )
        self._check(facts)
        options = self.options
        settings = {
            # The defaults of a role or a database may be others.
            "default_transaction_read_only": "off",
            "lock_timeout": _milliseconds(options.lock_timeout.total_seconds()),
            "statement_timeout": _milliseconds(options.request_timeout.total_seconds()),
            "idle_in_transaction_session_timeout": _milliseconds(options.idle_timeout.total_seconds()),
        }
        if not facts.dialect.plain:
            settings |= _PLANS
            settings["default_transaction_isolation"] = "read committed"
            settings |= _keepalives(options)
            if facts.version >= _SESSION_TIMEOUT_SERVER:
                # Whoever listens may have nothing to say for long.
                settings["idle_session_timeout"] = "0"
            if facts.version >= _TRANSACTION_TIMEOUT_SERVER:
                # The server's other clocks stand still between two statements that are sent together.
                patience = options.request_timeout + options.idle_timeout
                settings["transaction_timeout"] = _milliseconds(patience.total_seconds())
            # On the next of a pooler's connections somebody may have left it weaker.
            if synchronous in _WEAKER_THAN_ON or (facts.pooled and synchronous != _STRONGER_THAN_ON):
                settings["synchronous_commit"] = "on"
        await session.apply(settings, facts, sql)
        return facts

    def _check(self, facts: ServerFacts) -> None:
        if facts.version < _OLDEST_SERVER:
            raise StoreUnavailableError(
                f"{self.where} is {facts.name}, which is too old; version {_OLDEST_SERVER // 10_000} will do"
            )
        if facts.replica:
            raise StoreUnavailableError(f"{self.where} is a read-only replica")
        if facts.encoding != "UTF8":
            raise StoreUnavailableError(
                f"{self.where} has the encoding {facts.encoding}; only UTF8 can keep every key"
            )


def _keepalives(options: PostgresOptions) -> Mapping[str, str]:
    """Settings by which the server, too, gives up a client that is gone, or that does not read any more."""
    idle_seconds = max(1, round(options.idle_timeout.total_seconds()))
    return {
        "tcp_keepalives_idle": str(idle_seconds),
        "tcp_keepalives_interval": "1",
        "tcp_keepalives_count": "3",
        "tcp_user_timeout": _milliseconds(options.request_timeout.total_seconds()),
    }


def _milliseconds(seconds: float) -> str:
    # 0 would be no time-out at all.
    return str(min(max(1, round(seconds * 1000)), 2**31 - 1))


def _hosts(parameters: Mapping[str, str]) -> str:
    """The hosts, as libpq finds them; "" is a socket of this machine."""
    return parameters.get("host") or parameters.get("hostaddr") or os.environ.get("PGHOST", "")


def _where(parameters: Mapping[str, str]) -> str:
    """The database and its server, without a secret."""
    host = _hosts(parameters) or "the local server"
    port = parameters.get("port") or os.environ.get("PGPORT", "5432")
    user = parameters.get("user") or os.environ.get("PGUSER", "")
    database = parameters.get("dbname") or os.environ.get("PGDATABASE") or user or "of this user"
    return f"PostgreSQL database {database} on {host}, port {port}"
