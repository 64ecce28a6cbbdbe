"""Pauses: what a failure means for an entity, and how long it waits for its next run."""

from __future__ import annotations

import enum
from datetime import timedelta
from typing import Final

from hsm.engine.clock import nanos_of
from hsm.engine.options import Backoff
from hsm.errors import Disposition, disposition
from hsm.goalstate._entry import Entry
from hsm.goalstate._logs import logger
from hsm.goalstate.errors import EntityNotFoundError
from hsm.goalstate.options import Growth, Options

__all__ = ["Pauses", "Verdict", "error_text"]

# A century: an int64 of nanoseconds holds the sum with any present time.
_LONGEST: Final = timedelta(days=36_525)


class Verdict(enum.Enum):
    """What becomes of an entity after a run."""

    DONE = "done"
    """Nothing, until somebody asks for it."""
    RETRY = "retry"
    """It is run again after a pause."""
    GONE = "gone"
    """It is forgotten: there is no such entity any more."""
    DEAD = "dead"
    """It is given up, until somebody asks for it."""


class Pauses:
    """Counts failures and measures pauses, as the options say."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._exponential = Backoff(
            options.failure_retry_delay,
            max(options.maximum_retry_delay, options.failure_retry_delay),
            jitter=options.jitter,
        )

    def judge(self, entry: Entry, error: Exception | None) -> tuple[Verdict, int]:
        """Note how a run has ended; what follows, and after how many nanoseconds."""
        if error is None:
            entry.failures = entry.tries = 0
            return Verdict.DONE, 0
        if isinstance(error, EntityNotFoundError):
            return Verdict.GONE, 0
        answer = disposition(error)
        if answer in {Disposition.ACKNOWLEDGE, Disposition.DROP}:
            entry.failures = entry.tries = 0
            return Verdict.DONE, 0
        asked = getattr(error, "retry_after", None)
        if answer is not Disposition.RETRY_UNCOUNTED:
            entry.failures += 1
            most = self._options.maximum_attempts
            if answer is Disposition.DEAD_LETTER or (most is not None and entry.failures >= most):
                return Verdict.DEAD, 0
        if isinstance(asked, timedelta):
            return Verdict.RETRY, nanos_of(min(max(asked, timedelta()), _LONGEST))
        entry.tries += 1
        return Verdict.RETRY, nanos_of(min(self._pause(entry.tries, error), _LONGEST))

    def _pause(self, tries: int, error: Exception) -> timedelta:
        options = self._options
        try:
            own = options.backoff_of(error)
        except Exception:  # noqa: BLE001 - it is logged, with its traceback
            logger.exception("`backoff_of` has failed")
            own = None
        if own is not None:
            return own.delay(tries, options.random)
        if options.growth is Growth.EXPONENTIAL:
            return self._exponential.delay(tries, options.random)
        first, longest = options.failure_retry_delay, options.maximum_retry_delay
        full = longest if first and tries >= longest / first else first * tries
        return full * (1 - options.jitter * options.random.random())

    def tell(self, entry: Entry, verdict: Verdict, error: Exception | None) -> None:
        """Log and count what follows a run."""
        metrics, name = self._options.metrics, self._options.name
        if verdict is Verdict.RETRY:
            logger.info("entity %s has failed, and is tried again: %r", entry.id, error)
            if metrics is not None:
                metrics.retried(name)
        elif verdict is Verdict.GONE:
            logger.info("entity %s is forgotten: %r", entry.id, error)
            if metrics is not None:
                metrics.missing(name)
        elif verdict is Verdict.DEAD:
            logger.warning("entity %s is given up: %r", entry.id, error, exc_info=error)


def error_text(error: BaseException) -> str:
    """Type and text of an error, also if it cannot say what it is."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - the entity must not be lost for a broken `__str__`
        return type(error).__name__
