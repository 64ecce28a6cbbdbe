"""Codecs: what happens to the bytes of an event on their way to the store, such as encryption."""

from __future__ import annotations

import zlib
from typing import Protocol

__all__ = ["Codec", "ZlibCodec"]


class Codec(Protocol):
    """Changes the bytes of events and snapshots before they are stored, and changes them back.

    A codec's name is stored beside what it has encoded. A journal writes with one codec, and reads what any
    of those that it knows has written: so keys can be changed, and compression begun, while histories go on.
    Exceptions of a codec come out as the cause of a `TranscodingError`.
    """

    @property
    def name(self) -> str:
        """Not empty, and never given to another codec."""
        ...

    def encode(self, data: bytes, context: bytes) -> bytes:
        """The stored form of `data`.

        `context` names namespace, history and event, and tells a snapshot from an event. It is there again
        for `decode`, and is not stored with the data: encryption can authenticate it, so that nobody puts
        one event in the place of another.
        """
        ...

    def decode(self, data: bytes, context: bytes) -> bytes:
        """What `encode` was given."""
        ...


class ZlibCodec:
    """Compression by zlib, as it comes with Python."""

    def __init__(self, level: int = 6) -> None:
        """Compress with effort `level`, 1 to 9."""
        self._level = level

    @property
    def name(self) -> str:
        """See `Codec`."""
        return "zlib"

    def encode(self, data: bytes, context: bytes) -> bytes:  # noqa: ARG002  it authenticates nothing
        """See `Codec`."""
        return zlib.compress(data, self._level)

    def decode(self, data: bytes, context: bytes) -> bytes:  # noqa: ARG002  it authenticates nothing
        """See `Codec`."""
        return zlib.decompress(data)
