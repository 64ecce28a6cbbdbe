"""The client library, asyncmy, behind types of ours: a session runs statements and tells what went wrong.

Statements are sent as they are, several in one packet. Nothing else of the library is used: its pool takes
a dead connection for a live one, and its cursors turn warnings of the server into warnings of Python.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Sequence
from typing import Any, Final, NamedTuple, Protocol, TypeAlias, cast

import asyncmy
from asyncmy.errors import InterfaceError, MySQLError

from persistence.stores.mariadb.settings import MariaDBAddress

__all__ = ["Answer", "ConnectionLostError", "Row", "ServerError", "Session", "connect_session"]

# Columns have types of their own; those who write a statement know what they have asked for.
Row: TypeAlias = tuple[Any, ...]

_CLOSE_SECONDS: Final = 1.0
# Ours stand around every call.
_NO_TIMEOUT_SECONDS: Final = 31_536_000
_CLIENT_ERRORS: Final = range(2000, 3000)
# The server says farewell: it shuts down, was told to end the connection, or found it idle or broken.
_FAREWELLS: Final = frozenset({1053, 1080, 1152, 1158, 1159, 1160, 1161, 1184, 1927, 4031})


class Answer(NamedTuple):
    """What a statement has returned."""

    rows: Sequence[Row]
    affected: int


class ServerError(Exception):
    """The server refused a statement; those after it were not run.

    Attributes:
        code: the server's number of the error.
        completed: how many statements of the packet were run before.
    """

    def __init__(self, code: int, message: str, completed: int) -> None:
        super().__init__(f"{message} (error {code})")
        self.code = code
        self.completed = completed


class ConnectionLostError(Exception):
    """The connection is gone, and with it the answer."""


class _Result(Protocol):
    rows: tuple[Row, ...] | None
    affected_rows: int
    has_next: int


class _Connection(Protocol):
    """What we use of asyncmy's connections, most of which has no types."""

    _result: _Result
    _transport: asyncio.Transport

    async def query(self, sql: bytes) -> object: ...
    async def next_result(self) -> object: ...
    async def ensure_closed(self) -> None: ...
    def get_server_info(self) -> str: ...


class _Connect(Protocol):
    def __call__(
        self,
        *,
        host: str,
        port: int,
        unix_socket: str | None,
        user: str | None,
        password: bytes,
        database: str,
        charset: str,
        ssl: ssl.SSLContext | None,
        autocommit: None,
        connect_timeout: int,
        program_name: str,
    ) -> Awaitable[_Connection]: ...


# Its own types are guessed from defaults, and leave out what it documents: bytes, and None for "as it is".
_connect: Final = cast("_Connect", asyncmy.connect)  # pyright: ignore[reportUnknownMemberType]  # see above


class Session:
    """A connection that is logged in. One packet at a time; whoever is cancelled in the middle loses it."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        # The connection forgets it when it closes, and only the transport can drop what is not sent yet.
        self._transport = connection._transport  # noqa: SLF001  there is no public way
        self.server_version: str = connection.get_server_info()

    @property
    def closed(self) -> bool:
        """Whether it is known to be of no use any more."""
        return self._transport.is_closing()

    async def run(self, sql: str) -> list[Answer]:
        """Run statements, all in ASCII and separated by semicolons, with one round trip; an answer for each.

        Raises:
            ServerError: the server refused one of them.
            ConnectionLostError: it is not known which of them were run.
        """
        connection = self._connection
        answers: list[Answer] = []
        try:
            await connection.query(sql.encode("ascii"))
            while True:
                result = connection._result  # noqa: SLF001  the public way is a cursor, see above
                answers.append(Answer(result.rows or (), result.affected_rows))
                if not result.has_next:
                    return answers
                await connection.next_result()
        except MySQLError as error:
            code, message = _split(error)
            if code in _FAREWELLS or code in _CLIENT_ERRORS or isinstance(error, InterfaceError):
                self.abort()
                raise ConnectionLostError(message) from error
            raise ServerError(code, message, len(answers)) from error
        except Exception as error:
            # Whatever it was that the library did not expect, nobody knows where in the answers we are.
            self.abort()
            raise ConnectionLostError(f"{type(error).__name__}: {error}") from error
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Drop the connection at once."""
        self._transport.abort()

    async def close(self) -> None:
        """Take leave of the server, unless it does not listen."""
        try:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await self._connection.ensure_closed()
        finally:
            self.abort()
            # The transport closes its socket in the next turn of the loop, which may be the last one.
            await asyncio.sleep(0)


async def connect_session(address: MariaDBAddress, socket: str, tls: ssl.SSLContext | None) -> Session:
    """Connect and log in.

    Raises:
        ServerError: the server refused us.
        ConnectionLostError: there is no server, it speaks another language, or TLS failed.
    """
    try:
        connection = await _connect(
            host=address.host,
            port=address.port,
            unix_socket=socket or None,
            user=address.user,
            password=address.password.encode(),
            database=address.database,
            charset="utf8mb4",
            ssl=tls,
            autocommit=None,
            connect_timeout=_NO_TIMEOUT_SECONDS,
            program_name="hsm-toolkit",
        )
        return Session(connection)
    except MySQLError as error:
        code, message = _split(error)
        if code in _CLIENT_ERRORS or isinstance(error, InterfaceError):
            raise ConnectionLostError(message) from error
        raise ServerError(code, message, 0) from error
    except Exception as error:
        # Somebody who answers in another protocol makes the library fail in any way.
        raise ConnectionLostError(f"{type(error).__name__}: {error}") from error


def _split(error: MySQLError) -> tuple[int, str]:
    match error.args:
        case (int(code), message):
            return code, str(message)
        case _:
            return 0, str(error)
