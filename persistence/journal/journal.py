"""The journal: histories of events, each with a version that a commit has to know."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from types import TracebackType
from typing import Final, Self
from uuid import UUID

import attrs

from persistence.features import require
from persistence.journal._appending import Appender
from persistence.journal._coding import Coding
from persistence.journal._combining import FIRST_PAUSE_NS, TRIES, Combiner
from persistence.journal._heads import Heads
from persistence.journal._reading import Reader
from persistence.journal._rows import partition_of
from persistence.journal.clock import Clock, SystemClock, sleep
from persistence.journal.codecs import Codec
from persistence.journal.errors import RetryNoVCError, VersionConflictError
from persistence.journal.events import Committed, Event, NewEvent
from persistence.journal.feed import Feed
from persistence.journal.ids import EPOCH, EventId, EventIdSource
from persistence.journal.notifier import Notifier, Subscription
from persistence.journal.observer import JournalObserver
from persistence.journal.snapshots import Snapshots
from persistence.journal.versions import RETRY_NO_VC, Expectation
from persistence.store import EngineStore, Store

__all__ = ["TRIES", "Journal", "JournalOptions"]


@attrs.frozen(kw_only=True)
class JournalOptions:
    """How a journal works.

    Attributes:
        hash_chain: new events carry a hash of themselves and everything before. It goes on in histories that
            have it already, whatever is said here, and is verified wherever it is there.
        codec: what events and snapshots are encoded with.
        older_codecs: what they may have been encoded with before.
        poll_interval: how soon commits of other processes are noticed where the store cannot be watched.
        kept_heads: of how many histories the head is kept, so that a commit need not read it first.
    """

    hash_chain: bool = False
    codec: Codec | None = None
    older_codecs: tuple[Codec, ...] = ()
    poll_interval: timedelta = timedelta(seconds=1)
    kept_heads: int = 10_000


_DEFAULT_OPTIONS: Final = JournalOptions()


class Journal:
    """Histories of events in one namespace of a store.

    A history is named by a UUID and made by its first commit. Its version is the id of its last event,
    `EPOCH` while it is empty. A commit names the version that it builds upon, and is a conflict if the
    history has another one by then. The events of one commit become visible together, or not at all.

    A journal belongs to the event loop in which it is used. It leaves the store open, which others may use as
    well. `async with` stops its notifier, which runs only while somebody is subscribed.

    Semantics: nog's event journal (4450389), except that a commit that is not first is always a conflict,
    that losers leave nothing behind, and that a deleted history can be created again at once.
    """

    def __init__(
        self,
        store: Store,
        namespace: str,
        *,
        options: JournalOptions = _DEFAULT_OPTIONS,
        clock: Clock | None = None,
        chance: random.Random | None = None,
        observer: JournalObserver | None = None,
    ) -> None:
        """Keep histories in the partition `journal/<namespace>`.

        Raises:
            FeatureMissingError: the store lacks etags, transactions or scans.
            InvalidRequestError: two codecs have one name.
        """
        self.namespace: str = namespace
        self.store: EngineStore = require(store, EngineStore)
        self.partition: str = partition_of(namespace)
        self.clock: Clock = clock or SystemClock()
        self.ids: EventIdSource = EventIdSource(self.clock.time_ns, chance)
        self.observer: JournalObserver = observer or JournalObserver()
        self.options: JournalOptions = options
        self._random: random.Random = chance or random.Random()
        self._coding = Coding("event", namespace, options.codec, options.older_codecs)
        self._heads = Heads(self.store, self.partition, self.ids, options.kept_heads)
        self._appender = Appender(
            self.store,
            self.partition,
            heads=self._heads,
            ids=self.ids,
            coding=self._coding,
            observer=self.observer,
            now=self.clock.time_ns,
            hash_chain=options.hash_chain,
        )
        self._reader = Reader(self.store, self.partition, self._heads, self._coding)
        self.notifier: Notifier = Notifier(
            self.store,
            self.partition,
            clock=self.clock,
            interval=options.poll_interval,
            observer=self.observer,
        )
        self.snapshots: Snapshots = Snapshots(
            self.store,
            self.partition,
            Coding("snapshot", namespace, options.codec, options.older_codecs),
            self.clock,
        )
        self.feed: Feed = Feed(
            self.store,
            namespace,
            self.partition,
            heads=self._heads,
            coding=self._coding,
            ids=self.ids,
            now=self.clock.time_ns,
            subscribe=self.subscribe,
        )
        self._gates: dict[UUID, _Gate] = {}
        self._combiner = Combiner(
            self._appender,
            serialized=self.serialized,
            clock=self.clock,
            chance=self._random,
            observer=self.observer,
            most=self.store.limits.operations - 2,
        )

    def __repr__(self) -> str:
        return f"<Journal {self.namespace!r} in {self.store!r}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop the notifier. The store stays open."""
        await self.notifier.aclose()

    async def head(self, history: UUID) -> EventId:
        """The version of a history; `EPOCH` if it is empty or was deleted."""
        return (await self._heads.read(history)).version

    async def commit(
        self,
        history: UUID,
        events: Sequence[NewEvent],
        expected: Expectation,
        *,
        type: str = "",  # noqa: A002  the field's name
    ) -> Committed:
        """Append events to a history, all of them or none.

        Committing events again that are there already, with the ids they were given, changes nothing and is
        no error, whatever has been committed since. Without events nothing happens, and the version that
        comes back is `expected`, or else the present one.

        Args:
            history: which history; its first commit makes it, with `EPOCH` or without an expectation.
            events: in order.
            expected: the version it must have, or `NO_VC` (one try), or `RETRY_NO_VC` (up to six tries, with
                growing pauses; those that a process makes to one history at the same time go together).
            type: the type of a history that this commit makes: chooses its trim policy.

        Raises:
            VersionConflictError: it has another version; or, without an expectation, somebody else committed
                at the same time.
            UnknownHistoryError: a version is expected of a history that does not exist, or was deleted.
            RetryNoVCError: somebody else was first each time.
            EventMismatchError: an event of this id is there already, with other content.
            InvalidEventError: the ids do not grow.
            TranscodingError: an event cannot be encoded.
            EventCommitUnknownError: the store cannot tell, after three attempts, whether it was committed.
            TransactionTooLargeError: the events do not fit into one transaction of the store.
        """
        if not events:
            return Committed(expected if isinstance(expected, EventId) else await self.head(history))
        if expected is RETRY_NO_VC:
            committed = await self._combiner.commit(history, events, type)
        else:
            try:
                committed = await self._appender.append(history, events, expected, type)
            except VersionConflictError:
                self.observer.conflicted(history)
                raise
        self.observer.committed(history, len(committed.events))
        self.notifier.post(history)
        return committed

    def serialized(self, history: UUID) -> AbstractAsyncContextManager[None]:
        """Wait for those in this process that have entered for the same history before.

        For read-decide-commit cycles, which would otherwise only make each other fail. It keeps nobody else
        from committing.
        """
        return self._serialized(history)

    @asynccontextmanager
    async def _serialized(self, history: UUID) -> AsyncGenerator[None, None]:
        gate = self._gates.get(history)
        if gate is None:
            gate = self._gates[history] = _Gate()
        gate.users += 1
        try:
            async with gate.lock:
                yield
        finally:
            gate.users -= 1
            if not gate.users:
                del self._gates[history]

    def find(
        self,
        history: UUID,
        after: EventId = EPOCH,
        *,
        before: EventId | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> AsyncGenerator[Event, None]:
        """The events of a history, in order, each checked to follow the one before it.

        The events are those that were there when reading began. A history that does not exist, or was
        deleted, has none.

        Args:
            history: which history.
            after: begin behind this event; `EPOCH`: at the beginning, or at the epoch of a trimmed history.
            before: end ahead of this event; None: with the last one.
            reverse: from the end to the beginning.
            limit: so many at most. For the next page, pass the id of the last event as `after`, or as
                `before` if `reverse`.

        Raises:
            TrimmedError: the history does not reach back to `after`, or was deleted: begin again at `EPOCH`.
            UnknownHistoryError: `after` names an event of a history that does not exist.
            UnknownEventError: `after` was never in the history.
            ParentMismatchError: an event is missing.
            CorruptHistoryError: an event was changed or damaged.
            TranscodingError: an event cannot be decoded.
        """
        if reverse:
            return self._reader.backward(history, after, before, limit)
        return self._reader.forward(history, after, before, limit)

    async def delete(self, history: UUID, expected: Expectation) -> bool:
        """Delete a history; whether it was there.

        Nobody can read it from now on. Its rows are removed later, by `Retention`. It can be created again at
        once, by a commit to `EPOCH`. The feed tells of the deletion.

        Raises:
            VersionConflictError: it has another version than expected; or, without an expectation, somebody
                committed at the same time.
            CommitOutcomeUnknownError: the store cannot tell whether it was deleted; try again.
        """
        if expected is RETRY_NO_VC:
            async with self.serialized(history):
                deleted = await self._delete_with_retries(history)
        else:
            deleted = await self._appender.delete(history, expected)
        if deleted:
            self.notifier.post(history)
        return deleted

    async def _delete_with_retries(self, history: UUID) -> bool:
        tries = 0
        while True:
            try:
                return await self._appender.delete(history, RETRY_NO_VC)
            except VersionConflictError as error:
                tries += 1
                if tries == TRIES:
                    raise RetryNoVCError(history, tries, error) from error
            await sleep(self.clock, int(self._random.uniform(0, FIRST_PAUSE_NS << tries)))

    def subscribe(self, history: UUID | None = None) -> Subscription:
        """Signals for a history, or for all of the namespace: subscribe, then find, then wait.

        ```python
        async with journal.subscribe(history) as subscription:
            while True:
                async for event in journal.find(history, seen):
                    seen = event.id
                await subscription.wait()
        ```
        """
        return Subscription(self.notifier, history)


class _Gate:
    __slots__ = ("lock", "users")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users: int = 0
