"""Protobuf bytes written and read by hand: what any program makes of them that knows the field numbers alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

__all__ = ["Field", "decode", "encode", "text_of", "texts_of"]

Field: TypeAlias = tuple[int, "int | bytes | str"]
"""Number and value: an integer goes as a varint, text and bytes with their length."""


def encode(*fields: Field) -> bytes:
    """The bytes of a message with these fields in this order."""
    return b"".join(map(_encoded, fields))


def _encoded(field: Field) -> bytes:
    number, value = field
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode(data: bytes) -> list[tuple[int, int | bytes]]:
    """The fields of a message in their order; only varints and what has a length are understood."""
    return list(_fields(data))


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            yield number, varint()
        elif kind == 2:
            size = varint()
            if at + size > len(data):
                raise ValueError(f"field {number} ends after the message")
            yield number, data[at : at + size]
            at += size
        else:
            raise ValueError(f"field {number} is of kind {kind}")


def texts_of(data: bytes, number: int) -> list[str]:
    """The values of a repeated text field."""
    return [value.decode() for found, value in decode(data) if found == number and isinstance(value, bytes)]


def text_of(data: bytes, number: int) -> str:
    """The value of a text field; "" if it is not there."""
    return next(reversed(texts_of(data, number)), "")
