"""The options of a SQLite store."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

import attrs

from persistence.settings import Properties

__all__ = ["SqliteOptions"]


@attrs.frozen
class SqliteOptions:
    """How to open and keep a file. In a URL or in `Metadata` times are given in seconds.

    Attributes:
        busy_timeout: how long to wait for another process that writes, before `StoreBusyError`.
        cleanup_interval: how often expired rows are deleted; reads hide them at once in any case.
        open_timeout: how long to try to open a file that others are opening at the same moment.
        create: whether a file that does not exist is made; else that is `StoreUnavailableError`.
    """

    busy_timeout: timedelta = timedelta(seconds=5)
    cleanup_interval: timedelta = timedelta(minutes=1)
    open_timeout: timedelta = timedelta(seconds=5)
    create: bool = True

    def changed(self, texts: Mapping[str, str]) -> SqliteOptions:
        """These options with some replaced by texts.

        Raises:
            InvalidRequestError: an unknown name, or a value that is none.
        """
        with Properties("SQLite", texts) as properties:
            return SqliteOptions(
                busy_timeout=properties.seconds("busy_timeout", self.busy_timeout),
                cleanup_interval=properties.seconds("cleanup_interval", self.cleanup_interval),
                open_timeout=properties.seconds("open_timeout", self.open_timeout),
                create=properties.flag("create", self.create),
            )
