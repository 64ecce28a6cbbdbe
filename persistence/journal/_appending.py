"""Appending: events, the head they make, and their place in the queue for the feed, in one transaction."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from typing import Final
from uuid import UUID

from persistence.errors import CommitOutcomeUnknownError, ETagMismatchError
from persistence.journal._coding import Coding
from persistence.journal._gathering import Gatherer
from persistence.journal._header import with_header
from persistence.journal._heads import Head, Heads
from persistence.journal._plans import Plan, head_request, pending_request, void_requests
from persistence.journal._rows import event_key
from persistence.journal.errors import (
    EventCommitUnknownError,
    EventMismatchError,
    InvalidEventError,
    UnknownHistoryError,
    VersionConflictError,
)
from persistence.journal.events import Committed, Event, NewEvent
from persistence.journal.ids import EPOCH, EventId, EventIdSource
from persistence.journal.observer import JournalObserver
from persistence.journal.versions import Expectation
from persistence.proto.journal_pb2 import (
    HISTORY_PHASE_ACTIVE,
    HISTORY_PHASE_DELETING,
    EventRow,
    FeedBlock,
    HistoryHead,
    HistoryMark,
)
from persistence.store import EngineStore, GetRequest, SetRequest

__all__ = ["Appender"]

_TRIES_OF_UNKNOWN_OUTCOME: Final = 3
_KEY_BYTES: Final = 67


class Appender:
    """Commits events of one namespace; one try a call, unless the store cannot tell what became of it."""

    def __init__(
        self,
        store: EngineStore,
        partition: str,
        *,
        heads: Heads,
        ids: EventIdSource,
        coding: Coding,
        observer: JournalObserver,
        now: Callable[[], int],
        hash_chain: bool,
    ) -> None:
        self._store = store
        self._partition = partition
        self._heads = heads
        self._ids = ids
        self._coding = coding
        self._observer = observer
        self._now = now
        self._hash_chain = hash_chain
        self._gatherer = Gatherer(store, partition, heads=heads, ids=ids)
        # Besides the key and the value of a row.
        self._overhead = len(partition.encode()) + _KEY_BYTES

    async def append(
        self, history: UUID, events: Sequence[NewEvent], expected: Expectation, type_: str
    ) -> Committed:
        """Commit events in one try.

        A conflict with a head that was merely kept from an earlier commit counts as no try.
        """
        ids = _given_ids(events)
        head = self._heads.kept(history)
        fresh = head is None or (isinstance(expected, EventId) and head.version != expected)
        if head is None or fresh:
            head = await self._heads.read(history)
        while True:
            if ids and ids[0] <= head.last:
                return await self._repeated(history, events, ids, head, expected)
            _check(history, head, expected)
            plan = self._plan(history, events, head, type_)
            try:
                return await self._commit(history, plan)
            except ETagMismatchError as error:
                self._heads.forget(history)
                found = await self._heads.read(history)
                repeated = bool(ids) and ids[0] <= found.last
                if fresh and found.version != head.version and not repeated:
                    raise VersionConflictError(history, found.version, head.version) from error
                head, fresh = found, True

    async def _commit(self, history: UUID, plan: Plan) -> Committed:
        tries = 0
        while True:
            try:
                await (self._gatherer.write_alone(plan) if tries else self._gatherer.write(plan))
            except CommitOutcomeUnknownError as error:
                # The same events under the same condition: if the first attempt comes through, now or later,
                # the second one cannot.
                tries += 1
                if tries == _TRIES_OF_UNKNOWN_OUTCOME:
                    raise EventCommitUnknownError(history, plan.events, error) from error
                self._observer.retried(history)
            except ETagMismatchError:
                if tries and (found := await self._own(plan)) is not None:
                    return found
                raise
            else:
                return Committed(plan.events[-1].id, plan.events)

    async def _own(self, plan: Plan) -> Committed | None:
        """The commit, if it turns out to have come through after all."""
        last, write = plan.events[-1], plan.rows[-1]
        found = await self._store.get(GetRequest(key=write.key, partition=self._partition))
        # With an id that was given, it may be that of somebody else.
        return Committed(last.id, plan.events) if found.data == write.value else None

    def _plan(self, history: UUID, events: Sequence[NewEvent], head: Head, type_: str) -> Plan:
        row = HistoryHead()
        if head.row is not None:
            row.CopyFrom(head.row)
        if not head.active:
            _begin_life(row, head, type_, self._now())
        parent = head.version
        latest = after = head.latest
        serial, hash_ = row.serial, row.hash
        hashed = self._hash_chain or bool(hash_)
        made: list[Event] = []
        rows: list[SetRequest] = []
        size = 0
        for event in events:
            id_ = event.id
            if id_ is None:
                id_ = after = self._ids.new(after)
            else:
                after = max(after, id_)
            serial += 1
            data = with_header(event.payload, id_, parent)
            stored, codec = self._coding.encode(history, id_, data)
            if hashed:
                hash_ = hashlib.sha256(hash_ + stored).digest()
            value = EventRow(
                serial=serial, parent=parent, data=stored, codec=codec, hash=hash_
            ).SerializeToString()
            rows.append(SetRequest(key=event_key(history, id_), value=value, partition=self._partition))
            size += len(value) + self._overhead
            made.append(Event(history, id_, parent, serial, data, hash_))
            parent = id_
        # Greater than that of the commit before, which orders the commits of a history in the feed. An id
        # that somebody else has made may come from any time, and would put the commit there.
        stamp = parent if events[0].id is None else self._ids.new(latest)
        row.head = parent
        row.serial = serial
        row.hash = hash_
        return Plan(self._partition, history, head, latest, row, tuple(made), rows, stamp, size)

    async def _repeated(
        self,
        history: UUID,
        events: Sequence[NewEvent],
        ids: Sequence[EventId],
        head: Head,
        expected: Expectation,
    ) -> Committed:
        """What became of events whose ids are not new: all of them are there as given, or an error."""
        requests = [GetRequest(key=event_key(history, id_), partition=self._partition) for id_ in ids]
        answers = await self._store.bulk_get(requests)
        found: list[Event] = []
        for event, id_, answer in zip(events, ids, answers, strict=True):
            if answer.error is not None:
                raise answer.error
            if answer.data is None or not head.active or id_ <= head.base:
                continue
            stored = self._coding.event(history, id_, answer.data)
            if stored.data != with_header(event.payload, id_, stored.parent):
                raise EventMismatchError(history, id_)
            found.append(stored)
        if len(found) < len(events):
            _check(history, head, expected)
            raise InvalidEventError(
                f"history {history}: event {ids[0]} is not newer than the last one, {head.last}, and "
                f"{len(events) - len(found)} of {len(events)} events are not in the history: ids have to grow"
            )
        for previous, following in itertools.pairwise(found):
            if following.parent != previous.id:
                raise EventMismatchError(history, following.id)
        if isinstance(expected, EventId) and expected not in (found[0].parent, head.version):
            raise VersionConflictError(history, head.version, expected)
        return Committed(head.version, tuple(found))

    async def delete(self, history: UUID, expected: Expectation) -> bool:
        """Delete a history in one try; whether it was there."""
        head = await self._heads.read(history)
        while head.active and head.row is not None:
            if isinstance(expected, EventId) and head.version != expected:
                raise VersionConflictError(history, head.version, expected)
            row = HistoryHead()
            row.CopyFrom(head.row)
            row.phase = HISTORY_PHASE_DELETING
            row.deleted_at_nanos = self._now()
            stamp = self._ids.new(EventId(row.stamp))
            row.stamp = stamp
            block = FeedBlock(histories=history.bytes, lives=[row.life], counts=[0])
            try:
                await self._store.multi(
                    [
                        head_request(self._partition, history, head, row),
                        pending_request(self._partition, stamp, block),
                        *void_requests(self._partition, history, head.version, head.tail),
                    ]
                )
            except ETagMismatchError as error:
                found = await self._heads.read(history)
                if found.version not in (head.version, EPOCH):
                    raise VersionConflictError(history, found.version, head.version) from error
                head = found
            else:
                self._heads.forget(history)
                return True
        self._heads.forget(history)
        return False


def _given_ids(events: Sequence[NewEvent]) -> list[EventId]:
    """The ids of the events, if they are given.

    Raises:
        InvalidEventError: some are given, and some not; or they do not grow.
    """
    ids = [event.id for event in events if event.id is not None]
    if not ids:
        return ids
    if len(ids) < len(events):
        raise InvalidEventError(f"{len(ids)} of {len(events)} events have an id; either all of them or none")
    for previous, id_ in zip([EPOCH, *ids], ids, strict=False):
        if id_ <= previous:
            raise InvalidEventError(f"event {id_} stands behind {previous}: ids have to grow")
    return ids


def _check(history: UUID, head: Head, expected: Expectation) -> None:
    if isinstance(expected, EventId) and head.version != expected:
        if head.version == EPOCH:
            raise UnknownHistoryError(history, expected)
        raise VersionConflictError(history, head.version, expected)


def _begin_life(row: HistoryHead, head: Head, type_: str, now: int) -> None:
    """Begin a history, or one that was deleted once more: what it held stays behind its tail."""
    if head.row is not None:
        row.Clear()
        row.serial = head.row.serial
        row.stamp = head.row.stamp
        row.life = head.row.life
        row.base = head.row.head
        mark = HistoryMark(event_id=head.row.head, serial=head.row.serial, set_at_nanos=now)
        row.epoch.CopyFrom(mark)
        row.tail.CopyFrom(mark)
    row.life = max(now, row.life + 1)
    row.phase = HISTORY_PHASE_ACTIVE
    row.type = type_
