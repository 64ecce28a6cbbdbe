"""Scans in pages: a window of keys that moves on, so that no cursor is held open between two pages."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple, TypeAlias

from persistence.errors import InvalidRequestError
from persistence.options import check_partition, check_text
from persistence.store import Item

__all__ = ["Page", "ReadPage", "RowSizes", "Window", "expiry_metadata", "read_pages", "scan_window"]

_MILLISECONDS: Final = 1000


class Window(NamedTuple):
    """What is left to scan: start <= key < end in code-point order, "" being no bound.

    Attributes:
        after: the start itself is left out, because the page before ended with it.
    """

    partition: str
    start: str
    end: str
    reverse: bool
    after: bool = False

    def beyond(self, key: str) -> Window:
        """The window that is left after `key`."""
        return self._replace(end=key) if self.reverse else self._replace(start=key, after=True)


class Page(NamedTuple):
    """Some rows of a window, from its beginning, and whether they were all."""

    items: Sequence[Item]
    last: bool


class RowSizes:
    """How large rows were lately, for servers that do not end a page at so many bytes by themselves.

    One scan may learn from another: rows that are large are large for both.
    """

    def __init__(self, page_bytes: int) -> None:
        self._page_bytes = page_bytes
        self._row_bytes = 1

    def fitting(self, rows: int) -> int:
        """How many rows to ask for, at most so many; one at least."""
        return min(rows, max(1, self._page_bytes // self._row_bytes))

    def learn(self, rows: int, size: int) -> None:
        """Take note of rows that were read, and their bytes."""
        if rows:
            # It shrinks slowly, because rows of one size are often together.
            self._row_bytes = max(size // rows, self._row_bytes // 2, 1)

    def fear(self) -> None:
        """Take note of a page that could not be read, as it was too large perhaps: the next has one row."""
        self._row_bytes = self._page_bytes


ReadPage: TypeAlias = Callable[[Window, int], Awaitable[Page]]
"""Reads at most so many rows from the beginning of a window, as one snapshot."""


def scan_window(partition: str, start: str, end: str, *, limit: int | None, reverse: bool) -> Window:
    """The window of a scan.

    Raises:
        InvalidRequestError: a bad partition or bound, or a negative limit.
    """
    check_partition(partition)
    check_text(start, "start of a scan")
    check_text(end, "end of a scan")
    if limit is not None and limit < 0:
        raise InvalidRequestError(f"limit {limit} of a scan is negative")
    return Window(partition, start, end, reverse)


async def read_pages(
    read: ReadPage, window: Window, limit: int | None, *, first: int, following: int
) -> AsyncIterator[Item]:
    """The rows of a window, at most `limit`, in pages of `first` and then `following` rows."""
    left = limit
    rows = first
    while left is None or left > 0:
        page = await read(window, rows if left is None else min(rows, left))
        for item in page.items:
            yield item
        if page.last or not page.items:
            return
        if left is not None:
            left -= len(page.items)
        window = window.beyond(page.items[-1].key)
        rows = following


def expiry_metadata(expires_milliseconds: int) -> Mapping[str, str]:
    """What a response says of a row that expires: `ttlExpireTime` in RFC 3339, UTC."""
    moment = datetime.fromtimestamp(expires_milliseconds / _MILLISECONDS, UTC)
    return {"ttlExpireTime": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")}
