"""Peer: DBOS, which keeps workflows of steps in its system database."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from dbos import DBOS, DBOSConfig

__all__ = ["workflows_a_second", "workflows_a_second_on_sqlite"]


@DBOS.step()
def _deliver(attempts: int) -> int:
    return attempts


@DBOS.workflow()
def _delivery(attempts: int) -> int:
    return _deliver(attempts)


def workflows_a_second(url: str, workflows: int, concurrency: int) -> float:
    """Run workflows of one step each, from `concurrency` threads.

    Threads, because with coroutines DBOS is no faster, and on SQLite runs at three quarters of this rate. The
    configuration is that of its documentation: the database, and its own pool of 20 connections, which more
    of them do not make faster.

    Args:
        url: of its database.
        workflows: how many.
        concurrency: threads.
    """
    with _launched(url), ThreadPoolExecutor(concurrency) as pool:
        list(pool.map(_delivery, range(concurrency)))  # threads and connections are there
        start = time.perf_counter()
        list(pool.map(_delivery, range(workflows)))
        return workflows / (time.perf_counter() - start)


def workflows_a_second_on_sqlite(directory: Path, workflows: int, concurrency: int, *, wal: bool) -> float:
    """The same on a new file; `wal`: in WAL mode, which DBOS does not ask for but uses where it finds it."""
    path = directory / f"dbos-{time.time_ns()}.db"
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA journal_mode={'WAL' if wal else 'DELETE'}")
    connection.close()
    return workflows_a_second(f"sqlite:///{path}", workflows, concurrency)


@contextmanager
def _launched(url: str) -> Iterator[None]:
    config: DBOSConfig = {"name": "benchmark", "system_database_url": url, "log_level": "ERROR"}
    DBOS(config=config)
    DBOS.launch()
    try:
        yield
    finally:
        DBOS.destroy()
