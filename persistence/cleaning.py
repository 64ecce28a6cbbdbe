"""Deleting expired rows now and then; readers do not see them in any case."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from persistence.errors import PersistenceError

__all__ = ["Cleaner"]

_log = logging.getLogger(__name__)
_SHORTEST_PAUSE_SECONDS: Final = 0.05


class Cleaner:
    """Calls `clean` once an interval until it is closed; a failure is logged, and tried again next time.

    It rests for a moment between two calls even if the interval is 0, so that a database has other work, too.
    """

    def __init__(self, clean: Callable[[], Awaitable[None]], interval_seconds: float) -> None:
        self._clean = clean
        self._pause_seconds = max(interval_seconds, _SHORTEST_PAUSE_SECONDS)
        self._task = asyncio.create_task(self._run(), name="cleaner of expired rows")

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._pause_seconds)
            try:
                await self._clean()
            except PersistenceError as error:
                _log.warning("expired rows could not be deleted: %s", error)
            except Exception:  # noqa: BLE001  whatever it was, the next interval is another try
                _log.warning("expired rows could not be deleted", exc_info=True)

    async def aclose(self) -> None:
        """Stop; what is under way in another thread ends by itself."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
