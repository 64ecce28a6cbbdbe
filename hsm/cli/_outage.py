"""A database that is away for a while: said once, waited for, and given up on in the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from rich.console import Console

from hsm.cli._errors import CommandError, one_line
from hsm.errors import RetryLaterError
from persistence import StoreBrokenError, StoreUnavailableError

__all__ = ["Outage"]

ResultT = TypeVar("ResultT")

_FIRST_PAUSE_SECONDS: Final = 0.05
_LONGEST_PAUSE_SECONDS: Final = 1.0


class Outage:
    """Calls that go on when the database is back; all calls of a run share one, and what it says."""

    def __init__(self, patience_seconds: float, errors: Console) -> None:
        self._patience = patience_seconds
        self._errors = errors
        self._began: float | None = None
        self._end: CommandError | None = None

    async def outlast(self, call: Callable[[], Awaitable[ResultT]]) -> ResultT:
        """Call until the database answers; a call may thus be made again although it has taken place.

        Raises:
            CommandError: the database has been away for too long.
        """
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                result = await call()
            except (RetryLaterError, StoreUnavailableError) as error:
                if isinstance(error, StoreBrokenError) or isinstance(error.__cause__, StoreBrokenError):
                    raise  # this one does not come back
                self._note(error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            else:
                self._note_answer()
                return result

    def _note(self, error: Exception) -> None:
        now = time.monotonic()
        if self._began is None:
            self._began = now
            self._say(f"{one_line(error)}; waiting up to {self._patience:g} s for it")
        if now - self._began >= self._patience:
            # The same for all who wait, so that it is told once.
            self._end = self._end or CommandError(
                f"the database was away for {self._patience:g} s: {one_line(error)};"
                " run the same command again to go on"
            )
            raise self._end from error

    def _note_answer(self) -> None:
        if self._began is not None:
            self._began = None
            self._say("it answers again")

    def _say(self, text: str) -> None:
        self._errors.print(f"database: {text}", markup=False, highlight=False, soft_wrap=True)
