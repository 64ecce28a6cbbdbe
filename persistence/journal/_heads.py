"""Heads of histories: the row on which all writers of a history agree, and those that were seen last."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from typing import Final, Self
from uuid import UUID

from google.protobuf.message import DecodeError

from persistence.journal._header import trusted
from persistence.journal._rows import history_key
from persistence.journal.errors import CorruptHistoryError
from persistence.journal.ids import EPOCH, EventId, EventIdSource
from persistence.proto.journal_pb2 import (
    HISTORY_PHASE_ACTIVE,
    HISTORY_PHASE_UNSPECIFIED,
    HistoryHead,
    HistoryMark,
)
from persistence.store import EngineStore, GetRequest

__all__ = ["Head", "Heads", "mark_id", "parse_head"]

_ACTIVE: Final = (HISTORY_PHASE_ACTIVE, HISTORY_PHASE_UNSPECIFIED)


class Head:
    """The row of a history as it was read.

    Attributes:
        row: None if there is none.
        etag: None if there is no row.
        active: whether the history can be read.
        last: the last event there has ever been.
        version: the last event; `EPOCH` if the history is empty or was deleted.
    """

    __slots__ = ("active", "etag", "last", "row", "version")

    def __init__(self, row: HistoryHead | None = None, etag: str | None = None) -> None:
        self.row: HistoryHead | None = row
        self.etag: str | None = etag
        self.active: bool = row is not None and row.phase in _ACTIVE
        self.last: EventId = EPOCH if row is None else _id(row.head)
        self.version: EventId = self.last if self.active else EPOCH

    @classmethod
    def committed(cls, row: HistoryHead, etag: str, last: EventId) -> Self:
        """The row that a commit has made, of which everything is known already."""
        head = cls.__new__(cls)
        head.row = row
        head.etag = etag
        head.active = True
        head.last = head.version = last
        return head

    @property
    def epoch(self) -> EventId:
        """After which event reading begins."""
        return EPOCH if self.row is None else mark_id(self.row.epoch)

    @property
    def base(self) -> EventId:
        """The last event of the life before this one."""
        return EPOCH if self.row is None or not self.row.base else EventId(self.row.base)

    @property
    def tail(self) -> EventId:
        """Events up to this one may be gone."""
        return EPOCH if self.row is None else mark_id(self.row.tail)

    @property
    def latest(self) -> EventId:
        """The latest of the last event and the stamp of the last commit: what comes next is later."""
        if self.row is None:
            return EPOCH
        stamp = self.row.stamp
        return self.last if stamp <= self.last else _id(stamp)


def _id(value: bytes) -> EventId:
    return trusted(value) if len(value) == len(EPOCH) else EventId(value)


def mark_id(mark: HistoryMark) -> EventId:
    """The event of a mark."""
    return EventId(mark.event_id) if mark.event_id else EPOCH


def parse_head(history: UUID, value: bytes) -> HistoryHead:
    """The row of a history.

    Raises:
        CorruptHistoryError: it is none.
    """
    try:
        return HistoryHead.FromString(value)
    except DecodeError as error:
        raise CorruptHistoryError(history, EPOCH, f"the row of the history is damaged: {error}") from error


class Heads:
    """Reads heads, and keeps those that were committed last, so that a commit need not read first.

    A head that is kept may be stale. That does no harm, because its etag is checked before anything is
    written.
    """

    def __init__(self, store: EngineStore, partition: str, ids: EventIdSource, size: int) -> None:
        self._store = store
        self._partition = partition
        self._ids = ids
        self._size = size
        # By number, which is hashed at once.
        self._kept: OrderedDict[int, Head] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    async def read(self, history: UUID) -> Head:
        """The head as it is stored."""
        answer = await self._store.get(GetRequest(key=history_key(history), partition=self._partition))
        if answer.data is None:
            return Head()
        return self._seen(Head(parse_head(history, answer.data), answer.etag))

    async def read_all(self, histories: Collection[UUID]) -> dict[UUID, Head]:
        """The heads of several histories, as they are stored."""
        requests = [GetRequest(key=history_key(each), partition=self._partition) for each in histories]
        heads: dict[UUID, Head] = {}
        for history, answer in zip(histories, await self._store.bulk_get(requests), strict=True):
            if answer.error is not None:
                raise answer.error
            if answer.data is None:
                heads[history] = Head()
            else:
                heads[history] = self._seen(Head(parse_head(history, answer.data), answer.etag))
        return heads

    def _seen(self, head: Head) -> Head:
        # What is committed by whoever has seen this head has to stand behind it in the feed.
        if head.row is not None:
            self._ids.observe(head.row.stamp)
        return head

    def kept(self, history: UUID) -> Head | None:
        """The head as it was when last committed here."""
        return self._kept.get(history.int)

    def keep(self, history: UUID, head: Head) -> None:
        """Keep a head that was just committed."""
        number = history.int
        self._kept[number] = head
        self._kept.move_to_end(number)
        if len(self._kept) > self._size:
            self._kept.popitem(last=False)

    def forget(self, history: UUID) -> None:
        """Keep it no longer: somebody else has changed it."""
        self._kept.pop(history.int, None)
