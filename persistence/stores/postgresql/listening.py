"""Watching: whoever watches is registered in the database, so that writers tell of changes only then.

A registration is made under the lock of its partition: every batch after it sees it, and the changes of
every batch before it can be read when the RESYNC is told. It expires unless it is renewed, so that one who
died costs writers nothing for long.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
import weakref
from collections.abc import Sequence
from functools import partial
from typing import Final

import psycopg
from psycopg.types.numeric import Int8

from persistence.errors import PersistenceError
from persistence.stores.postgresql.locks import channel, partition_id
from persistence.stores.postgresql.notices import read_payload
from persistence.stores.postgresql.packing import Bigints, Texts
from persistence.stores.postgresql.pool import SessionPool
from persistence.stores.postgresql.session import Connector, Session
from persistence.stores.postgresql.sql import Statements
from persistence.watching import Watch

__all__ = ["Listener", "end_task"]

_log = logging.getLogger(__name__)

_LEAST_LIFE_SECONDS: Final = 60
_PATIENCE_SECONDS: Final = 0.2
_FIRST_PAUSE_SECONDS: Final = 0.05
_LONGEST_PAUSE_SECONDS: Final = 2.0


async def end_task(task: asyncio.Task[None]) -> None:
    """Cancel a task, and again until it has ended.

    Before Python 3.12, `asyncio.wait_for`, by which psycopg waits, swallows a cancellation that comes at the
    same moment as what it waits for.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=_PATIENCE_SECONDS)
    if not task.cancelled():
        task.result()


class _Watched:
    """A partition, and who watches it."""

    def __init__(self, partition: str) -> None:
        self.partition = partition
        self.registered = False
        self.watches: weakref.WeakSet[Watch] = weakref.WeakSet()


class Listener:
    """The watches of a store; they share one connection that listens, made with the first of them."""

    def __init__(self, connector: Connector, pool: SessionPool, sql: Statements) -> None:
        self._connector = connector
        self._pool = pool
        self._sql = sql
        self._schema = connector.options.schema
        self._name = uuid.uuid4().hex
        # Long enough that a renewal which takes its time still comes before any writer looks away.
        request_seconds = connector.options.request_timeout.total_seconds()
        self._life_seconds = round(max(_LEAST_LIFE_SECONDS, 6 * request_seconds))
        self._renewal_seconds = self._life_seconds / 3
        self._margin_seconds = round(2 * request_seconds)
        self._watched: dict[int, _Watched] = {}
        self._session: Session | None = None
        self._task: asyncio.Task[None] | None = None
        self._registrations: set[asyncio.Task[None]] = set()

    def watch(self, partition: str, prefix: str) -> Watch:
        """Begin to watch; a RESYNC tells when changes are told for sure."""
        watch = Watch(prefix)
        number = partition_id(self._schema, partition)
        watched = self._watched.get(number)
        if watched is None:
            watched = self._watched[number] = _Watched(partition)
            if self._session is not None:
                self._begin_registration(watched, self._session)
        watched.watches.add(watch)
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="listener of PostgreSQL")
        return watch

    async def aclose(self) -> None:
        """End all watches, and take back what was registered, if the server can be reached."""
        for watched in self._watched.values():
            for watch in watched.watches:
                watch.end()
        for task in (self._task, *self._registrations):
            if task is not None:
                await end_task(task)
        if any(watched.registered for watched in self._watched.values()):
            with contextlib.suppress(PersistenceError):
                await self._forget_others(())

    async def _run(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                session, _ = await self._connector.connect()
                try:
                    await self._set_up(session)
                    pause = _FIRST_PAUSE_SECONDS
                    await self._listen(session)
                finally:
                    self._session = None
                    await session.aclose()
            except (PersistenceError, psycopg.Error) as error:
                _log.info("watches of %s are interrupted: %s", self._connector.where, error)
            except Exception:  # noqa: BLE001  whatever it was, readers must not wait for ever
                _log.exception("watches of %s broke off", self._connector.where)
            for watched in self._watched.values():
                watched.registered = False
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _set_up(self, session: Session) -> None:
        with session.until(self._deadline()):
            await session.rows(f'LISTEN "{channel(self._schema)}"'.encode())
        self._session = session
        for watched in self._watched.values():
            self._begin_registration(watched, session)

    async def _listen(self, session: Session) -> None:
        while True:
            notices = session.connection.notifies(timeout=self._renewal_seconds)
            async with contextlib.aclosing(notices):
                async for notice in notices:
                    self._tell(notice.payload)
            await self._renew(session)

    def _tell(self, payload: str) -> None:
        try:
            number, keys = read_payload(payload)
        except ValueError:
            return  # somebody else uses our channel
        watched = self._watched.get(number)
        if watched is None:
            return
        for watch in watched.watches:
            if keys is None:
                watch.resync()
            else:
                for key in keys:
                    watch.notify(key)

    async def _renew(self, session: Session) -> None:
        """Renew what is still watched; the connection that listens is used, so that its loss is noticed."""
        for number in [number for number, watched in self._watched.items() if not watched.watches]:
            del self._watched[number]
        registered = [watched for watched in self._watched.values() if watched.registered]
        partitions = [watched.partition for watched in registered]
        parameters = (Int8(self._life_seconds), self._name, Texts(partitions), Int8(self._margin_seconds))
        with session.until(self._deadline()):
            renewed = {name for (name,) in await session.rows(self._sql["renew"], parameters)}
            kept = list(self._watched.values())
            names = Texts([watched.partition for watched in kept])
            await session.rows(self._sql["forget"], (self._name, names))
        for watched in self._watched.values():
            if watched not in kept:
                # It may have been registered just before the others were forgotten.
                self._begin_registration(watched, session)
        for watched in registered:
            if watched.partition not in renewed:
                # This process was stopped for so long that writers have forgotten it.
                watched.registered = False
                self._begin_registration(watched, session)

    def _begin_registration(self, watched: _Watched, session: Session) -> None:
        task = asyncio.create_task(self._register(watched, session))
        self._registrations.add(task)
        task.add_done_callback(self._registrations.discard)

    async def _register(self, watched: _Watched, session: Session) -> None:
        """Register a partition while this session listens, and tell its watches."""
        pause = _FIRST_PAUSE_SECONDS
        while self._session is session:
            try:
                await self._pool.run(partial(self._insert, watched.partition))
            except PersistenceError as error:
                _log.info("partition %r is not watched yet: %s", watched.partition, error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            else:
                if self._session is session:
                    watched.registered = True
                    for watch in watched.watches:
                        watch.resync()
                return

    async def _insert(self, partition: str, session: Session) -> None:
        ids = Bigints([partition_id(self._schema, partition)])
        await session.transact(
            *session.opening,
            (self._sql["lock"], (ids,)),
            (self._sql["register"], (partition, self._name, Int8(self._life_seconds))),
            (b"COMMIT", ()),
        )

    async def _forget_others(self, partitions: Sequence[str]) -> None:
        parameters = (self._name, Texts(partitions))
        await self._pool.run(lambda session: session.rows(self._sql["forget"], parameters))

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._connector.options.request_timeout.total_seconds()
