"""Plans: what a commit to one history writes, alone or in one transaction with commits to others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from persistence.journal._heads import Head
from persistence.journal._rows import history_key, pending_key, void_key
from persistence.journal.events import Event
from persistence.journal.ids import EPOCH, EventId
from persistence.proto.journal_pb2 import FeedBlock, HistoryHead
from persistence.store import Concurrency, DeleteRequest, Operation, SetOptions, SetRequest

__all__ = ["Plan", "head_request", "pending_request", "together", "void_requests"]

_MUST_BE_ABSENT: Final = SetOptions(concurrency=Concurrency.FIRST_WRITE)


class Plan:
    """What a commit writes. It can be written at most once, because of the head that it replaces.

    Attributes:
        history: of which history.
        head: the head that it builds upon.
        latest: of that head, what its stamp has to be greater than.
        row: the head that it makes; its stamp is that under which it was written last.
        events: the events.
        rows: the requests that write them.
        stamp: its place among pending commits if it goes alone.
        size: bytes of the events' rows, about.
    """

    __slots__ = ("events", "head", "history", "latest", "partition", "row", "rows", "size", "stamp")

    def __init__(
        self,
        partition: str,
        history: UUID,
        head: Head,
        latest: EventId,
        row: HistoryHead,
        events: tuple[Event, ...],
        rows: Sequence[SetRequest],
        stamp: EventId,
        size: int,
    ) -> None:
        self.partition: str = partition
        self.history: UUID = history
        self.head: Head = head
        self.latest: EventId = latest
        self.row: HistoryHead = row
        self.events: tuple[Event, ...] = events
        self.rows: Sequence[SetRequest] = rows
        self.stamp: EventId = stamp
        self.size: int = size

    def alone(self) -> list[Operation]:
        """The transaction of this commit and no other one."""
        return together(self.partition, (self,), self.stamp)

    def made(self, etag: str) -> Head:
        """The head that is there once the plan was written."""
        return Head.committed(self.row, etag, self.events[-1].id)


def together(partition: str, plans: Sequence[Plan], stamp: EventId) -> list[Operation]:
    """The transaction of commits to different histories, which have one place among pending commits."""
    operations: list[Operation] = []
    for plan in plans:
        plan.row.stamp = stamp
        operations.append(head_request(partition, plan.history, plan.head, plan.row))
        operations += plan.rows
    block = FeedBlock(
        histories=b"".join([plan.history.bytes for plan in plans]),
        lives=[plan.row.life for plan in plans],
        counts=[len(plan.events) for plan in plans],
        event_ids=b"".join([event.id for plan in plans for event in plan.events]),
    )
    operations.append(pending_request(partition, stamp, block))
    return operations


def head_request(partition: str, history: UUID, head: Head, row: HistoryHead) -> SetRequest:
    """The request that replaces a head, if it is still there."""
    key, value = history_key(history), row.SerializeToString()
    if head.etag is None:
        return SetRequest(key=key, value=value, partition=partition, options=_MUST_BE_ABSENT)
    return SetRequest(key=key, value=value, partition=partition, etag=head.etag)


def pending_request(partition: str, stamp: EventId, block: FeedBlock) -> SetRequest:
    """The request that puts commits into the queue for the feed."""
    return SetRequest(key=pending_key(stamp), value=block.SerializeToString(), partition=partition)


def void_requests(partition: str, history: UUID, last: EventId, earlier: EventId) -> list[Operation]:
    """The requests that tell that events are void up to `last`, where they were up to `earlier` before."""
    operations: list[Operation] = [
        SetRequest(key=void_key(history, last), value=b"", partition=partition),
    ]
    if earlier not in (EPOCH, last):
        operations.append(DeleteRequest(key=void_key(history, earlier), partition=partition))
    return operations
