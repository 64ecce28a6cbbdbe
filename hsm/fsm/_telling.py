"""Telling: outcomes of refused events go to a publisher, apart from the processing, which never waits.

Those of one machine are told in their order, those of several at the same time. One that cannot be told holds
up what follows of its machine, and others no longer than until the next attempt.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Final, TypeAlias

from hsm.engine.clock import Clock, nanos_of, sleep_for
from hsm.fsm.store import Notification, StoreManager
from persistence.proto.statemachine_pb2 import EventResponse

__all__ = ["Publish", "Teller"]

Publish: TypeAlias = Callable[[EventResponse], Awaitable[None]]
"""Tells somebody of an outcome. It may be told twice; if it raises, it is told again later.

It is called for several machines at once, and for the outcomes of one machine one after the other.
"""

_Machine: TypeAlias = tuple[str, str]

_AT_ONCE: Final = 64

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
        self._names: set[str] = set()
        self._everywhere = False
        self.wake()  # there may be some from before

    def wake(self, name: str | None = None) -> None:
        """There may be something to tell, of machines of a configuration name, or of any."""
        if name is None:
            self._everywhere = True
        else:
            self._names.add(name)
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
            names: set[str | None] = {None} if self._everywhere else {*self._names}
            self._names.clear()
            self._everywhere = False
            try:
                for name in names:
                    await self._tell_all(name)
                failures = 0
            except Exception as error:  # noqa: BLE001  whatever a publisher raises, it is tried again
                failures += 1
                for name in names:
                    self.wake(name)
                pause = self._pause_after(failures)
                _logger.warning("notifications wait for %s: %r", pause, error)
                self._idle.set()
                await sleep_for(self._clock, nanos_of(pause), asyncio.get_running_loop().create_future())
            else:
                if not self._news.is_set():
                    self._idle.set()

    async def _tell_all(self, name: str | None) -> None:
        """Tell everything once, of one configuration name or of all; at the end, raise what one has met."""
        failed: dict[_Machine, Exception] = {}
        refusals = 0
        async for batch in _batches(self._store.notifications(name)):
            lines: defaultdict[_Machine, list[Notification]] = defaultdict(list)
            for notification in batch:
                lines[notification.config, notification.response.outcome.id].append(notification)
            machines = [machine for machine in lines if machine not in failed]
            results = await asyncio.gather(
                *(self._tell(lines[machine]) for machine in machines), return_exceptions=True
            )
            for machine, result in zip(machines, results, strict=True):
                if isinstance(result, Exception):
                    failed[machine] = result
                    refusals += 1
                else:
                    refusals = 0
            if refusals >= _AT_ONCE:
                break  # nobody listens
        for error in failed.values():
            raise error

    async def _tell(self, notifications: Sequence[Notification]) -> None:
        for notification in notifications:
            await self._publish(notification.response)
            await self._store.remove_notification(notification)


async def _batches(notifications: AsyncIterator[Notification]) -> AsyncIterator[Sequence[Notification]]:
    batch: list[Notification] = []
    async for notification in notifications:
        batch.append(notification)
        if len(batch) == _AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch
