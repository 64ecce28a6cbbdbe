"""Sessions that are shared: opened when needed, at most so many, the last one used first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

from persistence.errors import StoreClosedError
from persistence.stores.mariadb.driver import Session

__all__ = ["Pool"]


class Pool:
    """Lends sessions, to those who wait in the order in which they came."""

    def __init__(self, open_session: Callable[[], Awaitable[Session]], size: int) -> None:
        self._open_session = open_session
        self._size = size
        self._places = asyncio.Semaphore(size)
        self._idle: list[Session] = []
        self._closed = False

    @asynccontextmanager
    async def session(self, *, fresh: bool) -> AsyncGenerator[Session]:
        """Lend a session; `fresh`: a new one, and those that wait here are dropped, too.

        A session that was closed or aborted is not lent again.

        Raises:
            StoreClosedError: the pool is closed.
            StoreUnavailableError: no session can be opened.
        """
        async with self._places:
            if self._closed:
                raise StoreClosedError("the store is closed")
            idle = self._idle
            if fresh:
                _drop(idle)
            while idle and idle[-1].closed:
                idle.pop().abort()
            session = idle.pop() if idle else await self._open_session()
            try:
                yield session
            finally:
                if idle is not self._idle:
                    session.abort()  # those that it was with are forgotten
                elif not session.closed:
                    idle.append(session)

    async def aclose(self) -> None:
        """Refuse from now on, wait for those who have a session, and close them all."""
        self._closed = True
        for _ in range(self._size):
            await self._places.acquire()
        sessions, self._idle = self._idle, []
        for _ in range(self._size):
            self._places.release()
        await asyncio.gather(*(session.close() for session in sessions))

    def forget(self) -> None:
        """Use none of the sessions that wait: behind the name of a server there may be another one by now."""
        idle, self._idle = self._idle, []
        _drop(idle)


def _drop(sessions: list[Session]) -> None:
    while sessions:
        sessions.pop().abort()
