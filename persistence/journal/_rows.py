"""Rows of a journal: their keys. The partition `journal/<namespace>` holds all histories of a namespace.

| key | row |
|---|---|
| `h/<history>` | a history: its head, epoch, tail and phase |
| `e/<history>/<event>` | an event |
| `s/<history>` | snapshot of what a history's events come to |
| `o/<stamp>` | commits of one transaction that have no position in the feed yet |
| `g/<last position>` | a stretch of the feed |
| `f` | how far the feed has come |
| `v/<event>/<history>` | events of a history are void up to this one, and some may not be removed yet |

A projection has the partition `projection/<namespace>/<name>`, in the same store or in another one:

| key | row |
|---|---|
| `p` | how far it has come |
| `r/<key>` | what it has made |

Ids are hexadecimal, positions have 20 digits.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

from persistence.executions import escape
from persistence.journal.ids import EventId

__all__ = [
    "FEED_BLOCKS",
    "FEED_BLOCKS_END",
    "FEED_HEAD",
    "HISTORIES",
    "PENDING",
    "PENDING_END",
    "POSITION_KEY",
    "VOIDS_END",
    "event_key",
    "event_of",
    "event_prefix",
    "feed_block_key",
    "history_key",
    "history_of",
    "output_key",
    "partition_of",
    "pending_key",
    "position_of",
    "projection_partition",
    "snapshot_key",
    "void_key",
    "void_of",
    "voids_from",
]

HISTORIES: Final = "h/"
PENDING: Final = "o/"
PENDING_END: Final = "o0"
FEED_BLOCKS: Final = "g/"
FEED_BLOCKS_END: Final = "g0"
FEED_HEAD: Final = "f"
POSITION_KEY: Final = "p"
VOIDS_END: Final = "v0"
_EVENT_DIGITS: Final = 32


def partition_of(namespace: str) -> str:
    """The partition of a namespace."""
    return f"journal/{namespace}"


def history_key(history: UUID) -> str:
    """Key of the row of a history."""
    return f"h/{history.hex}"


def history_of(key: str) -> UUID:
    """The history of a key that `history_key` has made."""
    return UUID(hex=key[2:])


def event_prefix(history: UUID) -> str:
    """What the keys of a history's events begin with."""
    return f"e/{history.hex}/"


def event_key(history: UUID, id_: EventId) -> str:
    """Key of an event."""
    return f"e/{history.hex}/{id_.hex()}"


def event_of(key: str) -> EventId:
    """The event of a key that `event_key` has made."""
    return EventId(bytes.fromhex(key[-_EVENT_DIGITS:]))


def snapshot_key(history: UUID) -> str:
    """Key of the snapshot of a history."""
    return f"s/{history.hex}"


def pending_key(stamp: EventId) -> str:
    """Key of a commit that is not yet in the feed."""
    return f"o/{stamp.hex()}"


def feed_block_key(last_position: int) -> str:
    """Key of the stretch of the feed that ends with this position."""
    return f"g/{last_position:020d}"


def position_of(key: str) -> int:
    """The position of a key that `feed_block_key` has made."""
    return int(key[len(FEED_BLOCKS) :])


def void_key(history: UUID, last: EventId) -> str:
    """Key of the row that tells that a history's events are void up to `last`."""
    return f"v/{last.hex()}/{history.hex}"


def voids_from(event: bytes) -> str:
    """Where the rows begin that can tell something of this event, or of a later one."""
    return f"v/{event.hex()}"


def void_of(key: str) -> tuple[UUID, EventId]:
    """History and event of a key that `void_key` has made."""
    return UUID(hex=key[-_EVENT_DIGITS:]), EventId(bytes.fromhex(key[2 : 2 + _EVENT_DIGITS]))


def projection_partition(namespace: str, name: str) -> str:
    """The partition of a projection."""
    return f"projection/{escape(namespace)}/{escape(name)}"


def output_key(key: str) -> str:
    """Key of a row of a projection."""
    return f"r/{key}"
