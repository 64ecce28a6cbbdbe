"""Notifier: tells subscribers that a history has grown, whichever process committed.

A subscriber subscribes first and then reads. A signal that comes while it reads, or before it waits, is kept,
so it reads once more; signals that come faster than they are taken are one. A commit never waits for a
subscriber.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from types import TracebackType
from typing import Final, Self
from uuid import UUID

from persistence.errors import PersistenceError, StoreClosedError
from persistence.journal._rows import HISTORIES, history_key, history_of
from persistence.journal.clock import Clock, sleep
from persistence.journal.observer import JournalObserver
from persistence.store import Change, ChangeKind, EngineStore, Feature, GetRequest, WatchableStore

__all__ = ["Notifier", "Subscription"]

_logger = logging.getLogger(__name__)
_MICROSECOND: Final = timedelta(microseconds=1)
_MAX_TOLD: Final = 1000


class Subscription:
    """Waits for news of one history, or of all. `async with` it, then read, then wait for signals in turn.

    Waitable: `wait` returns at once if a signal has come since the last `wait`.
    """

    def __init__(self, notifier: Notifier, history: UUID | None) -> None:
        self._notifier = notifier
        self._signal = asyncio.Event()
        self._told: dict[UUID, None] = {}
        self._any = False
        self.history: UUID | None = history

    async def __aenter__(self) -> Self:
        await self._notifier.add(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._notifier.remove(self)

    async def wait(self) -> frozenset[UUID]:
        """Return when something may have changed: the histories, or none, which means any of them.

        Where the store cannot be watched, or something may have been missed, the subscriber is woken up
        without a reason: within the notifier's interval at the latest.
        """
        await self._signal.wait()
        self._signal.clear()
        told: frozenset[UUID] = frozenset() if self._any else frozenset(self._told)
        self._told.clear()
        self._any = False
        return told

    def signal(self, history: UUID | None) -> bool:
        """Wake up the subscriber; whether it had nothing to look at before."""
        if history is None or len(self._told) >= _MAX_TOLD:
            self._any = True
        else:
            self._told[history] = None
        news = not self._signal.is_set()
        self._signal.set()
        return news


class Notifier:
    """Passes signals to subscriptions: at once from commits in this process, by watch or poll from others.

    It has one task, and that only while somebody is subscribed. Whether it runs is no matter to a commit.
    """

    def __init__(
        self,
        store: EngineStore,
        partition: str,
        *,
        clock: Clock,
        interval: timedelta,
        observer: JournalObserver,
    ) -> None:
        self._store = store
        self._partition = partition
        self._clock = clock
        self._interval_ns = interval // _MICROSECOND * 1000
        self._observer = observer
        self._subscriptions: set[Subscription] = set()
        self._by_history: dict[UUID | None, set[Subscription]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def __len__(self) -> int:
        return len(self._subscriptions)

    def post(self, history: UUID | None) -> None:
        """Tell that a history has changed; None: any of them may have. Returns at once, always."""
        if not self._subscriptions:
            return
        if history is None:
            told = self._subscriptions
        else:
            told = self._by_history.get(history, set()) | self._by_history.get(None, set())
        for subscription in told:
            if not subscription.signal(history):
                self._observer.signal_dropped()

    async def add(self, subscription: Subscription) -> None:
        """Let a subscription have signals from now on."""
        self._subscriptions.add(subscription)
        self._by_history.setdefault(subscription.history, set()).add(subscription)
        if not self._tasks:
            loop = asyncio.get_running_loop()
            if Feature.WATCH in self._store.features and isinstance(self._store, WatchableStore):
                # Begun here, so that nothing that is committed after this call is missed.
                changes = self._store.watch(self._partition, HISTORIES)
                self._tasks = [loop.create_task(self._watch(self._store, changes))]
            else:
                self._tasks = [loop.create_task(self._poll())]

    async def remove(self, subscription: Subscription) -> None:
        """Let a subscription have no signal any more."""
        self._subscriptions.discard(subscription)
        peers = self._by_history.get(subscription.history, set())
        peers.discard(subscription)
        if not peers:
            self._by_history.pop(subscription.history, None)
        if not self._subscriptions:
            await self.aclose()

    async def aclose(self) -> None:
        """Stop watching; subscriptions that are left hear of commits in this process alone."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, store: WatchableStore, changes: AsyncIterator[Change] | None) -> None:
        while True:
            try:
                if changes is None:
                    changes = store.watch(self._partition, HISTORIES)
                    self.post(None)
                async for change in changes:
                    self.post(history_of(change.key) if change.kind is ChangeKind.KEY else None)
            except StoreClosedError:
                break
            except PersistenceError as error:
                _logger.warning("cannot watch for new events, and will try again: %s", error)
            except Exception:
                # Whatever it is, those who wait must not be forgotten.
                _logger.exception("cannot watch for new events, and will try again")
            else:
                break
            changes = None
            await sleep(self._clock, self._interval_ns)
        # The store was closed, which whoever waits learns when they read.
        self.post(None)

    async def _poll(self) -> None:
        """Look at the histories that somebody waits for; who waits for all is woken up each time."""
        etags: dict[UUID, str | None] = {}
        while True:
            await sleep(self._clock, self._interval_ns)
            histories = [history for history in self._by_history if history is not None]
            etags = {history: etags[history] for history in histories if history in etags}
            requests = [
                GetRequest(key=history_key(history), partition=self._partition) for history in histories
            ]
            try:
                answers = await self._store.bulk_get(requests)
            except StoreClosedError:
                # Whoever waits learns it when they read.
                self.post(None)
                return
            except PersistenceError as error:
                _logger.warning("cannot look for new events: %s", error)
                self.post(None)
                continue
            except Exception:
                # As above.
                _logger.exception("cannot look for new events")
                self.post(None)
                continue
            for history, answer in zip(histories, answers, strict=True):
                if answer.error is not None or etags.get(history, "") != answer.etag:
                    etags[history] = answer.etag
                    self.post(history)
            for subscription in self._by_history.get(None, ()):
                subscription.signal(None)
