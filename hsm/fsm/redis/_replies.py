"""What a server answered, as the types that a command promises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from hsm.fsm.errors import InvalidDataError

__all__ = ["as_bytes", "as_list", "as_texts"]


def as_bytes(reply: object) -> bytes:
    """A text."""
    assert isinstance(reply, bytes), reply  # so the command promises
    return reply


def as_list(reply: object) -> Sequence[object]:
    """A list."""
    assert isinstance(reply, list), reply  # so the command promises
    return cast("Sequence[object]", reply)  # of entries whose types are asked for one by one


def as_texts(reply: object, what: str) -> list[str]:
    """A list of texts in UTF-8.

    Raises:
        InvalidDataError: one of them is none.
    """
    texts: list[str] = []
    for each in as_list(reply):
        try:
            texts.append(as_bytes(each).decode())
        except UnicodeDecodeError as error:
            raise InvalidDataError(f"{what} are no texts: {each!r}") from error
    return texts
