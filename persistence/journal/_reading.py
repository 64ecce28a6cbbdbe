"""Reading: events in the order of their chain, each checked against the one before it."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator
from typing import Final
from uuid import UUID

from persistence.journal._coding import Coding
from persistence.journal._heads import Head, Heads
from persistence.journal._rows import event_key, event_of
from persistence.journal.errors import (
    CorruptHistoryError,
    ParentMismatchError,
    StaleCursorError,
    TrimmedError,
    UnknownEventError,
    UnknownHistoryError,
)
from persistence.journal.events import Event
from persistence.journal.ids import EPOCH, EventId
from persistence.proto.journal_pb2 import EventRow, HistoryHead
from persistence.store import EngineStore, GetRequest

__all__ = ["Reader"]

# Sorts behind the key it is appended to, and before every other one.
_AFTER: Final = "/"


class Reader:
    """Reads histories of one namespace."""

    def __init__(self, store: EngineStore, partition: str, heads: Heads, coding: Coding) -> None:
        self._store = store
        self._partition = partition
        self._heads = heads
        self._coding = coding

    async def forward(
        self, history: UUID, after: EventId, before: EventId | None, limit: int | None
    ) -> AsyncGenerator[Event, None]:
        """Events behind `after` and ahead of `before`, oldest first."""
        head = await self._heads.read(history)
        row = self._open(history, head, after)
        if row is None:
            return
        start = head.epoch if after == EPOCH else after
        end = event_key(history, head.version) + _AFTER if before is None else event_key(history, before)
        chain = _Chain(row, start)
        first = event_key(history, start) + _AFTER
        if limit is not None and limit <= 0:
            return
        async for item in self._store.scan(self._partition, first, end, limit=limit):
            id_ = event_of(item.key)
            event_row = self._coding.row(history, id_, item.value)
            if row.hash:
                await self._check_hash(history, chain, event_row, id_)
            if not chain.follows(event_row, id_):
                raise await self._broken(history, chain, event_row, id_, after)
            yield self._coding.event_of_row(history, id_, event_row)
            chain.move(event_row, id_)
            if limit is not None and chain.count == limit:
                return
        if before is None and chain.previous != head.version:
            raise await self._ended_early(history, chain, head, after)
        if chain.count == 0 and before is not None:
            await self._must_exist(history, start, after, head)

    async def backward(
        self, history: UUID, after: EventId, before: EventId | None, limit: int | None
    ) -> AsyncGenerator[Event, None]:
        """Events ahead of `before` and behind `after`, newest first."""
        head = await self._heads.read(history)
        if self._open(history, head, after) is None or head.row is None:
            return
        start = head.epoch if after == EPOCH else after
        end = event_key(history, head.version) + _AFTER if before is None else event_key(history, before)
        first = event_key(history, start) + _AFTER
        if limit is not None and limit <= 0:
            return
        expected = head.version if before is None else None
        count = 0
        later: EventRow | None = None
        async for item in self._store.scan(self._partition, first, end, limit=limit, reverse=True):
            id_ = event_of(item.key)
            row = self._coding.row(history, id_, item.value)
            if expected is not None and id_ != expected:
                raise await self._missing(history, expected, head, after)
            if later is not None and not _is_hashed(row.hash, later):
                raise CorruptHistoryError(history, id_, "what follows does not fit the hash chain")
            event = self._coding.event_of_row(history, id_, row)
            yield event
            count += 1
            later, expected = row, event.parent
            if count == limit:
                return
        if expected is None:
            await self._must_exist(history, start, after, head)
        elif expected != (EPOCH if start == head.base else start):
            raise await self._missing(history, expected, head, after)

    def _open(self, history: UUID, head: Head, after: EventId) -> HistoryHead | None:
        if head.active:
            if after != EPOCH and (after < head.tail or after <= head.base):
                raise TrimmedError(history, after, head.epoch)
            return head.row
        if after == EPOCH:
            return None
        if head.row is None:
            raise UnknownHistoryError(history, after)
        raise TrimmedError(history, after, EPOCH)

    async def _must_exist(self, history: UUID, start: EventId, after: EventId, head: Head) -> None:
        """Raise if the event where reading should begin is none of the history."""
        if start in (EPOCH, head.version, head.epoch):
            return
        key = event_key(history, start)
        answer = await self._store.get(GetRequest(key=key, partition=self._partition))
        if answer.data is None:
            raise UnknownEventError(history, after)

    async def _check_hash(self, history: UUID, chain: _Chain, row: EventRow, id_: EventId) -> None:
        if chain.hash is None:
            # Reading begins in the middle: the hash to begin with stands in the event before.
            key = event_key(history, chain.previous)
            answer = await self._store.get(GetRequest(key=key, partition=self._partition))
            if answer.data is None:
                # Whether the event is gone or never was, the check of the parents tells.
                return
            chain.hash = self._coding.row(history, chain.previous, answer.data).hash
        if not _is_hashed(chain.hash, row):
            raise CorruptHistoryError(history, id_, "it does not fit the hash chain: something was changed")

    async def _broken(
        self, history: UUID, chain: _Chain, row: EventRow, id_: EventId, after: EventId
    ) -> Exception:
        """Why an event does not follow the one read before it."""
        stale = await self._stale(history, chain.previous, after)
        if stale is not None:
            return stale
        if chain.count == 0 and after != EPOCH:
            return UnknownEventError(history, after)
        return ParentMismatchError(history, id_, EventId(row.parent), chain.previous)

    async def _ended_early(self, history: UUID, chain: _Chain, head: Head, after: EventId) -> Exception:
        """Why a history ends before its head."""
        stale = await self._stale(history, chain.previous, after)
        if stale is not None:
            return stale
        if chain.count == 0 and after > head.version:
            return UnknownEventError(history, after)
        return CorruptHistoryError(history, head.version, f"it is missing behind {chain.previous}")

    async def _missing(self, history: UUID, missing: EventId, head: Head, after: EventId) -> Exception:
        now = await self._heads.read(history)
        if not now.active or now.base != head.base or now.tail > max(after, head.epoch):
            return TrimmedError(history, after, now.epoch)
        if missing < after:
            return UnknownEventError(history, after)
        return CorruptHistoryError(history, missing, f"it is missing below {head.version}")

    async def _stale(self, history: UUID, reached: EventId, after: EventId) -> StaleCursorError | None:
        """The error for a history that was trimmed or deleted while it was read; None if it was not."""
        now = await self._heads.read(history)
        if not now.active or now.tail > reached:
            return TrimmedError(history, after, now.epoch)
        return None


def _is_hashed(parent: bytes, row: EventRow) -> bool:
    """Whether an event has the hash that follows from its parent's, or neither has one."""
    if not row.hash and not parent:
        return True
    return row.hash == hashlib.sha256(parent + row.data).digest()


class _Chain:
    """How far reading has come along the chain of parents."""

    __slots__ = ("_base", "_serial", "count", "hash", "previous")

    def __init__(self, row: HistoryHead, start: EventId) -> None:
        self.previous: EventId = start
        self.count: int = 0
        # The first event of a life has no parent.
        self._base = row.base or EPOCH
        self._serial: int | None = None
        # None: not known yet.
        self.hash: bytes | None = None
        if start == EPOCH:
            self.hash, self._serial = b"", 0
        else:
            for mark in (row.epoch, row.tail):
                if start == mark.event_id:
                    self.hash, self._serial = mark.hash, mark.serial

    def follows(self, row: EventRow, id_: EventId) -> bool:
        """Whether an event is the next one."""
        if self._serial is not None and row.serial != self._serial + 1:
            return False
        parent = EPOCH if self.previous == self._base else self.previous
        return row.parent == parent and id_ > self.previous

    def move(self, row: EventRow, id_: EventId) -> None:
        """Go on to an event."""
        self.previous = id_
        self.count += 1
        self._serial = row.serial
        self.hash = row.hash
