"""The header of an event: two fields that protobuf finds wherever they stand, and we at the end."""

from __future__ import annotations

from typing import Final

from persistence.journal.ids import EventId

__all__ = ["HEADER_SIZE", "has_header", "trusted", "with_header"]

HEADER_SIZE: Final = 36
# Two fields of sixteen bytes: their tags and lengths, and the content.
_ID_TAG: Final = b"\x12\x10"
_PARENT_TAG: Final = b"\x1a\x10"


def with_header(payload: bytes, id_: EventId, parent: EventId) -> bytes:
    """A serialized event with its header; the last value of a field is the one that counts in protobuf."""
    return b"".join((payload, _ID_TAG, id_, _PARENT_TAG, parent))


def has_header(data: bytes, id_: EventId, parent: bytes) -> bool:
    """Whether `with_header` has given this id and parent to the event."""
    return data.endswith(_ID_TAG + id_ + _PARENT_TAG + parent)


def trusted(value: bytes) -> EventId:
    """An id of which it is known already that it has the size of one."""
    return bytes.__new__(EventId, value)
