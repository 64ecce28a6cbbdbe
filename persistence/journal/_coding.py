"""Between events and their rows: codecs, headers and damage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final
from uuid import UUID

from google.protobuf.message import DecodeError

from persistence.errors import InvalidRequestError
from persistence.journal._header import has_header, trusted
from persistence.journal.codecs import Codec
from persistence.journal.errors import CorruptHistoryError, TranscodingError
from persistence.journal.events import Event
from persistence.journal.ids import EventId
from persistence.proto.journal_pb2 import EventRow

__all__ = ["Coding"]

_NONE: Final = ""


class Coding:
    """Encodes by one codec, and decodes by any that it knows.

    What the codec is told of the place holds for `kind` in `namespace` alone: nothing of another kind, and
    nothing of another namespace that shares the key, can be put there.
    """

    def __init__(self, kind: str, namespace: str, codec: Codec | None, older: Iterable[Codec]) -> None:
        self._place = f"{kind}/{namespace}/".encode(errors="surrogatepass")
        self._codec = codec
        known = [*older] if codec is None else [codec, *older]
        self._codecs: Mapping[str, Codec] = {each.name: each for each in known}
        if len(self._codecs) < len(known) or _NONE in self._codecs:
            raise InvalidRequestError(
                f"codecs need names of their own, not {', '.join(repr(each.name) for each in known)}"
            )

    def encode(self, history: UUID, id_: EventId, data: bytes) -> tuple[bytes, str]:
        """The stored form of an event's bytes, and the name of the codec.

        Raises:
            TranscodingError: the codec cannot encode it.
        """
        codec = self._codec
        if codec is None:
            return data, _NONE
        try:
            return _bytes(codec.encode(data, self._place + history.bytes + id_)), codec.name
        except Exception as error:
            raise TranscodingError(history, id_, codec.name, f"it cannot be encoded: {error!r}") from error

    def decode(self, history: UUID, id_: EventId, stored: bytes, name: str) -> bytes:
        """What `encode` was given.

        Raises:
            TranscodingError: the codec is not known, or cannot decode it.
        """
        if not name:
            return stored
        codec = self._codecs.get(name)
        if codec is None:
            raise TranscodingError(history, id_, name, "no codec of this name was given to the journal")
        try:
            return _bytes(codec.decode(stored, self._place + history.bytes + id_))
        except Exception as error:
            raise TranscodingError(history, id_, name, f"it cannot be decoded: {error!r}") from error

    def row(self, history: UUID, id_: EventId, value: bytes) -> EventRow:
        """The row of an event.

        Raises:
            CorruptHistoryError: it is damaged.
        """
        try:
            row = EventRow.FromString(value)
        except DecodeError as error:
            raise CorruptHistoryError(history, id_, f"its row is damaged: {error}") from error
        return row

    def event(self, history: UUID, id_: EventId, value: bytes) -> Event:
        """An event from the value of its row.

        Raises:
            CorruptHistoryError: the row is damaged, or belongs to another event.
            TranscodingError: its codec is not known, or cannot decode it.
        """
        return self.event_of_row(history, id_, self.row(history, id_, value))

    def event_of_row(self, history: UUID, id_: EventId, row: EventRow) -> Event:
        """An event from its row; see `event`."""
        parent = row.parent
        if len(parent) != len(id_):
            raise CorruptHistoryError(history, id_, f"its row names no parent, but {parent!r}")
        data = self.data(history, id_, parent, row)
        return Event(history, id_, trusted(parent), row.serial, data, row.hash)

    def data(self, history: UUID, id_: EventId, parent: bytes, row: EventRow) -> bytes:
        """The decoded content of a row; see `event`."""
        data = row.data if not row.codec else self.decode(history, id_, row.data, row.codec)
        if not has_header(data, id_, parent):
            raise CorruptHistoryError(history, id_, "its content belongs to another event")
        return data


def _bytes(made: object) -> bytes:
    """What a codec has made; it is the user's, who may have had no type checker."""
    if isinstance(made, bytes):
        return made
    raise TypeError(f"the codec has made {type(made).__qualname__}, not bytes")
