"""Multis and gets a second of a store, by a closed loop of workers.

    python tests/benchmarks/bench_store.py                       SQLite in a temporary directory
    python tests/benchmarks/bench_store.py --url memory://       any store
    python tests/benchmarks/bench_store.py --profile 100         where the event loop's thread spends its time

One multi is what an engine commits: check a fence, write a node's row under its etag, write a new task row
("put"); "del" also deletes the task row of the turn before, so that the database stays small.

In brackets: the ratio to a peer measured in the same rounds, which is plain `sqlite3` in a loop of its own with
one transaction for each multi, as durable, on the same schema.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import cProfile
import itertools
import pstats
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence

from persistence import (
    CheckRequest,
    DeleteRequest,
    EngineStore,
    GetRequest,
    Operation,
    SetRequest,
    connect,
    require,
)
from persistence.stores.sqlite import sql

VALUE = b"x" * 200
ETAG = "0123456789abcdef"
PARTITIONS = 16
ROUNDS = 3


async def worker(
    store: EngineStore, number: int, task_ids: Iterator[int], deadline: float, *, delete: bool
) -> int:
    partition = f"exec/{number % PARTITIONS}"
    fence = await fence_etag(store, partition)
    node = f"node/{number}"
    etag = await store.multi((SetRequest(partition=partition, key=node, value=VALUE),))
    done = 0
    last_task = ""
    while time.perf_counter() < deadline:
        operations: list[Operation] = [
            CheckRequest(partition, "fence", fence),
            SetRequest(partition=partition, key=node, value=VALUE, etag=etag),
            SetRequest(partition=partition, key=(task := f"task/{next(task_ids):012}"), value=VALUE),
        ]
        if delete and done:
            operations.append(DeleteRequest(partition=partition, key=last_task))
        etag = await store.multi(operations)
        last_task = task
        done += 1
    return done


async def fence_etag(store: EngineStore, partition: str) -> str:
    etag = (await store.get(GetRequest(partition=partition, key="fence"))).etag
    assert etag is not None
    return etag


async def multis(url: str, concurrency: int, seconds: float, *, delete: bool) -> float:
    async with require(connect(url), EngineStore) as store:
        for number in range(PARTITIONS):
            await store.set(SetRequest(partition=f"exec/{number}", key="fence", value=b""))
        task_ids = itertools.count()  # in the order in which they are made, as an engine's are
        start = time.perf_counter()
        deadline = start + seconds
        counts = await asyncio.gather(
            *(worker(store, number, task_ids, deadline, delete=delete) for number in range(concurrency))
        )
        return sum(counts) / (time.perf_counter() - start)


async def gets(url: str, seconds: float) -> float:
    async with connect(url) as store:
        requests = [GetRequest(partition="p", key=f"key/{number}") for number in range(1000)]
        await store.bulk_set(
            [SetRequest(partition="p", key=request.key, value=VALUE) for request in requests]
        )
        done = 0
        start = time.perf_counter()
        while time.perf_counter() < start + seconds:
            for request in requests:
                await store.get(request)
            done += len(requests)
        return done / (time.perf_counter() - start)


def peer_multis(directory: str, seconds: float, *, delete: bool) -> float:
    """Multis a second of plain `sqlite3`, one after the other, without an event loop."""
    with contextlib.closing(sqlite3.connect(f"{directory}/peer.db", isolation_level=None)) as connection:
        execute = connection.execute
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = FULL")
        for statement in sql.SCHEMA:
            execute(statement)
        execute(sql.upsert(1), ("exec/0", "fence", ETAG, None, None, b""))
        start = time.perf_counter()
        done = 0
        while time.perf_counter() < start + seconds:
            execute("BEGIN IMMEDIATE")
            execute(sql.GET, ("exec/0", "fence")).fetchall()
            execute(sql.GET, ("exec/0", "node")).fetchall()
            node = ("exec/0", "node", ETAG, None, None, VALUE)
            execute(sql.upsert(2), (*node, "exec/0", f"task/{done:012}", ETAG, None, None, VALUE))
            if delete and done:
                execute(sql.delete(1), ("exec/0", f"task/{done - 1:012}"))
            execute("COMMIT")
            done += 1
        return done / (time.perf_counter() - start)


def measure(url: str | None, concurrencies: Sequence[int], seconds: float) -> None:
    for kind in ("put", "del"):
        rates: dict[int, list[float]] = {concurrency: [] for concurrency in concurrencies}
        peers: list[float] = []
        for turn in range(ROUNDS):
            with tempfile.TemporaryDirectory() as directory:
                peers.append(peer_multis(directory, seconds, delete=kind == "del"))
            for concurrency in concurrencies if turn % 2 == 0 else reversed(concurrencies):
                with tempfile.TemporaryDirectory() as directory:
                    target = url or f"sqlite:///{directory}/bench.db"
                    rate = asyncio.run(multis(target, concurrency, seconds, delete=kind == "del"))
                rates[concurrency].append(rate)
        peer = statistics.median(peers)
        medians = {concurrency: statistics.median(values) for concurrency, values in rates.items()}
        cells = "  ".join(f"c={c}: {rate:7,.0f} ({rate / peer:4.1f}x)" for c, rate in medians.items())
        print(f"{kind} multis/s  peer: {peer:6,.0f}  {cells}")
    with tempfile.TemporaryDirectory() as directory:
        print(f"gets/s        {asyncio.run(gets(url or f'sqlite:///{directory}/bench.db', seconds)):,.0f}")


def profile(url: str | None, concurrency: int, seconds: float) -> None:
    profiler = cProfile.Profile()
    with tempfile.TemporaryDirectory() as directory:
        target = url or f"sqlite:///{directory}/bench.db"
        profiler.enable()
        rate = asyncio.run(multis(target, concurrency, seconds, delete=False))
        profiler.disable()
    print(f"{rate:,.0f} multis/s under the profiler")
    pstats.Stats(profiler).sort_stats("tottime").print_stats(30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--url", help="the store; default: SQLite in a temporary directory")
    parser.add_argument("--seconds", type=float, default=0.7, help="of each measurement")
    parser.add_argument("--concurrency", type=int, nargs="*", default=[1, 10, 100, 1000])
    parser.add_argument("--profile", type=int, metavar="CONCURRENCY")
    arguments = parser.parse_args()
    if arguments.profile:
        profile(arguments.url, arguments.profile, arguments.seconds)
    else:
        measure(arguments.url, arguments.concurrency, arguments.seconds)


if __name__ == "__main__":
    main()
