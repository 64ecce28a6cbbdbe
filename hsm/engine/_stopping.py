"""The end of what runs: in good order if there is time for that, and in any case."""

from __future__ import annotations

import asyncio
from collections.abc import Set as AbstractSet
from datetime import timedelta
from typing import Final

from hsm.engine._logs import engine_logger

__all__ = ["PATIENCE_SECONDS", "end_runs"]

_log: Final = engine_logger()
PATIENCE_SECONDS: Final = 5.0
"""How long somebody may take who was told to end at once."""


async def end_runs(runs: AbstractSet[asyncio.Task[None]], grace: timedelta) -> None:
    """Wait for the end of the runs, cancel those that are late, leave behind those that do not heed it."""
    try:
        if runs:
            await asyncio.wait(runs, timeout=grace.total_seconds())
    finally:
        late = list(runs)
        for run in late:
            run.cancel()
        if late:
            _, stubborn = await asyncio.wait(late, timeout=PATIENCE_SECONDS)
            if stubborn:
                _log.error(
                    "%d running tasks do not heed their cancellation, and are left behind", len(stubborn)
                )
