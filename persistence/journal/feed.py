"""Feed: the events of all histories of a namespace in one order, the same for every reader."""

from __future__ import annotations

import enum
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple
from uuid import UUID

import attrs
from google.protobuf.message import DecodeError

from persistence.errors import ETagMismatchError, StoreCorruptError
from persistence.journal._coding import Coding
from persistence.journal._heads import Head, Heads
from persistence.journal._rows import (
    FEED_BLOCKS,
    FEED_BLOCKS_END,
    FEED_HEAD,
    event_key,
    feed_block_key,
    position_of,
)
from persistence.journal._sequencing import Sequencer, parse_feed_head, positions_of
from persistence.journal.errors import CorruptHistoryError, PositionTrimmedError, TranscodingError
from persistence.journal.events import Event
from persistence.journal.ids import EventId, EventIdSource
from persistence.journal.notifier import Subscription
from persistence.proto.journal_pb2 import FeedBlock
from persistence.store import (
    BulkGetResponse,
    DeleteRequest,
    EngineStore,
    GetRequest,
    Item,
    Operation,
    SetRequest,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Feed", "FeedItem", "FeedKind"]

_PAGE: Final = 500


class FeedKind(enum.Enum):
    """What stands at a position of the feed.

    `EVENT`: an event. `GONE`: an event that cannot be read any more, because its history was deleted or
    trimmed since. `DELETED`: here the history was deleted; its events came before.
    """

    EVENT = "event"
    GONE = "gone"
    DELETED = "deleted"


@attrs.frozen
class FeedItem:
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


class _Place(NamedTuple):
    """A position as its block tells of it."""

    position: int
    history: UUID
    life: int
    event_id: EventId | None


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
        places = await self._places(after, limit)
        if not places:
            await self._sequencer.sequence()
            places = await self._places(after, limit)
        if not places or places[0].position != after + 1:
            await self._check(after, bool(places))
        return await self._items(places)

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
            if _block(item).made_at_nanos >= nanos:
                break
            position = position_of(item.key)
        return position

    async def trim(self, up_to: int) -> int:
        """Forget positions up to this one, as far as whole stretches of the feed lie before it.

        Returns:
            The last position that is gone.
        """
        most = max(min(_PAGE, self._store.limits.operations - 1), 1)
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

    async def _places(self, after: int, limit: int) -> list[_Place]:
        places: list[_Place] = []
        if limit <= 0:
            return places
        start = feed_block_key(after + 1)
        async for item in self._store.scan(self._partition, start, FEED_BLOCKS_END):
            found = _expand(item, after, limit - len(places))
            if places and found and found[0].position != places[-1].position + 1:
                raise self._missing_position(places[-1].position + 1)
            places += found
            if len(places) == limit:
                return places
        return places

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

    async def _items(self, places: Sequence[_Place]) -> Sequence[FeedItem]:
        heads = await self._heads.read_all({place.history for place in places})
        requests = [
            GetRequest(key=event_key(place.history, place.event_id), partition=self._partition)
            for place in places
            if place.event_id is not None
        ]
        answers = iter(await self._store.bulk_get(requests) if requests else ())
        items: list[FeedItem] = []
        for place in places:
            answer = None if place.event_id is None else next(answers)
            try:
                items.append(await self._item(place, heads[place.history], answer))
            except (CorruptHistoryError, TranscodingError):
                # Of what stands before it, nobody shall be deprived.
                if not items:
                    raise
                break
        return items

    async def _item(self, place: _Place, head: Head, answer: BulkGetResponse | None) -> FeedItem:
        position, history, life, event_id = place
        if event_id is None or answer is None:
            return FeedItem(position, FeedKind.DELETED, history)
        if answer.error is not None:
            raise answer.error
        if _is_gone(head, life, event_id):
            return FeedItem(position, FeedKind.GONE, history, event_id)
        if answer.data is None:
            # Unless it went away between the two reads, it should be there.
            if not _is_gone(await self._heads.read(history), life, event_id):
                raise CorruptHistoryError(history, event_id, "it stands in the feed, and is missing")
            return FeedItem(position, FeedKind.GONE, history, event_id)
        self._ids.observe(event_id)
        event = self._coding.event(history, event_id, answer.data)
        return FeedItem(position, FeedKind.EVENT, history, event_id, event)


def _is_gone(head: Head, life: int, event_id: EventId) -> bool:
    return not head.active or head.row is None or head.row.life != life or event_id <= head.tail


def _block(item: Item) -> FeedBlock:
    try:
        return FeedBlock.FromString(item.value)
    except DecodeError as error:
        raise StoreCorruptError(f"the stretch {item.key} of the feed is damaged: {error}") from error


def _expand(item: Item, after: int, limit: int) -> list[_Place]:
    """The positions of a stretch behind one of them, so many at most."""
    block = _block(item)
    position = block.first_position
    places: list[_Place] = []
    for entry in block.entries:
        # A stretch is read once for every page of it; what is on another page costs next to nothing.
        count = positions_of(entry)
        if position + count <= after + 1:
            position += count
            continue
        history = UUID(bytes=entry.history)
        for event_id in (None,) if entry.deleted else map(EventId, entry.event_ids):
            if position > after:
                places.append(_Place(position, history, entry.life, event_id))
                if len(places) == limit:
                    return places
            position += 1
    return places
