"""The HTTP request of a callback, checked before it is stored."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Final
from urllib.parse import urlsplit

import attrs

from hsm.errors import HSMError

__all__ = ["DEFAULT_TIMEOUT", "LONGEST_TIMEOUT", "InvalidRequestError", "Request", "destination_of"]

LONGEST_TIMEOUT: Final = timedelta(hours=1)
"""The longest that one attempt may take."""
DEFAULT_TIMEOUT: Final = timedelta(seconds=10)

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NOT_IN_URL: Final = re.compile(r"[\x00-\x20\x7f\ud800-\udfff]")
_NOT_IN_VALUE: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]")
# Whoever frames the message on the wire sets these.
_FRAMING: Final = frozenset({"connection", "content-length", "transfer-encoding", "upgrade"})
_PORTS: Final = {"http": 80, "https": 443}


class InvalidRequestError(HSMError, ValueError):
    """The request could never be sent: a bad URL, method, header or time-out."""


@functools.lru_cache(maxsize=1024)
def destination_of(url: str) -> str:
    """Scheme, host and port, if it is not the usual one: what queues and circuit breakers go by.

    Raises:
        InvalidRequestError: the URL is no absolute HTTP URL.
    """
    if _NOT_IN_URL.search(url):
        raise InvalidRequestError(f"the URL {url!r} holds a blank or a control character")
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme, parts.hostname, parts.port
        if host and not host.isascii():
            # It has to have an ASCII form, or nobody could look it up.
            host.encode("idna")
    except ValueError as error:
        raise InvalidRequestError(f"the URL {url!r} is malformed: {error}") from error
    if scheme not in _PORTS:
        raise InvalidRequestError(f"the URL {url!r} does not begin with http:// or https://")
    if not host:
        raise InvalidRequestError(f"the URL {url!r} names no host")
    if port == 0:
        raise InvalidRequestError(f"the URL {url!r} names port 0")
    if ":" in host:
        host = f"[{host}]"
    return f"{scheme}://{host}" if port in {None, _PORTS[scheme]} else f"{scheme}://{host}:{port}"


def _check_url(_: Request, __: attrs.Attribute[str], url: str) -> None:
    destination_of(url)


def _check_method(_: Request, __: attrs.Attribute[str], method: str) -> None:
    if not _TOKEN.fullmatch(method):
        raise InvalidRequestError(f"{method!r} is no HTTP method")
    if method.upper() == "CONNECT":
        raise InvalidRequestError("CONNECT opens a tunnel and delivers nothing")


def _check_headers(_: Request, __: attrs.Attribute[Mapping[str, str]], headers: Mapping[str, str]) -> None:
    seen: set[str] = set()
    for name, value in headers.items():
        folded = name.lower()
        if not _TOKEN.fullmatch(name):
            raise InvalidRequestError(f"{name!r} is no name of an HTTP header")
        if folded in _FRAMING:
            raise InvalidRequestError(f"the header {name!r} is set by the sender")
        if folded in seen:
            raise InvalidRequestError(f"the header {name!r} is given twice")
        if _NOT_IN_VALUE.search(value):
            raise InvalidRequestError(f"the value of the header {name!r} holds a control character")
        seen.add(folded)


def _check_timeout(_: Request, __: attrs.Attribute[timedelta], timeout: timedelta) -> None:
    if not timedelta() < timeout <= LONGEST_TIMEOUT:
        raise InvalidRequestError(
            f"a time-out is more than 0 and at most {LONGEST_TIMEOUT.total_seconds():.0f} seconds,"
            f" not {timeout.total_seconds()}"
        )


@attrs.frozen
class Request:
    """What is sent at each attempt.

    Attributes:
        url: absolute, http or https.
        method: any HTTP method but CONNECT.
        headers: by name; names differ in more than case.
        body: sent as it is.
        timeout: for one attempt, from connecting to the answer's headers.

    Raises:
        InvalidRequestError: names the part that cannot be sent.
    """

    url: str = attrs.field(validator=_check_url)
    method: str = attrs.field(default="POST", validator=_check_method)
    headers: Mapping[str, str] = attrs.field(factory=dict[str, str], validator=_check_headers)
    body: bytes = b""
    timeout: timedelta = attrs.field(default=DEFAULT_TIMEOUT, validator=_check_timeout)
