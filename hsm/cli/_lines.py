"""The deliveries file: one JSON object a line, read as a stream; a bad line is told and left out."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import BinaryIO, Final, cast

import attrs

from hsm.cli._errors import LineError, MalformedLineError, OversizedLineError
from hsm.components.callback import InvalidRequestError, Request

__all__ = ["LONGEST_LINE", "Delivery", "parse_line", "read_lines"]

LONGEST_LINE: Final = 1024 * 1024
"""Bytes in a line, its end not counted."""

_MEMBERS: Final = frozenset({"id", "url", "method", "headers", "body", "max_attempts", "timeout"})
_LONGEST_ID: Final = 500
_NOT_IN_ID: Final = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_MOST_ATTEMPTS: Final = 2**31 - 1
_TEXT: Final = "text/plain; charset=utf-8"
_JSON: Final = "application/json"
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_SKIP_BYTES: Final = 64 * 1024


@attrs.frozen
class Delivery:
    """One delivery of the file.

    Attributes:
        line: number of its line, from 1.
        id: unique in the database.
        request: what is sent.
        max_attempts: attempts before it has failed for good.
    """

    line: int
    id: str
    request: Request
    max_attempts: int = 10

    @property
    def digest(self) -> str:
        """The same for the same content, however the line is written; 32 hexadecimal digits."""
        request = self.request
        content = json.dumps(
            [
                self.id,
                request.url,
                request.method,
                sorted(request.headers.items()),
                request.timeout // timedelta(microseconds=1),
                self.max_attempts,
            ]
        )
        hashed = hashlib.sha256(content.encode())
        hashed.update(request.body)
        return hashed.hexdigest()[:32]


def read_lines(file: BinaryIO) -> Iterator[Delivery | LineError]:
    """The deliveries of a file, and the errors of its bad lines; empty lines are passed over.

    At most one line is in memory.
    """
    number = 0
    while line := file.readline(LONGEST_LINE + 2):
        number += 1
        oversized = len(line.rstrip(b"\r\n")) > LONGEST_LINE
        while oversized and line and not line.endswith(b"\n"):
            line = file.readline(_SKIP_BYTES)
        if oversized:
            yield OversizedLineError(number, f"it is longer than {LONGEST_LINE} bytes")
            continue
        if number == 1:
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if not line.strip():
            continue
        try:
            yield parse_line(number, line)
        except LineError as error:
            yield error


def parse_line(number: int, line: bytes) -> Delivery:
    """The delivery in a line.

    Raises:
        MalformedLineError: names the member that is wrong.
    """
    members = _members(number, line)
    unknown = sorted(members.keys() - _MEMBERS)
    if unknown:
        raise MalformedLineError(
            number, f"unknown member {unknown[0]!r}; known: {', '.join(sorted(_MEMBERS))}"
        )
    id_, url = _text(number, members, "id"), _text(number, members, "url")
    if not id_ or len(id_) > _LONGEST_ID or _NOT_IN_ID.search(id_):
        raise MalformedLineError(
            number, f"'id' has 1 to {_LONGEST_ID} characters, none of them a control character: {id_[:80]!r}"
        )
    headers = _headers(number, members)
    body, content_type = _body(number, members.get("body"))
    if content_type and not any(name.lower() == "content-type" for name in headers):
        headers = {**headers, "Content-Type": content_type}
    try:
        request = Request(
            url,
            _text(number, members, "method", "POST"),
            headers,
            body,
            timedelta(seconds=_number(number, members, "timeout", 10)),
        )
    except InvalidRequestError as error:
        raise MalformedLineError(number, str(error)) from error
    except OverflowError as error:
        raise MalformedLineError(number, "'timeout' is too large") from error
    return Delivery(number, id_, request, _attempts(number, members))


def _members(number: int, line: bytes) -> dict[str, object]:
    try:
        value: object = json.loads(
            line.decode(), parse_constant=_refuse_constant, object_pairs_hook=_refuse_repeats
        )
    except UnicodeDecodeError as error:
        raise MalformedLineError(number, f"it is not UTF-8: {error.reason} at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise MalformedLineError(number, f"it is not JSON: {error.msg} at column {error.colno}") from error
    except _RepeatedMemberError as error:
        raise MalformedLineError(number, str(error)) from None
    except ValueError as error:
        raise MalformedLineError(number, f"it is not JSON: {error}") from error
    except RecursionError as error:
        raise MalformedLineError(number, "it is nested too deeply") from error
    if not isinstance(value, dict):
        raise MalformedLineError(number, f"it is not a JSON object: {line[:40].decode(errors='replace')!r}")
    # JSON has no other keys than text.
    return cast("dict[str, object]", value)


class _RepeatedMemberError(Exception):
    """A member of an object is there twice, and nobody knows which one is meant."""


def _refuse_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        repeated, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise _RepeatedMemberError(f"the member {repeated[:80]!r} is there twice")
    return members


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number in JSON")


def _text(number: int, members: dict[str, object], name: str, default: str | None = None) -> str:
    value = members.get(name, default)
    if value is None:
        raise MalformedLineError(number, f"{name!r} is missing")
    if not isinstance(value, str):
        raise MalformedLineError(number, f"{name!r} is not text: {_excerpt(value)}")
    return value


def _number(number: int, members: dict[str, object], name: str, default: float) -> float:
    value = members.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise MalformedLineError(number, f"{name!r} is not a number: {_excerpt(value)}")
    return value


def _attempts(number: int, members: dict[str, object]) -> int:
    value = members.get("max_attempts", 10)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST_ATTEMPTS:
        raise MalformedLineError(number, f"'max_attempts' is not a number from 1 up: {_excerpt(value)}")
    return value


def _headers(number: int, members: dict[str, object]) -> dict[str, str]:
    value = members.get("headers", {})
    if not isinstance(value, dict):
        raise MalformedLineError(number, f"'headers' is not an object: {_excerpt(value)}")
    headers: dict[str, str] = {}
    # JSON has no other keys than text.
    for name, text in cast("dict[str, object]", value).items():
        if not isinstance(text, str):
            raise MalformedLineError(number, f"the header {name!r} is not text: {_excerpt(text)}")
        headers[name] = text
    return headers


def _body(number: int, value: object) -> tuple[bytes, str]:
    """The bytes of a body, and what they are."""
    try:
        if value is None:
            return b"", ""
        if isinstance(value, str):
            return value.encode(), _TEXT
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode(), _JSON
    except UnicodeEncodeError as error:
        raise MalformedLineError(number, "'body' holds half a surrogate pair") from error
    except (ValueError, RecursionError) as error:
        raise MalformedLineError(number, f"'body' cannot be sent as JSON: {error}") from error


def _excerpt(value: object) -> str:
    return json.dumps(value)[:80]
