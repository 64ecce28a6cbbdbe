"""A relay between a client and a server that breaks connections at the worst moment."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Self

__all__ = ["Fault", "Relay"]


class Fault(enum.Enum):
    """What happens to a request; the client's connection breaks in any case."""

    LOSE_REQUEST = "the server never gets it"
    LOSE_REPLY = "the server carries it out, and its reply is lost"
    HOLD_REQUEST = "it is on its way, and gets to the server when it is released"


class Relay:
    """Listens on `port`, and passes on what it gets until a fault is planned."""

    def __init__(self, target: int, host: str = "127.0.0.1") -> None:
        self.port = 0
        self._host = host
        self._target = target
        self._fault: tuple[bytes, Fault] | None = None
        self._held: tuple[asyncio.StreamWriter, bytes] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.struck = asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def to(cls, target: int, host: str = "127.0.0.1") -> AsyncIterator[Self]:
        """A relay to a port on loopback, which is reached at `host`."""
        relay = cls(target, host)
        await relay.listen()
        try:
            yield relay
        finally:
            await relay.refuse()
            for task in list(relay._tasks):
                task.cancel()
            await asyncio.gather(*relay._tasks, return_exceptions=True)
            relay.break_connections()

    def plan(self, mark: bytes, fault: Fault) -> None:
        """Let the next request that has `mark` in it meet a fault."""
        self._fault = (mark, fault)
        self.struck.clear()

    async def listen(self) -> None:
        """Accept connections, on the same port as before."""
        self._server = await asyncio.start_server(self._accept, self._host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Accept no more connections; those that there are go on."""
        if self._server is not None:
            self._server.close()
            self._server = None
            await asyncio.sleep(0)

    def redirect(self, target: int) -> None:
        """Lead new connections to another port; those that there are go on."""
        self._target = target

    def break_connections(self) -> None:
        """Break all connections."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def release(self) -> bool:
        """Let a held request get to the server; False if the server has ended the connection before."""
        assert self._held is not None
        writer, data = self._held
        if writer.is_closing():
            return False
        writer.write(data)
        await writer.drain()
        return True

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, to_writer}
        for pump in (self._requests(reader, writer, to_writer), self._replies(to_reader, writer)):
            task = asyncio.create_task(pump)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _requests(
        self, reader: asyncio.StreamReader, client: asyncio.StreamWriter, server: asyncio.StreamWriter
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 20):
                if self._fault is None or self._fault[0] not in data:
                    server.write(data)
                    continue
                (_, fault), self._fault = self._fault, None
                if fault is Fault.LOSE_REQUEST:
                    server.transport.abort()
                    client.transport.abort()
                elif fault is Fault.HOLD_REQUEST:
                    self._held = (server, data)
                    client.transport.abort()
                else:
                    self._lost_reply_to = client
                    server.write(data)
                self.struck.set()
        if self._held is None or self._held[0] is not server:
            server.close()

    _lost_reply_to: asyncio.StreamWriter | None = None

    async def _replies(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 20):
                if client is self._lost_reply_to:
                    client.transport.abort()
                    return
                client.write(data)
        client.close()
        if self._held is not None:
            self._held[0].close()
