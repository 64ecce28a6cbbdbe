"""The options of a SQLite store."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import timedelta
from typing import Final

import attrs

from persistence.errors import InvalidRequestError

__all__ = ["SqliteOptions"]

_NAMES: Final = ("busy_timeout", "cleanup_interval", "open_timeout")


@attrs.frozen
class SqliteOptions:
    """How to open and keep a file. In a URL or in `Metadata` they are given in seconds.

    Attributes:
        busy_timeout: how long to wait for another process that writes, before `StoreBusyError`.
        cleanup_interval: how often expired rows are deleted; reads hide them at once in any case.
        open_timeout: how long to try to open a file that others are opening at the same moment.
    """

    busy_timeout: timedelta = timedelta(seconds=5)
    cleanup_interval: timedelta = timedelta(minutes=1)
    open_timeout: timedelta = timedelta(seconds=5)

    def changed(self, properties: Mapping[str, str]) -> SqliteOptions:
        """These options with some replaced by `properties`, which are texts of seconds.

        Raises:
            InvalidRequestError: an unknown name, or not a number of seconds.
        """
        changes: dict[str, timedelta] = {}
        for name, text in properties.items():
            if name not in _NAMES:
                raise InvalidRequestError(f"unknown SQLite option {name!r}; known are {', '.join(_NAMES)}")
            changes[name] = _seconds(name, text)
        if not changes:
            return self
        return SqliteOptions(
            busy_timeout=changes.get("busy_timeout", self.busy_timeout),
            cleanup_interval=changes.get("cleanup_interval", self.cleanup_interval),
            open_timeout=changes.get("open_timeout", self.open_timeout),
        )


def _seconds(name: str, text: str) -> timedelta:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= timedelta.max.total_seconds():
        raise InvalidRequestError(f"SQLite option {name}={text!r} is not a number of seconds")
    return timedelta(seconds=seconds)
