"""Peer: DBOS, which keeps workflows of steps in its system database."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from dbos import DBOS, DBOSConfig

__all__ = ["workflows_a_second"]


@DBOS.step()
def _deliver(attempts: int) -> int:
    return attempts


@DBOS.workflow()
def _delivery(attempts: int) -> int:
    return _deliver(attempts)


def workflows_a_second(directory: Path, workflows: int, concurrency: int, *, wal: bool) -> float:
    """Run workflows of one step each, from `concurrency` threads.

    Threads, because with coroutines DBOS runs at three quarters of this rate.

    Args:
        directory: for the database.
        workflows: how many.
        concurrency: threads.
        wal: keep the database in WAL mode, which DBOS does not ask for but uses where it finds it.
    """
    with _launched(directory / f"dbos-{time.time_ns()}.db", wal=wal), ThreadPoolExecutor(concurrency) as pool:
        list(pool.map(_delivery, range(concurrency)))  # threads and connections are there
        start = time.perf_counter()
        list(pool.map(_delivery, range(workflows)))
        return workflows / (time.perf_counter() - start)


@contextmanager
def _launched(path: Path, *, wal: bool) -> Iterator[None]:
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA journal_mode={'WAL' if wal else 'DELETE'}")
    connection.close()
    config: DBOSConfig = {
        "name": "benchmark",
        "system_database_url": f"sqlite:///{path}",
        "log_level": "ERROR",
    }
    DBOS(config=config)
    DBOS.launch()
    try:
        yield
    finally:
        DBOS.destroy()
