"""Stretches of the feed: commits in their order, and the positions that their events have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from uuid import UUID

from google.protobuf.message import DecodeError

from persistence.errors import StoreCorruptError
from persistence.journal.ids import EventId
from persistence.proto.journal_pb2 import FeedBlock
from persistence.store import Item

__all__ = ["BLOCK_POSITIONS", "Commits", "Stretch", "parse_block"]

BLOCK_POSITIONS: Final = 500
"""How many positions a block has, unless a single commit has more: about a page of the feed."""

_ID_BYTES: Final = 16


class Commits:
    """Commits on their way from the queue into the feed.

    Attributes:
        positions: how many they take: one for each event, and one for each deletion.
    """

    def __init__(self) -> None:
        self._histories: list[bytes] = []
        self._lives: list[int] = []
        self._counts: list[int] = []
        self._ids: list[bytes] = []
        self.positions: int = 0

    def add(self, queued: FeedBlock) -> None:
        """Add those of a transaction."""
        counts = list(queued.counts)
        self._histories.append(queued.histories)
        self._lives += queued.lives
        self._counts += counts
        self._ids.append(queued.event_ids)
        self.positions += sum(counts) + counts.count(0)

    def blocks(self, first_position: int, now: int) -> Iterator[tuple[int, FeedBlock]]:
        """The blocks that hold them, each with its last position."""
        histories, ids = b"".join(self._histories), b"".join(self._ids)
        first = first_id = 0
        positions = id_ = 0
        end = len(self._counts)
        for index, count in enumerate([*self._counts, BLOCK_POSITIONS]):
            more = count or 1
            if index == end or (positions and positions + more > BLOCK_POSITIONS):
                yield (
                    first_position + positions - 1,
                    FeedBlock(
                        first_position=first_position,
                        made_at_nanos=now,
                        histories=histories[first * _ID_BYTES : index * _ID_BYTES],
                        lives=self._lives[first:index],
                        counts=self._counts[first:index],
                        event_ids=ids[first_id * _ID_BYTES : id_ * _ID_BYTES],
                    ),
                )
                first_position += positions
                first, first_id, positions = index, id_, 0
            positions += more
            id_ += count


class Stretch:
    """Positions that follow each other, so many at most, collected block by block; a column for each thing.

    Attributes:
        first: the first position.
        histories: the history of each.
        lives: of which of its lives.
        event_ids: of each event; None where the history was deleted.
        keys: of the events' rows.
        blocks: how many blocks the positions are in.
    """

    def __init__(self, after: int, limit: int) -> None:
        """Positions behind `after`."""
        self._after = after
        self._room = max(limit, 0)
        self._known: dict[bytes, UUID] = {}
        self.first: int = after + 1
        self.histories: list[UUID] = []
        self.lives: list[int] = []
        self.event_ids: list[EventId | None] = []
        self.keys: list[str] = []
        self.blocks: int = 0

    def __len__(self) -> int:
        return len(self.histories)

    @property
    def wants_more(self) -> bool:
        """Whether there is room for more positions."""
        return self._room > 0

    def extend(self, item: Item) -> bool:
        """Take what is in the next block; whether there is room for more.

        A block that does not follow is left alone: those before it may have been trimmed just now.
        """
        block = parse_block(item)
        position = block.first_position
        if self.histories:
            if position != self.first + len(self.histories):
                self._room = 0
                return False
        else:
            self.first = max(position, self._after + 1)
        self.blocks += 1
        histories, ids, known = block.histories, block.event_ids, self._known
        before, room = self.first, self._room
        start = id_ = 0
        # What a long feed costs is what happens here for each event, and in `Feed` and `Coding`.
        add_history, add_life, add_id = self.histories.append, self.lives.append, self.event_ids.append
        add_key, new_id = self.keys.append, bytes.__new__
        for life, count in zip(list(block.lives), list(block.counts), strict=True):
            following = position + (count or 1)
            if following > before:
                stored = histories[start : start + _ID_BYTES]
                history = known.get(stored)
                if history is None:
                    history = known[stored] = UUID(int=int.from_bytes(stored))
                while position < following and room:
                    if position >= before:
                        add_history(history)
                        add_life(life)
                        room -= 1
                        if count:
                            event_id = new_id(EventId, ids[id_ : id_ + _ID_BYTES])
                            add_id(event_id)
                            add_key(f"e/{stored.hex()}/{event_id.hex()}")
                        else:
                            add_id(None)
                    position += 1
                    if count:
                        id_ += _ID_BYTES
                if not room:
                    break
            else:
                id_ += count * _ID_BYTES
            position = following
            start += _ID_BYTES
        self._room = room
        return room > 0


def parse_block(item: Item) -> FeedBlock:
    """The block of a row.

    Raises:
        StoreCorruptError: it is none.
    """
    try:
        block = FeedBlock.FromString(item.value)
    except DecodeError as error:
        raise StoreCorruptError(f"the row {item.key} of the feed is damaged: {error}") from error
    commits, events = len(block.counts), sum(block.counts)
    if (len(block.histories), len(block.lives), len(block.event_ids)) != (
        commits * _ID_BYTES,
        commits,
        events * _ID_BYTES,
    ):
        raise StoreCorruptError(f"the row {item.key} of the feed is damaged: its columns differ in length")
    return block
