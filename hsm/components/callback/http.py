"""Sending callbacks over HTTP. Needs the extra `http`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Final, Self

from hsm.components.callback.executors import Confirmed, Outcome, Refused, Unavailable
from hsm.components.callback.request import Request
from hsm.engine import current_trace

try:
    import aiohttp
    import yarl
except ImportError as _error:
    raise ImportError(
        "sending over HTTP needs aiohttp: pip install 'hsm-toolkit[http]'", name=_error.name
    ) from _error

__all__ = ["HttpSender", "retry_after_of"]

_TRY_AGAIN: Final = frozenset({408, 429})
_READ_BYTES: Final = 64 * 1024
_EXCERPT_CHARACTERS: Final = 200
_LONGEST_SECONDS: Final = timedelta.max // timedelta(seconds=1)


class HttpSender:
    """A sender for `register`: `async with HttpSender() as sender`. All requests share its connections.

    An answer of 2xx confirms. 408, 429, 5xx, time-outs and errors of the connection may be tried again;
    `Retry-After` is passed on. Every other answer refuses, redirects too: they are not followed. Cookies are
    not kept. Where the engine traces, requests carry `traceparent` and `tracestate`.

    Args:
        connections: open at once over all destinations; 0 is no limit.
        user_agent: sent where the request has none.
    """

    def __init__(self, *, connections: int = 0, user_agent: str = "hsm-toolkit") -> None:
        self._connections = connections
        self._user_agent = user_agent
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            # The queues of the engine bound each destination.
            connector=aiohttp.TCPConnector(limit=self._connections),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": self._user_agent},
            # Answers are thrown away; a compressed one could be huge.
            auto_decompress=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def __call__(self, request: Request) -> Outcome:
        """Send a request once."""
        if self._session is None:
            raise RuntimeError("the sender is not open: use `async with HttpSender() as sender`")
        # Text that is ASCII already is sent as it is: the receiver may have signed it.
        url = yarl.URL(request.url, encoded=request.url.isascii())
        timeout = request.timeout.total_seconds()
        try:
            async with self._session.request(
                request.method,
                url,
                headers=_with_trace(request.headers),
                data=request.body or None,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=timeout),
            ) as response:
                return await _outcome(response)
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError, ValueError) as error:
            return Refused(f"the request cannot be sent: {error}", type(error).__name__)
        except TimeoutError:
            return Unavailable(f"no answer within {timeout:g} s", "Timeout")
        except (aiohttp.ClientError, OSError) as error:
            return Unavailable(f"{type(error).__name__}: {error}", type(error).__name__)


def _with_trace(headers: Mapping[str, str]) -> Mapping[str, str]:
    """The headers, and where in a trace the request is made, unless they say so themselves."""
    trace = current_trace()
    if trace is None or any(name.lower() == "traceparent" for name in headers):
        return headers
    return {**headers, **trace.headers()}


async def _outcome(response: aiohttp.ClientResponse) -> Outcome:
    status = response.status
    excerpt = await _read_some(response)
    if 200 <= status < 300:
        return Confirmed()
    kind = f"HTTP {status}"
    message = f"{kind} {response.reason or ''}".rstrip()
    if excerpt:
        message += f": {excerpt}"
    if status in _TRY_AGAIN or status >= 500:
        header = response.headers.get("Retry-After", "")
        return Unavailable(message, kind, retry_after_of(header, datetime.now(UTC)))
    return Refused(message, kind)


async def _read_some(response: aiohttp.ClientResponse) -> str:
    """The beginning of an answer. It is read so that the connection can be used again, and never fails."""
    received = bytearray()
    try:
        while len(received) < _READ_BYTES:
            block = await response.content.read(_READ_BYTES - len(received))
            if not block:
                break
            received += block
    except (aiohttp.ClientError, OSError):
        # The status has told already what has become of the request.
        pass
    text = received[: 4 * _EXCERPT_CHARACTERS].decode(errors="replace")
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:_EXCERPT_CHARACTERS]


def retry_after_of(header: str, now: datetime) -> timedelta | None:
    """The pause that a `Retry-After` header asks for, in seconds or as a date; None if it cannot be read."""
    header = header.strip()
    if header.isascii() and header.isdigit():
        # More digits than a timedelta has room for mean "never", too.
        seconds = int(header) if len(header) < 12 else _LONGEST_SECONDS
        return timedelta(seconds=min(seconds, _LONGEST_SECONDS))
    try:
        moment = parsedate_to_datetime(header)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(moment - now, timedelta())
