"""How a value stands in etcd: a persisted format.

The first byte tells what follows: its high four bits are the format's version, which is 1, and of the low
bits 1 says that the row expires and 2 that it has a content type. Then come, where they are there, the time
of expiry (milliseconds since 1970, 8 bytes), and the length (4 bytes) and the UTF-8 text of the content type.
Numbers are big-endian. The rest is the value as it is.

The expiry is what the row's lease was granted for, by the clock of the client that wrote it, and is only
told; what deletes the row is the lease, by etcd's clock.
"""

from __future__ import annotations

import struct
from typing import Final

from persistence.errors import StoreCorruptError
from persistence.paging import expiry_metadata
from persistence.store import GetResponse

__all__ = ["HEADER_BYTES", "etag_of", "pack", "revision_of", "unpack", "unpack_value"]

HEADER_BYTES: Final = 1
"""Of a value without expiry and content type."""

_VERSION: Final = 0x10
_EXPIRES: Final = 1
_TYPED: Final = 2
_KNOWN: Final = frozenset(range(_VERSION, _VERSION + 4))
_PLAIN: Final = bytes([_VERSION])
_EXPIRY: Final = struct.Struct(">q")
_LENGTH: Final = struct.Struct(">I")
_MAX_REVISION: Final = 2**63 - 1
_NO_REVISION: Final = -1


def etag_of(revision: int) -> str:
    """The etag of a row: the revision at which it was written."""
    return f"{revision:016x}"


def revision_of(etag: str) -> int:
    """The revision that an etag stands for; one that no row has if there is none."""
    revision = int(etag, 16)
    return revision if 0 < revision <= _MAX_REVISION else _NO_REVISION


def pack(value: bytes, expires_milliseconds: int | None, content_type: str | None) -> bytes:
    """A value as it is stored."""
    if expires_milliseconds is None and content_type is None:
        return _PLAIN + value
    flags = _VERSION
    parts = [b"", b"", value]
    if expires_milliseconds is not None:
        flags |= _EXPIRES
        parts[0] = _EXPIRY.pack(expires_milliseconds)
    if content_type is not None:
        flags |= _TYPED
        text = content_type.encode()
        parts[1] = _LENGTH.pack(len(text)) + text
    return bytes([flags]) + b"".join(parts)


def unpack(key: bytes, stored: bytes, revision: int) -> GetResponse:
    """What a stored row says.

    Raises:
        StoreCorruptError: it was not written by a store of ours, or by a newer one.
    """
    if stored[:1] == _PLAIN:
        return GetResponse(stored[1:], etag_of(revision))
    start, expires, content_type = _header(key, stored)
    value, etag = stored[start:], etag_of(revision)
    if expires is None:
        return GetResponse(value, etag, content_type=content_type)
    return GetResponse(value, etag, expiry_metadata(expires), content_type)


def unpack_value(key: bytes, stored: bytes) -> bytes:
    """The value alone.

    Raises:
        StoreCorruptError: it was not written by a store of ours, or by a newer one.
    """
    return stored[1:] if stored[:1] == _PLAIN else stored[_header(key, stored)[0] :]


def _header(key: bytes, stored: bytes) -> tuple[int, int | None, str | None]:
    """Where the value begins, when it expires, and its content type."""
    if not stored or stored[0] not in _KNOWN:
        raise StoreCorruptError(f"the value of key {key!r} in etcd is of no format that this release knows")
    expires: int | None = None
    content_type: str | None = None
    position = HEADER_BYTES
    try:
        if stored[0] & _EXPIRES:
            (expires,) = _EXPIRY.unpack_from(stored, position)
            position += _EXPIRY.size
        if stored[0] & _TYPED:
            (length,) = _LENGTH.unpack_from(stored, position)
            position += _LENGTH.size
            content_type = stored[position : position + length].decode()
            position += length
    except (struct.error, UnicodeDecodeError) as error:
        raise StoreCorruptError(f"the header of the value of key {key!r} in etcd is damaged") from error
    return position, expires, content_type
