r"""SQL LIKE patterns: `%` any text, `_` one character, `\` escapes; case counts."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from persistence.errors import InvalidRequestError, KeysLikeEmptyPatternError
from persistence.options import check_partition, check_text
from persistence.store import KeysLikeRequest

__all__ = ["LikePattern", "check_keys_like", "decode_token", "encode_token", "parse_like"]

Part: TypeAlias = str | None


class LikePattern(NamedTuple):
    """A parsed pattern.

    Attributes:
        parts: one entry a character that must match: the character, "_" parts as "" and "%" parts as None.
        prefix: the literal text that every match starts with.
    """

    parts: tuple[Part, ...]
    prefix: str

    def matcher(self) -> Callable[[str], bool]:
        """A function that tells whether a text matches, in time proportional to its length."""
        segments: list[str] = [""]
        for part in self.parts:
            if part is None:
                segments.append("")
            else:
                segments[-1] += "." if not part else re.escape(part)
        first, *others = segments
        if not others:
            expression = first
        else:
            # Atomic groups: once a middle segment has matched at its earliest place no other place is
            # tried, which would change nothing but take exponentially long.
            *middle, last = others
            expression = first + "".join(f"(?>.*?{segment})" for segment in middle if segment) + ".*" + last
        match = re.compile(expression, re.DOTALL).fullmatch
        return lambda text: match(text) is not None

    def glob(self) -> str:
        """The same pattern in the language of GLOB, where case counts too."""
        special = {"*": "[*]", "?": "[?]", "[": "[[]"}
        return "".join(
            "*" if part is None else "?" if not part else special.get(part, part) for part in self.parts
        )


def parse_like(pattern: str) -> LikePattern:
    """Parse a pattern.

    Raises:
        KeysLikeEmptyPatternError: it is empty.
        InvalidRequestError: it ends within an escape, or holds what no key can.
    """
    if not pattern:
        raise KeysLikeEmptyPatternError("the pattern is empty; `%` matches every key")
    check_text(pattern, "pattern")
    parts: list[Part] = []
    characters = iter(pattern)
    for character in characters:
        if character == "\\":
            escaped = next(characters, None)
            if escaped is None:
                raise InvalidRequestError(f"pattern {pattern!r} ends with a backslash that escapes nothing")
            parts.append(escaped)
        else:
            parts.append({"%": None, "_": ""}.get(character, character))
    prefix = ""
    for part in parts:
        if not part:
            break
        prefix += part
    return LikePattern(tuple(parts), prefix)


def check_keys_like(request: KeysLikeRequest) -> tuple[LikePattern, str]:
    """The pattern of a request, and the key after which its page begins ("" for the first page).

    Raises:
        KeysLikeEmptyPatternError: the pattern is empty.
        InvalidRequestError: a bad partition, pattern, page size or token.
    """
    check_partition(request.partition)
    if request.page_size is not None and request.page_size < 1:
        raise InvalidRequestError(f"page size {request.page_size} is less than 1")
    pattern = parse_like(request.pattern)
    return pattern, decode_token(request.continue_token) if request.continue_token else ""


def encode_token(key: str) -> str:
    """The token of the page that begins after `key`."""
    return base64.urlsafe_b64encode(key.encode()).decode("ascii")


def decode_token(token: str) -> str:
    """The key after which a page begins.

    Raises:
        InvalidRequestError: the token is not one of ours.
    """
    try:
        key = base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeError) as error:
        raise InvalidRequestError(
            f"continue token {token[:100]!r} was not given out by this store"
        ) from error
    check_text(key, "continue token")
    return key
