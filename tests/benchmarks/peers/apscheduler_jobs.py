"""Jobs of APScheduler 3: each one is due once, in memory, run by its scheduler for asyncio."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

from apscheduler.schedulers.asyncio import AsyncIOScheduler

__all__ = ["run"]

_done = 0
_wanted = 0
_all: asyncio.Event


async def _job() -> None:
    global _done  # noqa: PLW0603 - jobs are functions of a module here
    _done += 1
    if _done == _wanted:
        _all.set()


def run(count: int) -> tuple[float, float, float]:
    """Jobs enqueued, moved, and run, each a second."""
    return asyncio.run(_run(count))


async def _run(count: int) -> tuple[float, float, float]:
    global _wanted, _all
    _wanted, _all = count, asyncio.Event()
    scheduler = AsyncIOScheduler(timezone=UTC)
    scheduler.start(paused=True)
    later = datetime.now(UTC) + timedelta(hours=1)
    began = time.perf_counter()
    for number in range(count):
        scheduler.add_job(
            _job,
            "date",
            run_date=later + timedelta(milliseconds=number),
            id=str(number),
            misfire_grace_time=None,
        )
    enqueued = time.perf_counter()
    now = datetime.now(UTC)
    for number in range(count):
        scheduler.modify_job(str(number), next_run_time=now + timedelta(microseconds=number))
    moved = time.perf_counter()
    scheduler.resume()
    await _all.wait()
    ended = time.perf_counter()
    scheduler.shutdown()
    return count / (enqueued - began), count / (moved - enqueued), count / (ended - moved)
