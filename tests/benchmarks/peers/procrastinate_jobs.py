"""Peer: procrastinate, a queue of jobs in PostgreSQL.

Clients and the worker share one process and one pool of connections, as ours do. A client defers a job and
waits until the worker has called its function, before it defers the next one. Deferring without
waiting, and pools of other sizes, are not faster.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Final

from procrastinate import App, PsycopgConnector

__all__ = ["jobs_a_second"]

_CONNECTIONS: Final = 20
_POLL_SECONDS: Final = 0.01
_UNFINISHED: Final = "SELECT count(*) AS jobs FROM procrastinate_jobs WHERE status <> 'succeeded'"


def jobs_a_second(url: str, jobs: int, concurrency: int) -> float:
    """Run jobs of a function that does nothing, until the database says that all have succeeded.

    Args:
        url: of an empty database.
        jobs: how many.
        concurrency: clients, and jobs that the worker runs at once.
    """
    return asyncio.run(_jobs_a_second(url, jobs, concurrency))


async def _jobs_a_second(url: str, jobs: int, concurrency: int) -> float:
    connector = PsycopgConnector(conninfo=url, min_size=_CONNECTIONS, max_size=_CONNECTIONS)
    app = App(connector=connector, import_paths=[__name__])
    called: dict[int, asyncio.Future[None]] = {}

    @app.task(name="deliver")
    async def deliver(number: int) -> None:
        called.pop(number).set_result(None)

    async def client(numbers: Iterable[int]) -> None:
        for number in numbers:
            ended = called[number] = asyncio.get_running_loop().create_future()
            await deliver.defer_async(number=number)
            await ended

    async def run(numbers: Iterable[int]) -> None:
        shared = iter(numbers)
        await asyncio.gather(*(client(shared) for _ in range(concurrency)))
        while (await connector.execute_query_one_async(_UNFINISHED))["jobs"]:  # noqa: ASYNC110  it is in the database
            await asyncio.sleep(_POLL_SECONDS)

    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        async with _working(app, concurrency):
            await run(range(concurrency))  # the worker listens, and statements are prepared
            start = time.perf_counter()
            await run(range(concurrency, concurrency + jobs))
            return jobs / (time.perf_counter() - start)


@asynccontextmanager
async def _working(app: App, concurrency: int) -> AsyncIterator[None]:
    worker = asyncio.create_task(app.run_worker_async(concurrency=concurrency, install_signal_handlers=False))
    try:
        yield
    finally:
        worker.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await worker
