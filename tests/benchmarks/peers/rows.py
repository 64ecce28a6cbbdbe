"""What the peers of the stores on servers share: workers that write rows under etags, each by one transaction."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Iterator
from typing import Final, Protocol, TypeVar

from tests.benchmarks.bench_store import PARTITIONS, VALUE

__all__ = ["CONNECTIONS", "VALUE", "Rows", "multis_a_second", "new_etag"]

CONNECTIONS: Final = 20
"""Connections of a pool, and so transactions at once."""

EtagT = TypeVar("EtagT")


class Rows(Protocol[EtagT]):
    """Rows of a database, as a user of its driver would write them."""

    async def put(self, partition: str, key: str) -> EtagT:
        """Write a row without a condition; its etag."""

    async def multi(self, partition: str, fence: EtagT, node: str, etag: EtagT, task: str) -> EtagT:
        """Check the row "fence" and the node by their etags, write the node and a new task; the new etag."""


async def multis_a_second(rows: Rows[EtagT], concurrency: int, seconds: float) -> float:
    """What `bench_store` measures of a store, of rows."""
    fences = [await rows.put(f"exec/{number}", "fence") for number in range(PARTITIONS)]
    task_ids = itertools.count()
    start = time.perf_counter()
    deadline = start + seconds
    workers = (
        _worker(rows, number, fences[number % PARTITIONS], task_ids, deadline)
        for number in range(concurrency)
    )
    counts = await asyncio.gather(*workers)
    return sum(counts) / (time.perf_counter() - start)


async def _worker(
    rows: Rows[EtagT], number: int, fence: EtagT, task_ids: Iterator[int], deadline: float
) -> int:
    partition = f"exec/{number % PARTITIONS}"
    node = f"node/{number}"
    etag = await rows.put(partition, node)
    done = 0
    while time.perf_counter() < deadline:
        etag = await rows.multi(partition, fence, node, etag, f"task/{next(task_ids):012}")
        done += 1
    return done


def new_etag() -> str:
    """Made by the client, so that nothing has to be read back."""
    return os.urandom(8).hex()
