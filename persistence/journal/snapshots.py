"""Snapshots: what a history comes to up to an event, so that reading need not begin at the beginning.

A snapshot is no part of its history. It can be dropped at any time, and one that does not fit, in version or
in place, is as good as none.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

import attrs
from google.protobuf.message import DecodeError

from persistence.errors import ETagMismatchError
from persistence.journal._coding import Coding
from persistence.journal._heads import Head, parse_head
from persistence.journal._rows import history_key, snapshot_key
from persistence.journal.clock import Clock
from persistence.journal.errors import TranscodingError
from persistence.journal.ids import EPOCH, EventId
from persistence.proto.journal_pb2 import SnapshotRow
from persistence.store import Concurrency, DeleteRequest, EngineStore, GetRequest, SetOptions, SetRequest

__all__ = ["Snapshot", "Snapshots"]

_MUST_BE_ABSENT: Final = SetOptions(concurrency=Concurrency.FIRST_WRITE)


@attrs.frozen
class Snapshot:
    """What a history has come to.

    Attributes:
        event_id: the last event that it knows of: go on reading behind it.
        data: as it was saved.
    """

    event_id: EventId
    data: bytes = attrs.field(repr=False)


class Snapshots:
    """Keeps one snapshot of a history, the latest."""

    def __init__(self, store: EngineStore, partition: str, coding: Coding, clock: Clock) -> None:
        self._store = store
        self._partition = partition
        self._coding = coding
        self._clock = clock

    async def save(self, history: UUID, event_id: EventId, data: bytes, *, version: int) -> bool:
        """Keep a snapshot unless there is one of a later event, and of the same or a later version, already.

        Args:
            history: of which history.
            event_id: the last event that went into it.
            data: your own; encoded as events are.
            version: of your code that made it: another one does not load it.

        Returns:
            Whether it was kept. Losing a race against another writer is no error.

        Raises:
            TranscodingError: it cannot be encoded.
        """
        stored, codec = self._coding.encode(history, event_id, data)
        row = SnapshotRow(
            event_id=event_id,
            version=version,
            data=stored,
            codec=codec,
            taken_at_nanos=self._clock.time_ns(),
        )
        request = GetRequest(key=snapshot_key(history), partition=self._partition)
        found = await self._store.get(request)
        if found.data is not None:
            old = _parse(found.data)
            if old is not None and (version, event_id) < (old.version, old.event_id):
                return False
        value = row.SerializeToString()
        try:
            await self._store.set(
                SetRequest(key=request.key, value=value, partition=self._partition, etag=found.etag)
                if found.etag is not None
                else SetRequest(
                    key=request.key, value=value, partition=self._partition, options=_MUST_BE_ABSENT
                )
            )
        except ETagMismatchError:
            return False
        return True

    async def load(self, history: UUID, *, version: int) -> Snapshot | None:
        """The snapshot of a history; None if there is none of this version that its events continue.

        A snapshot that cannot be decoded is none, either: the events are what counts.
        """
        head_answer, answer = await self._store.bulk_get(
            [
                GetRequest(key=history_key(history), partition=self._partition),
                GetRequest(key=snapshot_key(history), partition=self._partition),
            ]
        )
        for each in (head_answer, answer):
            if each.error is not None:
                raise each.error
        if answer.data is None or head_answer.data is None:
            return None
        head = Head(parse_head(history, head_answer.data))
        row = _parse(answer.data)
        if row is None or row.version != version or not head.active:
            return None
        event_id = EventId(row.event_id)
        if not max(head.base, head.tail) <= event_id <= head.version or event_id == head.base:
            return None
        try:
            data = self._coding.decode(history, event_id, row.data, row.codec)
        except TranscodingError:
            return None
        return Snapshot(event_id, data)

    async def drop(self, history: UUID) -> None:
        """Forget the snapshot of a history, if there is one."""
        await self._store.delete(DeleteRequest(key=snapshot_key(history), partition=self._partition))


def _parse(value: bytes) -> SnapshotRow | None:
    try:
        row = SnapshotRow.FromString(value)
    except DecodeError:
        return None
    return row if len(row.event_id) == len(EPOCH) else None
