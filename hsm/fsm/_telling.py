"""Telling: outcomes of refused events go to a publisher, apart from the processing, which never waits."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final, TypeAlias

from hsm.engine.clock import Clock, nanos_of, sleep_for
from hsm.fsm.store import StoreManager
from persistence.proto.statemachine_pb2 import EventResponse

__all__ = ["Publish", "Teller"]

Publish: TypeAlias = Callable[[EventResponse], Awaitable[None]]
"""Tells somebody of an outcome. It may be told twice; if it raises, it is told again later."""

_logger: Final = logging.getLogger(__name__)


class Teller:
    """Gives notifications of a store to a publisher, and forgets each when that has succeeded."""

    def __init__(
        self, store: StoreManager, publish: Publish, clock: Clock, pause_after: Callable[[int], timedelta]
    ) -> None:
        self._store = store
        self._publish = publish
        self._clock = clock
        self._pause_after = pause_after
        self._news = asyncio.Event()
        self._idle = asyncio.Event()
        self._news.set()  # there may be some from before

    def wake(self) -> None:
        """There may be something to tell."""
        self._idle.clear()
        self._news.set()

    async def idle(self) -> None:
        """Return when there is nothing to tell, or the publisher has failed."""
        await self._idle.wait()

    async def run(self) -> None:
        """Tell, for ever."""
        failures = 0
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                async for notification in self._store.notifications():
                    await self._publish(notification.response)
                    await self._store.remove_notification(notification)
                failures = 0
            except Exception as error:  # noqa: BLE001  whatever a publisher raises, it is tried again
                failures += 1
                self._news.set()
                pause = self._pause_after(failures)
                _logger.warning("notifications wait for %s: %r", pause, error)
                self._idle.set()
                await sleep_for(self._clock, nanos_of(pause), asyncio.get_running_loop().create_future())
            else:
                if not self._news.is_set():
                    self._idle.set()
