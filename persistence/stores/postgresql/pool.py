"""Sessions for reading: made when they are needed, kept for the next one, replaced when they are lost.

psycopg_pool would do, if it told its clients why it has no connection for them; it lets them wait for the
whole time-out instead, and keeps the reason to itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import psycopg

from persistence.errors import StoreUnavailableError
from persistence.stores.postgresql.failures import is_stale
from persistence.stores.postgresql.session import Connector, Session

__all__ = ["SessionPool"]

T = TypeVar("T")


class SessionPool:
    """At most so many sessions at a time; who comes late waits for his turn."""

    def __init__(self, connector: Connector, first: Session, size: int) -> None:
        self._connector = connector
        self._idle = [first]
        self._turns = asyncio.Semaphore(size)
        self._tasks: set[asyncio.Task[object]] = set()

    async def run(self, work: Callable[[Session], Awaitable[T]]) -> T:
        """Do some work in a session; once more in a new one if that was lost, so it must bear repetition.

        A caller that is cancelled does not disturb the work.

        Raises:
            PersistenceError: the server cannot be reached or does not answer, or whatever the work met.
        """
        task = asyncio.create_task(self._run(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def aclose(self) -> None:
        """Disconnect when the work that was begun is done."""
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._discard()

    async def _run(self, work: Callable[[Session], Awaitable[T]]) -> T:
        seconds = self._connector.options.request_timeout.total_seconds()
        deadline = asyncio.get_running_loop().time() + seconds
        try:
            async with asyncio.timeout_at(deadline):
                await self._turns.acquire()
        except TimeoutError as error:
            raise StoreUnavailableError(
                f"{self._connector.where} is too slow: all readers are busy for {seconds:g} s"
            ) from error
        try:
            if self._idle:
                session = self._idle.pop()
                try:
                    return await self._use(session, work, deadline)
                except psycopg.Error as error:
                    if session.hung or not (session.lost or is_stale(error)):
                        raise session.failure(error) from error
                    # Where one was lost, the others will be, too.
                    await self._discard()
            session, _ = await self._connector.connect(deadline)
            try:
                return await self._use(session, work, deadline)
            except psycopg.Error as error:
                raise session.failure(error) from error
        finally:
            self._turns.release()

    async def _use(self, session: Session, work: Callable[[Session], Awaitable[T]], deadline: float) -> T:
        try:
            with session.until(deadline):
                answer = await work(session)
        except psycopg.Error as error:
            if session.idle and not is_stale(error):
                self._idle.append(session)
            else:
                await session.aclose()
            raise
        except BaseException:
            await session.aclose()
            raise
        self._idle.append(session)
        return answer

    async def _discard(self) -> None:
        while self._idle:
            await self._idle.pop().aclose()
