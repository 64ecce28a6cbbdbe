"""Times to live as Redis takes them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from hsm.fsm.errors import InvalidDataError

__all__ = ["expiry", "milliseconds_of"]


def milliseconds_of(ttl: timedelta) -> int:
    """A time to live in milliseconds; 0 for one without an end.

    Raises:
        InvalidDataError: it is negative, or too short.
    """
    milliseconds = ttl // timedelta(milliseconds=1)
    if ttl < timedelta() or (ttl and not milliseconds):
        raise InvalidDataError(f"a time to live of {ttl} is none; a millisecond is the shortest")
    return milliseconds


def expiry(milliseconds: int) -> Sequence[bytes]:
    """The end of a `SET` of something that lives so long."""
    return (b"PX", b"%d" % milliseconds) if milliseconds else ()
