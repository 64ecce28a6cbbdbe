"""Feed: the events of all histories of a namespace in one order, the same for every reader."""

from __future__ import annotations

import enum
from collections.abc import AsyncGenerator, Collection, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple
from uuid import UUID

from persistence.bulk import bulk_values
from persistence.errors import ETagMismatchError, StoreCorruptError
from persistence.journal._coding import Coding
from persistence.journal._heads import Head, Heads
from persistence.journal._rows import (
    FEED_BLOCKS,
    FEED_BLOCKS_END,
    FEED_HEAD,
    VOIDS_END,
    feed_block_key,
    position_of,
    void_of,
    voids_from,
)
from persistence.journal._sequencing import Sequencer, parse_feed_head
from persistence.journal._stretches import Stretch, parse_block
from persistence.journal.errors import CorruptHistoryError, PositionTrimmedError, TranscodingError
from persistence.journal.events import Event
from persistence.journal.ids import EPOCH, EventId, EventIdSource
from persistence.journal.notifier import Subscription
from persistence.store import DeleteRequest, EngineStore, GetRequest, Operation, SetRequest

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Feed", "FeedItem", "FeedKind"]

_PAGE: Final = 500
_MOST_BLOCKS: Final = 500
_BLOCKS_TRIMMED: Final = 100
# More of them than that are looked up by history.
_MOST_VOIDS: Final = 200


class FeedKind(enum.Enum):
    """What stands at a position of the feed.

    `EVENT`: an event. `GONE`: an event that cannot be read any more, because its history was deleted or
    trimmed since. `DELETED`: here the history was deleted; its events came before.
    """

    EVENT = "event"
    GONE = "gone"
    DELETED = "deleted"


class FeedItem(NamedTuple):
    """One position of the feed.

    Attributes:
        position: from 1, without gaps.
        kind: what stands here.
        history: of which history.
        event_id: which event; None where the history was deleted.
        event: the event, if it can be read.
    """

    position: int
    kind: FeedKind
    history: UUID
    event_id: EventId | None = None
    event: Event | None = None


class Feed:
    """Reads the feed of a namespace. A reader keeps the position that it has come to, and goes on behind it.

    Every event has one position, once and for all. The events of one history stand in their order, an event
    that was committed after its writer had seen another one stands behind that, and no position is skipped or
    filled later. Positions are given when somebody reads, in batches, so commits do not wait for them.
    """

    def __init__(
        self,
        store: EngineStore,
        namespace: str,
        partition: str,
        *,
        heads: Heads,
        coding: Coding,
        ids: EventIdSource,
        now: Callable[[], int],
        subscribe: Callable[[], Subscription],
    ) -> None:
        self._store = store
        self._namespace = namespace
        self._partition = partition
        self._heads = heads
        self._coding = coding
        self._ids = ids
        self._subscribe = subscribe
        self._sequencer = Sequencer(store, partition, ids, now)
        # How many blocks the last page took: the next one is likely to take as many.
        self._blocks = 2

    async def last_position(self) -> int:
        """The last position there is, everything that was committed before included; 0 if there is none."""
        await self._sequencer.sequence()
        return await self.known_position()

    async def known_position(self) -> int:
        """The last position that was given, whatever was committed since."""
        answer = await self._store.get(GetRequest(key=FEED_HEAD, partition=self._partition))
        return parse_feed_head(answer.data).position

    async def read(self, after: int = 0, *, limit: int = _PAGE) -> Sequence[FeedItem]:
        """The items behind a position; none if nothing more was committed before.

        An event that cannot be read ends the page; it is an error when it is the first behind `after`.

        Raises:
            PositionTrimmedError: the feed no longer reaches back to `after`.
            CorruptHistoryError: an event is missing that should be there, or is damaged.
            TranscodingError: an event cannot be decoded.
        """
        stretch = await self._stretch(after, limit)
        # Page by page: of what nobody has read for long, the first one shall not wait for the last one.
        while not stretch and await self._sequencer.advance():
            stretch = await self._stretch(after, limit)
        if not stretch or stretch.first != after + 1:
            await self._check(after, bool(stretch))
        return await self._items(stretch)

    async def follow(self, after: int = 0) -> AsyncGenerator[FeedItem, None]:
        """The items behind a position, and then those to come, without an end.

        See `read` for the errors. Close the iterator when it is left early (`contextlib.aclosing`), or its
        subscription ends only when it is collected.
        """
        async with self._subscribe() as subscription:
            while True:
                items = await self.read(after)
                for item in items:
                    yield item
                    after = item.position
                if not items:
                    await subscription.wait()

    async def position_before(self, nanos: int) -> int:
        """The last position that was given before a moment, in nanoseconds since 1970; 0 if none was.

        Of a stretch of the feed, all positions are given at once. What was trimmed counts as none.
        """
        position = 0
        async for item in self._store.scan(self._partition, FEED_BLOCKS, FEED_BLOCKS_END):
            if parse_block(item).made_at_nanos >= nanos:
                break
            position = position_of(item.key)
        return position

    async def trim(self, up_to: int) -> int:
        """Forget positions up to this one, as far as whole stretches of the feed lie before it.

        Returns:
            The last position that is gone.
        """
        most = max(min(_BLOCKS_TRIMMED, self._store.limits.operations - 1), 1)
        while True:
            answer = await self._store.get(GetRequest(key=FEED_HEAD, partition=self._partition))
            head = parse_feed_head(answer.data)
            # Blocks have the key of their last position.
            end = feed_block_key(max(up_to, 0)) + "/"
            blocks = [item async for item in self._store.scan(self._partition, FEED_BLOCKS, end, limit=most)]
            if not blocks or answer.etag is None:
                return head.trimmed
            head.trimmed = position_of(blocks[-1].key)
            operations: list[Operation] = [
                SetRequest(
                    key=FEED_HEAD,
                    value=head.SerializeToString(),
                    partition=self._partition,
                    etag=answer.etag,
                ),
                *(DeleteRequest(key=block.key, partition=self._partition) for block in blocks),
            ]
            try:
                await self._store.multi(operations)
            except ETagMismatchError:
                continue

    async def _stretch(self, after: int, limit: int) -> Stretch:
        """The positions behind one, as far as they follow each other."""
        stretch = Stretch(after, limit)
        start, blocks = feed_block_key(after + 1), self._blocks
        while stretch.wants_more:
            scan = self._store.scan(self._partition, start, FEED_BLOCKS_END, limit=blocks)
            items = [item async for item in scan]
            for item in items:
                if not stretch.extend(item):
                    break
            if len(items) < blocks:
                break
            start = items[-1].key + "/"
            blocks = min(4 * blocks, _MOST_BLOCKS)
        if stretch.blocks:
            self._blocks = min(stretch.blocks, _MOST_BLOCKS)
        return stretch

    async def _check(self, after: int, found: bool) -> None:
        """Raise if what follows is not the next position."""
        answer = await self._store.get(GetRequest(key=FEED_HEAD, partition=self._partition))
        head = parse_feed_head(answer.data)
        if after < head.trimmed:
            raise PositionTrimmedError(self._namespace, after, head.trimmed)
        if found:
            raise self._missing_position(after + 1)

    def _missing_position(self, position: int) -> StoreCorruptError:
        return StoreCorruptError(f"position {position} of the feed is missing in {self._partition!r}")

    async def _items(self, stretch: Stretch) -> Sequence[FeedItem]:
        ids = [event_id for event_id in stretch.event_ids if event_id is not None]
        gone = await self._gone(stretch, min(ids)) if ids else ()
        values = iter(await bulk_values(self._store, self._partition, stretch.keys))
        event_of = self._coding.event
        items: list[FeedItem] = []
        position = stretch.first - 1
        for history, event_id in zip(stretch.histories, stretch.event_ids, strict=True):
            position += 1
            if event_id is None:
                items.append(FeedItem(position, FeedKind.DELETED, history))
                continue
            value = next(values)
            try:
                if value is None or position in gone:
                    if position not in gone:
                        await self._check_gone(history, stretch.lives[position - stretch.first], event_id)
                    items.append(FeedItem(position, FeedKind.GONE, history, event_id))
                    continue
                event = event_of(history, event_id, value)
            except (CorruptHistoryError, TranscodingError):
                # Of what stands before it, nobody shall be deprived.
                if not items:
                    raise
                break
            items.append(FeedItem(position, FeedKind.EVENT, history, event_id, event))
        if ids:
            self._ids.observe(max(ids))
        return items

    async def _gone(self, stretch: Stretch, earliest: EventId) -> Collection[int]:
        """The positions of events that cannot be read any more, although they may not be removed yet."""
        scan = self._store.scan(self._partition, voids_from(earliest), VOIDS_END, limit=_MOST_VOIDS)
        found = [void_of(item.key) async for item in scan]
        if not found:
            return ()
        places = zip(stretch.histories, stretch.lives, stretch.event_ids, strict=True)
        if len(found) < _MOST_VOIDS:
            voids = dict(found)
            return {
                position
                for position, (history, _, event_id) in enumerate(places, stretch.first)
                if event_id is not None and event_id <= voids.get(history, EPOCH)
            }
        heads = await self._heads.read_all(set(stretch.histories))
        return {
            position
            for position, (history, life, event_id) in enumerate(places, stretch.first)
            if event_id is not None and _is_gone(heads[history], life, event_id)
        }

    async def _check_gone(self, history: UUID, life: int, event_id: EventId) -> None:
        """Return if an event that is missing may be.

        Raises:
            CorruptHistoryError: it should be there.
        """
        if not _is_gone(await self._heads.read(history), life, event_id):
            raise CorruptHistoryError(history, event_id, "it stands in the feed, and is missing")


def _is_gone(head: Head, life: int, event_id: EventId) -> bool:
    return not head.active or head.row is None or head.row.life != life or event_id <= head.tail
