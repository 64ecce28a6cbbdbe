"""Stretches of the feed: the positions that its blocks tell of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple
from uuid import UUID

from google.protobuf.message import DecodeError

from persistence.errors import StoreCorruptError
from persistence.journal._header import trusted
from persistence.journal.ids import EventId
from persistence.proto.journal_pb2 import FeedBlock, FeedEntry
from persistence.store import Item

__all__ = ["BLOCK_POSITIONS", "Place", "Stretch", "parse_block", "positions_of", "split_into_blocks"]

BLOCK_POSITIONS: Final = 500
"""How many positions a block has, unless a single commit has more: about a page of the feed."""


class Place(NamedTuple):
    """A position as its block tells of it.

    Attributes:
        position: which one.
        history: of which history.
        life: of which of its lives.
        event_id: of the event; None where the history was deleted.
        key: of the event's row.
    """

    position: int
    history: UUID
    life: int
    event_id: EventId | None
    key: str


class Stretch:
    """Positions behind one of them, so many at most, collected block by block.

    Attributes:
        places: the positions.
        blocks: how many blocks they were in.
    """

    def __init__(self, after: int, limit: int) -> None:
        self._after = after
        self._limit = limit
        self.places: list[Place] = []
        self.blocks: int = 0

    @property
    def wants_more(self) -> bool:
        """Whether there is room for more positions."""
        return len(self.places) < self._limit

    def extend(self, item: Item) -> bool:
        """Take what is in the next block; whether there is room for more.

        A block that does not follow is left alone: those before it may have been trimmed just now.
        """
        block = parse_block(item)
        places, limit = self.places, self._limit
        position = block.first_position
        if places and position != places[-1].position + 1:
            self._limit = len(places)
            return False
        self.blocks += 1
        behind = self._after + 1
        for entry in block.entries:
            ids = entry.event_ids
            count = 1 if entry.deleted else len(ids)
            if position + count <= behind:
                # On an earlier page.
                position += count
                continue
            history, life = UUID(bytes=entry.history), entry.life
            if entry.deleted:
                places.append(Place(position, history, life, None, ""))
                position += 1
            else:
                prefix = f"e/{entry.history.hex()}/"
                for value in ids:
                    if position >= behind:
                        places.append(Place(position, history, life, trusted(value), prefix + value.hex()))
                    position += 1
            if len(places) >= limit:
                del places[limit:]
                return False
        return True


def parse_block(item: Item) -> FeedBlock:
    """The block of a row.

    Raises:
        StoreCorruptError: it is none.
    """
    try:
        return FeedBlock.FromString(item.value)
    except DecodeError as error:
        raise StoreCorruptError(f"the stretch {item.key} of the feed is damaged: {error}") from error


def positions_of(entry: FeedEntry) -> int:
    """How many positions a commit takes: one for each event, and one for a deletion."""
    return 1 if entry.deleted else len(entry.event_ids)


def split_into_blocks(
    entries: Iterable[FeedEntry], first_position: int, now: int
) -> Iterator[tuple[int, FeedBlock]]:
    """Blocks for commits, each with its last position."""
    block = FeedBlock(first_position=first_position, made_at_nanos=now)
    position, count = first_position - 1, 0
    for entry in entries:
        more = positions_of(entry)
        if count and count + more > BLOCK_POSITIONS:
            yield position, block
            block = FeedBlock(first_position=position + 1, made_at_nanos=now)
            count = 0
        block.entries.append(entry)
        position += more
        count += more
    yield position, block
