"""Connections: a pipeline of commands goes out, as many answers come in, and nothing is ever sent twice.

The driver's connection does the handshake, TLS and the protocol. Its client and its pipelines do not serve
us: they try again by themselves, and do not tell after a broken connection which commands had been answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final, Protocol, TypeAlias, cast

from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoScriptError,
    RedisError,
    ResponseError,
)

from persistence.errors import PersistenceError
from persistence.settings import host_and_port
from persistence.stores.redis.failures import describe, translate
from persistence.stores.redis.scripts import SCRIPTS, Script
from persistence.stores.redis.settings import Address, RedisOptions, Target

__all__ = ["Command", "Dialer", "Link", "LinkLostError", "Reply"]

Command: TypeAlias = Sequence[bytes]
"""A command and its arguments."""

Reply: TypeAlias = "bytes | int | Sequence[Reply] | RedisError | None"
"""What a server answers to a command. An error is an answer, too: the command did not take place."""

# Larger arguments go to the socket as they are, instead of being copied once more.
_COPIED_BYTES: Final = 32 * 1024


class LinkLostError(Exception):
    """The connection broke, or was given up, while answers were outstanding.

    Attributes:
        replies: the answers that came before that.
        timed_out: the server did not answer in time; it may be carrying out the rest only now.
    """

    def __init__(self, cause: BaseException, replies: Sequence[Reply], *, timed_out: bool) -> None:
        super().__init__(describe(cause))
        self.replies = replies
        self.timed_out = timed_out
        self.__cause__: BaseException | None = cause


class _Reading(Protocol):
    """The part of the driver's connection that has no types of its own."""

    async def read_response(
        self, *, timeout: float | None = None, disconnect_on_error: bool = True
    ) -> object: ...


class Link:
    """One connection, used by one task at a time.

    Attributes:
        request_seconds: how long the server may take for an answer.
    """

    def __init__(
        self, connection: Connection, address: Address, request_seconds: float, scripts: Sequence[Script]
    ) -> None:
        self.address = address
        self.request_seconds = request_seconds
        self._connection = connection
        self._reading: _Reading = connection
        self._writer: asyncio.StreamWriter | None = None
        connection.redis_connect_func = self._log_in
        self._load: Sequence[Command] = [(b"SCRIPT", b"LOAD", script.text) for script in scripts]

    async def _log_in(self, connection: AbstractConnection) -> None:
        # The driver forgets it when it has begun to close, which over TLS takes as long as the server likes.
        self._writer = connection._writer  # noqa: SLF001  there is no other way to its transport
        await connection.on_connect()

    async def exchange(self, commands: Sequence[Command]) -> list[Reply]:
        """Send commands, and read as many answers.

        Raises:
            LinkLostError: tells which answers came.
        """
        connection = self._connection
        replies: list[Reply] = []
        now = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout(self.request_seconds) as timer:
                await connection.send_packed_command(_packed(commands), check_health=False)
                for _ in commands:
                    replies.append(await self._read())
                    timer.reschedule(now() + self.request_seconds)
        except TimeoutError as error:
            await self.abort()
            raise LinkLostError(error, replies, timed_out=True) from error
        except (RedisError, OSError) as error:
            await self.abort()
            raise LinkLostError(error, replies, timed_out=False) from error
        except BaseException:
            # Whoever was cancelled here has left answers unread.
            await self.abort()
            raise
        return replies

    async def call(self, commands: Sequence[Command]) -> list[Reply]:
        """Send commands some of which are calls of our scripts, which the server may have forgotten.

        Raises:
            LinkLostError: tells which answers came.
        """
        replies = await self.exchange(commands)
        forgotten = [index for index, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if not forgotten:
            return replies
        # A call that answers so has done nothing.
        again = [commands[index] for index in forgotten]
        try:
            answers = await self.exchange([*self._load, *again])
        except LinkLostError as lost:
            merged = _merged(replies, forgotten, lost.replies[len(self._load) :])
            raise LinkLostError(lost.__cause__ or lost, merged, timed_out=lost.timed_out) from lost
        for index, reply in zip(forgotten, answers[len(self._load) :], strict=True):
            replies[index] = reply
        return replies

    async def load_and_exchange(self, commands: Sequence[Command]) -> Sequence[Reply]:
        """Have the server keep our scripts, and send commands; the answers to these.

        Raises:
            LinkLostError: the connection broke.
            RedisError: the server refuses a script.
        """
        replies = await self.exchange([*self._load, *commands])
        for reply in replies[: len(self._load)]:
            if isinstance(reply, RedisError):
                raise reply
        return replies[len(self._load) :]

    async def _read(self) -> Reply:
        try:
            # So the protocol says, with texts not decoded.
            return cast("Reply", await self._reading.read_response(disconnect_on_error=False))
        except (ResponseError, BusyLoadingError, AuthenticationError) as error:
            return error

    async def next_reply(self, seconds: float) -> Reply:
        """What the server says by itself on a connection that listens; None if it is silent for so long.

        Raises:
            LinkLostError: the connection broke.
        """
        try:
            return cast("Reply", await self._reading.read_response(timeout=seconds))  # as above
        except ResponseError as error:
            return error
        except (RedisError, OSError) as error:
            await self.abort()
            raise LinkLostError(error, (), timed_out=False) from error

    async def tell(self, command: Command) -> None:
        """Send a command to whose answer somebody else listens.

        Raises:
            LinkLostError: the connection broke.
        """
        try:
            async with asyncio.timeout(self.request_seconds):
                await self._connection.send_packed_command(_packed([command]), check_health=False)
        except (RedisError, OSError) as error:
            await self.abort()
            raise LinkLostError(error, (), timed_out=False) from error

    @property
    def connected(self) -> bool:
        """Whether it is neither closed nor known to be lost; a server ends connections that are long idle."""
        # The driver has no other way to tell without reading.
        reader: asyncio.StreamReader | None = self._connection._reader  # noqa: SLF001
        return reader is not None and not reader.at_eof()

    async def abort(self) -> None:
        """Give the connection up at once, with what was not sent yet."""
        # The driver closes politely, which sends what is left, and waits as long as the server hangs.
        if self._writer is not None:
            self._writer.transport.abort()
        await self._connection.disconnect(nowait=True)

    async def aclose(self) -> None:
        """Close the connection."""
        with suppress(RedisError, OSError):
            await self._connection.disconnect()


class Dialer:
    """Makes connections to the nodes of a target; each knows the scripts."""

    def __init__(self, target: Target, options: RedisOptions, scripts: Sequence[Script] = SCRIPTS) -> None:
        self._target = target
        self._options = options
        self._scripts = scripts
        self.request_seconds: float = options.request_timeout.total_seconds()
        self.connect_seconds: float = options.connect_timeout.total_seconds()

    def where(self, address: Address) -> str:
        """A node as messages name it."""
        return host_and_port(*address)

    async def dial(self, address: Address) -> Link:
        """A new connection that knows our scripts.

        Raises:
            StoreUnavailableError: the server cannot be reached, or refuses us.
        """
        link, _ = await self.dial_and_ask(address, ())
        return link

    async def dial_and_ask(
        self, address: Address, questions: Sequence[Command]
    ) -> tuple[Link, Sequence[Reply]]:
        """A new connection that knows our scripts, and its answers to some commands.

        Raises:
            StoreUnavailableError: the server cannot be reached, or refuses us.
        """
        connection = self._connection(address)
        link = Link(connection, address, self.request_seconds, self._scripts)
        try:
            async with asyncio.timeout(self.connect_seconds):
                await connection.connect()  # type: ignore[no-untyped-call]  # it answers with nothing
                replies = await link.load_and_exchange(questions)
        except TimeoutError as error:
            await link.abort()
            raise translate(error, self.where(address)) from error
        except (RedisError, OSError, LinkLostError) as error:
            await link.abort()
            raise self._failure(error, address) from error
        except BaseException:
            await link.abort()
            raise
        return link, replies

    def _failure(self, error: Exception, address: Address) -> PersistenceError:
        cause = error.__cause__ if isinstance(error, LinkLostError) else error
        return translate(cause or error, self.where(address), connecting=True)

    def _connection(self, address: Address) -> Connection:
        target, options = self._target, self._options
        if not target.tls:
            return Connection(
                host=address[0],
                port=address[1],
                db=target.database,
                username=target.username,
                password=target.password,
                # Times are kept by ourselves, one for a whole pipeline; and nothing is sent twice.
                socket_timeout=None,
                socket_connect_timeout=self.connect_seconds,
                retry=Retry(NoBackoff(), 0),
                protocol=2,
            )
        return SSLConnection(
            host=address[0],
            port=address[1],
            db=target.database,
            username=target.username,
            password=target.password,
            socket_timeout=None,
            socket_connect_timeout=self.connect_seconds,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            ssl_ca_certs=options.tls_ca or None,
            ssl_certfile=options.tls_cert or None,
            ssl_keyfile=options.tls_key or None,
            ssl_check_hostname=options.tls_check_hostname,
        )


def _merged(replies: Sequence[Reply], forgotten: Sequence[int], answers: Sequence[Reply]) -> list[Reply]:
    """The replies up to the first one that is missing, as far as a second exchange gave them."""
    known = dict(zip(forgotten, answers, strict=False))
    merged: list[Reply] = []
    for index, reply in enumerate(replies):
        if isinstance(reply, NoScriptError):
            if index not in known:
                break
            reply = known[index]
        merged.append(reply)
    return merged


def _packed(commands: Sequence[Command]) -> list[bytes]:
    return list(_pieces(commands))


def _pieces(commands: Sequence[Command]) -> Iterator[bytes]:
    """The bytes of commands; each part is a length and so many bytes."""
    small: list[bytes] = []
    for command in commands:
        small.append(b"*%d\r\n" % len(command))
        for part in command:
            size = len(part)
            if size <= _COPIED_BYTES:
                small.append(b"$%d\r\n%b\r\n" % (size, part))
            else:
                small.append(b"$%d\r\n" % size)
                yield b"".join(small)
                yield part
                small = [b"\r\n"]
    yield b"".join(small)
