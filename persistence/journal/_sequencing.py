"""Sequencing: commits that wait for a position in the feed get one, in an order that all readers share.

A commit leaves a row in the queue of pending commits, under a stamp of its own, so that commits to
different histories have nothing in common that they could fight for. Whoever reads the feed moves what is
pending behind its end, in one transaction under the etag of the feed's head: of several that try at once, one
succeeds, and the others find its work done. A process that dies leaves its commits pending, and the next
reader takes them up.

Order: stamps grow along a history, and whoever has seen a commit stamps later. A snapshot of the queue that
holds a commit holds everything before it, therefore, and may be put in the order of its stamps. A scan is not
a snapshot, but two in a row that find the same are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from google.protobuf.message import DecodeError

from persistence.errors import CommitOutcomeUnknownError, ETagMismatchError, StoreCorruptError
from persistence.journal._rows import FEED_HEAD, PENDING, PENDING_END, feed_block_key
from persistence.journal._stretches import BLOCK_POSITIONS, Commits, parse_block
from persistence.journal.ids import EventIdSource
from persistence.proto.journal_pb2 import FeedHeadRow
from persistence.store import (
    Concurrency,
    DeleteRequest,
    EngineStore,
    GetRequest,
    Item,
    Operation,
    SetOptions,
    SetRequest,
)

__all__ = ["Sequencer", "parse_feed_head"]

_MUST_BE_ABSENT: Final = SetOptions(concurrency=Concurrency.FIRST_WRITE)
_MAX_COMMITS: Final = 1000
_MAX_EVENTS: Final = 4000
# As many events of commits that have one each; rows of commits that went together are large.
_MAX_BYTES: Final = 256 * 1024
# Two blocks that follow each other have more positions together than one may have; and the last row may be
# of many commits, too.
_MAX_BLOCKS: Final = 4 * _MAX_EVENTS // BLOCK_POSITIONS
_SCANS: Final = 5


def parse_feed_head(value: bytes | None) -> FeedHeadRow:
    """How far the feed has come; an empty row if it has not begun."""
    try:
        return FeedHeadRow() if value is None else FeedHeadRow.FromString(value)
    except DecodeError as error:
        raise StoreCorruptError(f"the head of the feed is damaged: {error}") from error


class Sequencer:
    """Gives positions to commits of one namespace. Any number of them, in any processes, may work at once."""

    def __init__(
        self, store: EngineStore, partition: str, ids: EventIdSource, now: Callable[[], int]
    ) -> None:
        self._store = store
        self._partition = partition
        self._ids = ids
        self._now = now
        # Beside the commits, the head of the feed changes, and blocks come.
        self._batch = max(min(_MAX_COMMITS, store.limits.operations - _MAX_BLOCKS - 1), 1)
        self._lock = asyncio.Lock()

    async def sequence(self) -> None:
        """Return when everything that was committed before has its position."""
        async with self._lock:
            while await self._sequence_some():
                pass

    async def advance(self) -> bool:
        """Give some commits their positions, a few pages of them; whether there may be more."""
        async with self._lock:
            return await self._sequence_some()

    async def _sequence_some(self) -> bool:
        """Move some commits; whether there may be more."""
        # Read first: if it is the same when the commits move, nobody else has moved any meanwhile.
        answer = await self._store.get(GetRequest(key=FEED_HEAD, partition=self._partition))
        items = await self._pending()
        if not items:
            return False
        commits = Commits()
        taken = 0
        for item in items:
            if taken and commits.positions >= _MAX_EVENTS:
                break
            commits.add(parse_block(item))
            taken += 1
        items = items[:taken]
        head = parse_feed_head(answer.data)
        blocks = list(commits.blocks(head.position + 1, self._now()))
        head.position += commits.positions
        operations: list[Operation] = [
            SetRequest(
                key=FEED_HEAD, value=head.SerializeToString(), partition=self._partition, etag=answer.etag
            )
            if answer.etag is not None
            else SetRequest(
                key=FEED_HEAD,
                value=head.SerializeToString(),
                partition=self._partition,
                options=_MUST_BE_ABSENT,
            ),
            *(
                SetRequest(
                    key=feed_block_key(last), value=block.SerializeToString(), partition=self._partition
                )
                for last, block in blocks
            ),
            *(DeleteRequest(key=item.key, partition=self._partition) for item in items),
        ]
        try:
            await self._store.multi(operations)
        except (ETagMismatchError, CommitOutcomeUnknownError):
            # Somebody else was first, or we were and do not know it: look again, and see what is left.
            return True
        self._ids.observe(bytes.fromhex(items[-1].key[len(PENDING) :]))
        return True

    async def _pending(self) -> Sequence[Item]:
        """The first pending commits, as a snapshot of them."""
        items: list[Item] = []
        size = 0
        async for item in self._store.scan(self._partition, PENDING, PENDING_END, limit=self._batch):
            items.append(item)
            size += len(item.value)
            if size > _MAX_BYTES:
                break
        for _ in range(_SCANS):
            if len(items) <= 1:
                return items
            # What came late under an earlier stamp belongs to the stretch as well.
            end = items[-1].key + "/"
            again = [item async for item in self._store.scan(self._partition, PENDING, end)]
            if [item.key for item in again] == [item.key for item in items]:
                return items
            items = again[: self._batch]
        # The first of all has nothing before it that was there when it was read.
        return items[:1]
