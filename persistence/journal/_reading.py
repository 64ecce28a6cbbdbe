"""Reading: events in the order of their chain, each checked against the one before it."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator
from typing import Final
from uuid import UUID

from persistence.journal._coding import Coding
from persistence.journal._header import trusted
from persistence.journal._heads import Head, Heads
from persistence.journal._rows import event_key, event_of, event_prefix
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
        first = event_key(history, start) + _AFTER
        if limit is not None and limit <= 0:
            return
        chain = _Chain(row, start)
        # What a long history costs is what happens here for each event.
        previous, parent, serial, hashed = start, chain.parent, chain.serial, bool(row.hash)
        digits, left = len(event_prefix(history)), -1 if limit is None else limit
        async for item in self._store.scan(self._partition, first, end, limit=limit):
            id_ = trusted(bytes.fromhex(item.key[digits:]))
            event_row = self._coding.row(history, id_, item.value)
            if hashed:
                await self._check_hash(history, chain, event_row, id_)
            number = event_row.serial
            if event_row.parent != parent or (serial is not None and number != serial + 1):
                chain.stop(previous, serial)
                raise await self._broken(history, chain, event_row, id_, after)
            data = self._coding.data(history, id_, parent, event_row)
            yield Event(history, id_, parent, number, data, event_row.hash)
            previous = parent = id_
            serial = number
            left -= 1
            if left == 0:
                return
        chain.stop(previous, serial)
        if before is None and previous != head.version:
            raise await self._ended_early(history, chain, head, after)
        if chain.nothing_read and before is not None:
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
                chain.hash = row.hash
                return
            chain.hash = self._coding.row(history, chain.previous, answer.data).hash
        if not _is_hashed(chain.hash, row):
            raise CorruptHistoryError(history, id_, "it does not fit the hash chain: something was changed")
        chain.hash = row.hash

    async def _broken(
        self, history: UUID, chain: _Chain, row: EventRow, id_: EventId, after: EventId
    ) -> Exception:
        """Why an event does not follow the one read before it."""
        stale = await self._stale(history, chain.previous, after)
        if stale is not None:
            return stale
        if chain.nothing_read and after != EPOCH:
            return UnknownEventError(history, after)
        if len(row.parent) != len(EPOCH):
            return CorruptHistoryError(history, id_, f"its row names no parent, but {row.parent!r}")
        return ParentMismatchError(history, id_, EventId(row.parent), chain.previous)

    async def _ended_early(self, history: UUID, chain: _Chain, head: Head, after: EventId) -> Exception:
        """Why a history ends before its head."""
        stale = await self._stale(history, chain.previous, after)
        if stale is not None:
            return stale
        if chain.nothing_read and after > head.version:
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
    """Where reading begins in the chain of parents, and where it has stopped.

    Attributes:
        previous: the event that was read last, or the one to begin behind.
        parent: what the first event has to name as its parent.
        serial: the number of `previous`; None if it is not known.
        hash: the hash of `previous`, while hashes are checked; None if it is not known.
        nothing_read: whether no event was read.
    """

    __slots__ = ("_start", "hash", "nothing_read", "parent", "previous", "serial")

    def __init__(self, row: HistoryHead, start: EventId) -> None:
        self._start = start
        self.previous: EventId = start
        # The first event of a life has no parent.
        self.parent: EventId = EPOCH if start == (row.base or EPOCH) else start
        self.serial: int | None = None
        self.hash: bytes | None = None
        self.nothing_read: bool = True
        if start == EPOCH:
            self.hash, self.serial = b"", 0
        else:
            for mark in (row.epoch, row.tail):
                if start == mark.event_id:
                    self.hash, self.serial = mark.hash, mark.serial

    def stop(self, previous: EventId, serial: int | None) -> None:
        """Take note of where reading has stopped."""
        self.previous = previous
        self.serial = serial
        self.nothing_read = previous == self._start
