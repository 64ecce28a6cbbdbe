"""A client of a cluster: requests with deadlines, to whichever member answers, under a fresh token."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol, TypeAlias, TypeVar

from grpc import StatusCode
from grpc.aio import AioRpcError, UnaryUnaryMultiCallable

from persistence.errors import StoreUnavailableError
from persistence.proto import etcd_pb2
from persistence.stores.etcd.connection import Connection, read_credentials
from persistence.stores.etcd.failures import is_lost, needs_token, translate
from persistence.stores.etcd.settings import Cluster, EtcdOptions

__all__ = ["Client", "Metadata"]

Metadata: TypeAlias = tuple[tuple[str, str], ...]
"""What goes with a request: the token of who asks."""

_ANONYMOUS: Final[Metadata] = ()
# gRPC takes a deadline in the far future for one in the past.
_MOST_SECONDS: Final = 365 * 24 * 3600


class _Answer(Protocol):
    @property
    def header(self) -> etcd_pb2.ResponseHeader: ...


RequestT = TypeVar("RequestT")
AnswerT = TypeVar("AnswerT", bound=_Answer)


class Client:
    """Asks one member of a cluster, and the next one when that fails.

    Attributes:
        cluster: whom it asks.
        revision: the newest that any answer told of.
        request_seconds: what a request and its repetitions have in all.
    """

    def __init__(self, cluster: Cluster, options: EtcdOptions) -> None:
        """Make a client, which connects when it is needed.

        Raises:
            StoreUnavailableError: a file for TLS cannot be read.
        """
        self.cluster: Cluster = cluster
        self.revision: int = 0
        self.request_seconds: float = min(options.request_timeout.total_seconds(), _MOST_SECONDS)
        self._options = options
        self._credentials = read_credentials(cluster, options)
        self._turn = 0
        self._connection = self.new_connection()
        self._old: set[asyncio.Task[None]] = set()
        self._metadata = _ANONYMOUS
        self._login: asyncio.Task[Metadata] | None = None
        self._known = not cluster.user

    def new_connection(self) -> Connection:
        """Another connection, to the member whose turn it is, with certificates that may be new."""
        # While files are replaced they may not be there; those from before may still do.
        with suppress(StoreUnavailableError):
            self._credentials = read_credentials(self.cluster, self._options)
        endpoints = self.cluster.endpoints
        return Connection(endpoints[self._turn % len(endpoints)], self._options, self._credentials)

    def next_endpoint(self) -> None:
        """Let it be the next member's turn."""
        self._turn += 1

    async def ask(
        self,
        method: Callable[[Connection], UnaryUnaryMultiCallable[RequestT, AnswerT]],
        request: RequestT,
        *,
        seconds: float | None = None,
    ) -> AnswerT:
        """Ask something that may be asked twice: if the connection fails, ask again by another one.

        Raises:
            PersistenceError: typed by `failures.translate`.
        """
        try:
            return await self.try_hard(method, request, seconds=seconds)
        except AioRpcError as error:
            raise translate(error, str(self.cluster)) from error

    async def try_hard(
        self,
        method: Callable[[Connection], UnaryUnaryMultiCallable[RequestT, AnswerT]],
        request: RequestT,
        *,
        seconds: float | None = None,
    ) -> AnswerT:
        """As `ask`, but with gRPC's own error.

        Raises:
            AioRpcError: the last of the attempts.
        """
        clock = asyncio.get_running_loop().time
        until = clock() + (self.request_seconds if seconds is None else seconds)
        members = len(self.cluster.endpoints)
        # Each member once, and the first one once more: the connection to it may just have been old.
        for attempts_left in range(members, -1, -1):
            connection = self._connection
            # A member that hangs leaves the others time to answer.
            share = max(0.0, until - clock()) / (max(1, attempts_left) if members > 1 else 1)
            try:
                return await self.try_once(method, request, seconds=share)
            except AioRpcError as error:
                hangs = error.code() is StatusCode.DEADLINE_EXCEEDED and members > 1
                if not (attempts_left and clock() < until and (hangs or is_lost(error))):
                    raise
                self.replace(connection)
        raise AssertionError("the last attempt either answers or raises")

    async def try_once(
        self,
        method: Callable[[Connection], UnaryUnaryMultiCallable[RequestT, AnswerT]],
        request: RequestT,
        *,
        seconds: float,
    ) -> AnswerT:
        """Ask by the connection there is; again only if the server did nothing but ask who we are.

        Raises:
            AioRpcError: see `failures` for what it means.
        """
        if not self._known:
            await self._authenticate(seconds)
        metadata = self._metadata
        try:
            answer = await method(self._connection)(request, timeout=seconds, metadata=metadata)
        except AioRpcError as error:
            if not (self.cluster.user and needs_token(error)):
                raise
            if metadata is self._metadata:
                self._known = False
            if not self._known:
                await self._authenticate(seconds)
            answer = await method(self._connection)(request, timeout=seconds, metadata=self._metadata)
        revision = answer.header.revision
        self.revision = max(self.revision, revision)
        return answer

    @property
    def connected(self) -> bool:
        """Whether there is a connection that works, as far as is known."""
        return self._connection.ready

    def replace(self, connection: Connection) -> None:
        """Go on with the next member, unless somebody else has already done away with this connection."""
        if connection is not self._connection:
            return
        self.next_endpoint()
        self._connection = self.new_connection()
        self.retire(connection)

    def replace_current(self) -> None:
        """Go on with the next member."""
        self.replace(self._connection)

    def retire(self, connection: Connection) -> None:
        """Close a connection when what is under way on it has ended."""
        task = asyncio.get_running_loop().create_task(connection.aclose(self.request_seconds))
        self._old.add(task)
        task.add_done_callback(self._old.discard)

    async def metadata(self) -> Metadata:
        """What goes with a request now.

        Raises:
            AioRpcError: the credentials are refused, or nobody answers.
        """
        if not self._known:
            await self._authenticate(self.request_seconds)
        return self._metadata

    def forget_token(self) -> None:
        """Ask for another token before the next request."""
        self._known = not self.cluster.user

    async def _authenticate(self, seconds: float) -> None:
        """Get a token, once for all who want one at this moment: the server takes 0.1 s for a password."""
        if self._login is None or self._login.done():
            self._login = asyncio.get_running_loop().create_task(self._fetch_token(seconds))
            # Nobody may be left to look when it fails.
            self._login.add_done_callback(lambda task: task.cancelled() or task.exception())
        self._metadata = await asyncio.shield(self._login)
        self._known = True

    async def _fetch_token(self, seconds: float) -> Metadata:
        request = etcd_pb2.AuthenticateRequest(name=self.cluster.user, password=self.cluster.password)
        try:
            answer = await self._connection.authenticate(request, timeout=seconds)
        except AioRpcError as error:
            if error.code() is StatusCode.FAILED_PRECONDITION:
                return _ANONYMOUS  # the cluster asks nobody who he is
            raise
        return (("token", answer.token),)

    async def aclose(self) -> None:
        """Disconnect."""
        if self._login is not None:
            await asyncio.wait((self._login,))
        await self._connection.aclose()
        while self._old:
            await asyncio.wait(self._old)
