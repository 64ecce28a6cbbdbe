"""Retention: what of histories is hidden, what is removed, and when."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol
from uuid import UUID

import attrs

from persistence.errors import ConflictError, StoreClosedError, StoreUnavailableError
from persistence.journal._heads import Head, mark_id, parse_head
from persistence.journal._plans import head_request, void_requests
from persistence.journal._rows import (
    HISTORIES,
    event_key,
    event_prefix,
    history_key,
    history_of,
    snapshot_key,
    void_key,
)
from persistence.journal.events import Event
from persistence.journal.ids import EPOCH, EventId
from persistence.journal.journal import Journal
from persistence.options import prefix_end
from persistence.proto.journal_pb2 import (
    HISTORY_PHASE_DELETED,
    HISTORY_PHASE_DELETING,
    HistoryHead,
    HistoryMark,
)
from persistence.store import DeleteRequest, GetRequest, Item, Operation

__all__ = ["CollectReport", "Retention", "RetentionOptions", "TrimPolicy", "TrimReport"]

_logger = logging.getLogger(__name__)
_MICROSECOND: Final = timedelta(microseconds=1)
_BEGINNING: Final = datetime(1970, 1, 1, tzinfo=UTC)


class TrimPolicy(Protocol):
    """Decides for a type of histories how far back they can be read, and how far back they are kept.

    Trimming takes two steps, in two runs: an epoch hides what is before it, and later becomes the tail, and
    what is before the tail is removed.
    """

    def is_new_epoch(self, last: Event, following: Event | None, now: datetime) -> bool:
        """Whether reading can begin behind `last`, with `following`; None: there is nothing behind it yet."""
        ...

    def is_new_tail(self, epoch: EventId, set_at: datetime, now: datetime) -> bool:
        """Whether what is before an epoch that was set at a time can be removed."""
        ...


@attrs.frozen(kw_only=True)
class RetentionOptions:
    """When things happen.

    Attributes:
        epoch_spacing: how long after an epoch the next one can be set.
        tail_grace: how long what is before a new tail is kept, for those who are reading it.
        events_kept: how long the events of a deleted history are kept.
        deletions_kept: how long it is known that a history was deleted; from then on its numbers begin anew.
        feed_kept: how long the feed can be read back, and so how far behind a projection may fall; None: for
            ever. Unless it is set, a namespace whose feed nobody reads grows with each commit, too.
        batch: rows that are removed in one transaction, at most.
    """

    epoch_spacing: timedelta = timedelta(days=30)
    tail_grace: timedelta = timedelta(hours=1)
    events_kept: timedelta = timedelta(days=15)
    deletions_kept: timedelta = timedelta(days=30)
    feed_kept: timedelta | None = None
    batch: int = 500


@attrs.define
class TrimReport:
    """What a run of `Retention.trim` has done.

    Attributes:
        histories: how many active histories have a policy.
        epochs: new epochs.
        tails: new tails.
        failures: histories that could not be trimmed, and why.
    """

    histories: int = 0
    epochs: int = 0
    tails: int = 0
    failures: list[tuple[UUID, Exception]] = attrs.field(factory=list[tuple[UUID, Exception]])


@attrs.define
class CollectReport:
    """What a run of `Retention.collect` has done.

    Attributes:
        histories: how many were looked at.
        events: events removed.
        emptied: deleted histories that have lost their events now.
        forgotten: deleted histories that nothing is known of any more.
        positions: positions of the feed removed.
        failures: histories that something went wrong with, and what.
    """

    histories: int = 0
    events: int = 0
    emptied: int = 0
    forgotten: int = 0
    positions: int = 0
    failures: list[tuple[UUID, Exception]] = attrs.field(factory=list[tuple[UUID, Exception]])


class Retention:
    """Trims histories by the policies of their types, and removes what nobody can read any more.

    Both runs go through all histories of the namespace, in batches, beside whatever is committed meanwhile. A
    history that fails is reported, and the run goes on with the next one; one that changes meanwhile has its
    turn in the next run. Only a store that cannot be reached ends a run. Call them from time to time; several
    processes may.
    """

    def __init__(
        self,
        journal: Journal,
        policies: Mapping[str, TrimPolicy] | None = None,
        *,
        options: RetentionOptions | None = None,
    ) -> None:
        """Retention for a journal; `policies` by type of history. One without a policy is not trimmed."""
        self._journal = journal
        self._policies = dict(policies or {})
        self._options = options or RetentionOptions()
        self._batch = max(min(self._options.batch, journal.store.limits.operations - 1), 1)

    async def trim(self) -> TrimReport:
        """Set new tails, and then new epochs; an epoch becomes a tail in a later run at the earliest."""
        report = TrimReport()

        async def trim(history: UUID, head: Head) -> None:
            if head.row is None or not head.active or head.row.type not in self._policies:
                return
            report.histories += 1
            policy = self._policies[head.row.type]
            row = HistoryHead()
            row.CopyFrom(head.row)
            now = self._journal.clock.time_ns()
            tails = _move_tail(row, policy, now)
            epochs = await self._move_epoch(history, row, policy, now)
            if not tails and not epochs:
                return
            partition = self._journal.partition
            operations: list[Operation] = [head_request(partition, history, head, row)]
            if tails:
                operations += void_requests(partition, history, mark_id(row.tail), head.tail)
            await self._journal.store.multi(operations)
            report.tails += tails
            report.epochs += epochs

        await self._each(trim, report.failures)
        return report

    async def _move_epoch(self, history: UUID, row: HistoryHead, policy: TrimPolicy, now: int) -> bool:
        if row.epochs and now - row.epochs[-1].set_at_nanos < _nanos(self._options.epoch_spacing):
            return False
        moment = _moment(now)
        chosen: Event | None = None
        last: Event | None = None
        # Up to the head that the mark is set under, and not what is committed meanwhile.
        async for event in self._journal.find(history):
            if last is not None and policy.is_new_epoch(last, event, moment):
                chosen = last
            last = event
        if last is not None and last.id == row.head and policy.is_new_epoch(last, None, moment):
            chosen = last
        if chosen is None:
            return False
        mark = HistoryMark(event_id=chosen.id, serial=chosen.serial, hash=chosen.hash, set_at_nanos=now)
        row.epoch.CopyFrom(mark)
        row.epochs.append(mark)
        return True

    async def collect(self) -> CollectReport:
        """Remove events before the tail of their history, rows of deleted histories, and the old feed."""
        report = CollectReport()

        async def collect(history: UUID, head: Head) -> None:
            if head.row is None:
                return
            report.histories += 1
            now = self._journal.clock.time_ns()
            deleted_for = now - head.row.deleted_at_nanos
            if head.active:
                if now - head.row.tail.set_at_nanos >= _nanos(self._options.tail_grace):
                    report.events += await self._remove_before_tail(history, head.tail)
            elif head.row.phase == HISTORY_PHASE_DELETING:
                if deleted_for >= _nanos(self._options.events_kept):
                    # Up to the last event of this life: if the history is created again meanwhile, what it
                    # has then comes behind.
                    report.events += await self._remove_events(history, head.last)
                    await self._mark_emptied(history, head)
                    report.emptied += 1
            elif deleted_for >= _nanos(self._options.deletions_kept):
                await self._journal.store.delete(
                    DeleteRequest(key=history_key(history), partition=self._journal.partition, etag=head.etag)
                )
                report.forgotten += 1

        await self._each(collect, report.failures)
        self._journal.observer.collected("events", report.events)
        self._journal.observer.collected("histories", report.forgotten)
        if self._options.feed_kept is not None:
            report.positions = await self._trim_feed(self._options.feed_kept)
            self._journal.observer.collected("feed", report.positions)
        return report

    async def _trim_feed(self, kept: timedelta) -> int:
        feed = self._journal.feed
        # What nobody has read has no position yet, and gets one, from which its age counts.
        await feed.last_position()
        trimmed_before = await feed.trim(0)
        position = await feed.position_before(self._journal.clock.time_ns() - _nanos(kept))
        return await feed.trim(position) - trimmed_before

    async def _mark_emptied(self, history: UUID, head: Head) -> None:
        row = HistoryHead()
        if head.row is not None:
            row.CopyFrom(head.row)
        row.phase = HISTORY_PHASE_DELETED
        partition = self._journal.partition
        await self._journal.store.multi(
            [
                head_request(partition, history, head, row),
                DeleteRequest(key=snapshot_key(history), partition=partition),
                DeleteRequest(key=void_key(history, head.last), partition=partition),
            ]
        )

    async def _remove_before_tail(self, history: UUID, tail: EventId) -> int:
        """Remove the events up to the tail, unless that was done before."""
        store, partition = self._journal.store, self._journal.partition
        key = void_key(history, tail)
        if tail == EPOCH or (await store.get(GetRequest(key=key, partition=partition))).data is None:
            return 0
        removed = await self._remove_events(history, tail)
        await store.delete(DeleteRequest(key=key, partition=partition))
        return removed

    async def _remove_events(self, history: UUID, last: EventId) -> int:
        """Remove the events up to this one."""
        store, partition = self._journal.store, self._journal.partition
        removed = 0
        end = event_key(history, last) + "/"
        while True:
            keys = [
                item.key
                async for item in store.scan(partition, event_prefix(history), end, limit=self._batch)
            ]
            if keys:
                await store.multi([DeleteRequest(key=key, partition=partition) for key in keys])
                removed += len(keys)
            if len(keys) < self._batch:
                return removed

    async def _each(
        self, act: Callable[[UUID, Head], Awaitable[None]], failures: list[tuple[UUID, Exception]]
    ) -> None:
        async for item in self._histories():
            try:
                history = history_of(item.key)
            except ValueError:
                _logger.error("the row %r has no place in a journal", item.key)  # noqa: TRY400  it is no error of ours
                continue
            try:
                await act(history, Head(parse_head(history, item.value), item.etag))
            except ConflictError:
                _logger.info("history %s changes; it has its turn in the next run", history)
            except (StoreClosedError, StoreUnavailableError):
                # No fault of the history, and the next one would meet the same.
                raise
            except Exception as error:
                # Whatever it is, a policy's error too: it must not keep the others from their turn.
                _logger.exception("retention of history %s failed", history)
                self._journal.observer.collection_failed(history, error)
                failures.append((history, error))

    async def _histories(self) -> AsyncIterator[Item]:
        """The rows of all histories, read batch by batch, so that no scan stays open while we work."""
        store, partition = self._journal.store, self._journal.partition
        start, end = HISTORIES, prefix_end(HISTORIES)
        while True:
            items = [item async for item in store.scan(partition, start, end, limit=self._batch)]
            for item in items:
                yield item
            if len(items) < self._batch:
                return
            start = items[-1].key + "/"


def _move_tail(row: HistoryHead, policy: TrimPolicy, now: int) -> bool:
    """Let the last epoch that can become the tail become it."""
    tail = mark_id(row.tail)
    chosen: HistoryMark | None = None
    for mark in row.epochs:
        epoch = mark_id(mark)
        if epoch > tail and policy.is_new_tail(epoch, _moment(mark.set_at_nanos), _moment(now)):
            chosen = mark
    if chosen is None:
        return False
    row.tail.CopyFrom(chosen)
    row.tail.set_at_nanos = now
    later = [mark for mark in row.epochs if mark_id(mark) >= mark_id(row.tail)]
    del row.epochs[:]
    row.epochs.extend(later)
    return True


def _nanos(duration: timedelta) -> int:
    return duration // _MICROSECOND * 1000


def _moment(nanos: int) -> datetime:
    return _BEGINNING + timedelta(microseconds=nanos // 1000)
