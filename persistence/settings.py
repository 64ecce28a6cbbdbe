"""Options as text: what stands in the query of a URL, or in the properties that `init` is given."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import timedelta
from typing import Final, Self
from urllib.parse import SplitResult, parse_qsl, urlsplit

from persistence.errors import InvalidRequestError

__all__ = ["Properties", "host_and_port", "split_url"]

_UNREADABLE: Final = (
    "the URL of the store cannot be read: its host or its port is none;"
    " in a user name or password, write / as %2F, ? as %3F, [ as %5B, and so on"
)
_MOST_CONNECTIONS: Final = 10_000
_FLAGS: Final = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


class Properties:
    """Options by name. Each is read with its default; an option that nobody has asked for is an error.

    Used as a context manager around the reading: `with Properties("etcd", texts) as properties: ...`.
    """

    def __init__(self, backend: str, texts: Mapping[str, str]) -> None:
        self._backend = backend
        self._texts = texts
        self._known: set[str] = set()

    def text(self, name: str, default: str) -> str:
        """An option that is a text."""
        self._known.add(name)
        return self._texts.get(name, default)

    def seconds(self, name: str, default: timedelta) -> timedelta:
        """An option that is a time, given in seconds.

        Raises:
            InvalidRequestError: not a number, or negative.
        """
        self._known.add(name)
        text = self._texts.get(name)
        if text is None:
            return default
        try:
            seconds = float(text)
        except ValueError:
            seconds = math.nan
        if not 0 <= seconds <= timedelta.max.total_seconds():
            raise InvalidRequestError(f"{self._backend} option {name}={text!r} is not a number of seconds")
        return timedelta(seconds=seconds)

    def whole(self, name: str, default: int, *, least: int = 0) -> int:
        """An option that is a whole number.

        Raises:
            InvalidRequestError: not a whole number, or less than `least`.
        """
        self._known.add(name)
        text = self._texts.get(name)
        if text is None:
            return default
        if not (text.isascii() and text.isdecimal() and len(text) <= 18 and int(text) >= least):
            raise InvalidRequestError(
                f"{self._backend} option {name}={text!r} is not a whole number of at least {least}"
            )
        return int(text)

    def connections(self, name: str, default: int) -> int:
        """An option that is a number of connections.

        Raises:
            InvalidRequestError: not a whole number, less than 1, or more than a server is asked for.
        """
        number = self.whole(name, default, least=1)
        if number > _MOST_CONNECTIONS:
            raise InvalidRequestError(
                f"{self._backend} option {name}={number} is more than {_MOST_CONNECTIONS} connections"
            )
        return number

    def flag(self, name: str, default: bool) -> bool:
        """An option that is true or false.

        Raises:
            InvalidRequestError: neither.
        """
        self._known.add(name)
        text = self._texts.get(name)
        if text is None:
            return default
        if text.lower() not in _FLAGS:
            raise InvalidRequestError(f"{self._backend} option {name}={text!r} is neither true nor false")
        return _FLAGS[text.lower()]

    def choice(self, name: str, default: str, choices: frozenset[str]) -> str:
        """An option that is one of a few words.

        Raises:
            InvalidRequestError: another word.
        """
        text = self.text(name, default)
        if text not in choices:
            raise InvalidRequestError(
                f"{self._backend} option {name}={text!r} is not one of {', '.join(sorted(choices))}"
            )
        return text

    def rest(self) -> Mapping[str, str]:
        """The options that were not read, for a client library that has options of its own."""
        rest = {name: text for name, text in self._texts.items() if name not in self._known}
        self._known.update(rest)
        return rest

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        unknown = sorted(self._texts.keys() - self._known)
        if kind is None and unknown:
            known = ", ".join(sorted(self._known))
            raise InvalidRequestError(f"unknown {self._backend} option {unknown[0]!r}; known are {known}")


def host_and_port(host: str, port: int) -> str:
    """A place as people write it, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_url(url: str) -> tuple[SplitResult, dict[str, str]]:
    """The parts of a URL, and the options of its query.

    Raises:
        InvalidRequestError: it is no URL, or an option is given twice. No message quotes the URL, because it
            may hold a password.
    """
    if any("\ud800" <= character <= "\udfff" for character in url):
        raise InvalidRequestError("the URL of the store holds a lone surrogate, which cannot be sent")
    try:
        parts = urlsplit(url, allow_fragments=False)
        port = parts.port  # parsed only when asked for
    except ValueError:
        # Not what urllib says: it quotes the pieces of a password that is not escaped.
        raise InvalidRequestError(_UNREADABLE) from None
    if port == 0:
        raise InvalidRequestError(_UNREADABLE)
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    options = dict(pairs)
    if any("@" in name for name in options):
        raise InvalidRequestError(_UNREADABLE)  # that was no query, but the rest of a password
    if len(options) != len(pairs):
        names = [name for name, _ in pairs]
        twice = ", ".join(name for name in options if names.count(name) > 1)
        raise InvalidRequestError(f"an option is given twice: {twice}")
    return parts, options
