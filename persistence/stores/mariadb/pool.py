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
            if fresh:
                self._drop_idle()
            while self._idle and self._idle[-1].closed:
                self._idle.pop().abort()
            session = self._idle.pop() if self._idle else await self._open_session()
            try:
                yield session
            finally:
                if not session.closed:
                    self._idle.append(session)

    async def aclose(self) -> None:
        """Refuse from now on, wait for those who have a session, and close them all."""
        self._closed = True
        for _ in range(self._size):
            await self._places.acquire()
        sessions, self._idle = self._idle, []
        for _ in range(self._size):
            self._places.release()
        await asyncio.gather(*(session.close() for session in sessions))

    def _drop_idle(self) -> None:
        for session in self._idle:
            session.abort()
        self._idle.clear()
