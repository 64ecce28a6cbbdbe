"""What is particular to the SQLite store: plans, threads, batches, expired rows, a busy event loop."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from persistence import (
    CheckRequest,
    CommitOutcomeUnknownError,
    DeleteRequest,
    ETagMismatchError,
    GetRequest,
    Metadata,
    SetRequest,
    StoreBrokenError,
    StoreClosedError,
)
from persistence.decision import prepare
from persistence.stores.sqlite import SqliteOptions, SqliteStore, sql
from persistence.stores.sqlite.files import open_writer
from persistence.stores.sqlite.writing import Writer
from tests.support.stores import SetClock

STATEMENTS = {
    "get": sql.GET,
    "etag": sql.ETAG,
    "lookup of 1": sql.lookup(1),
    "lookup of 256": sql.lookup(256),
    "values of 1": sql.values(1),
    "values of 256": sql.values(256),
    "delete of 1": sql.delete(1),
    "delete of 64": sql.delete(64),
    "scan": sql.SCAN,
    "scan backwards": sql.SCAN_REVERSE,
    "keys like": sql.KEYS_LIKE,
    "delete family": sql.DELETE_FAMILY,
    "any expired": sql.ANY_EXPIRED,
    "expired": sql.EXPIRED,
    "delete expired": sql.DELETE_EXPIRED,
}


@pytest.mark.parametrize("name", STATEMENTS)
def test_no_statement_reads_the_whole_table_or_sorts(name: str) -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        for statement in sql.SCHEMA:
            connection.execute(statement)
        statement = STATEMENTS[name]
        plan = connection.execute(f"EXPLAIN QUERY PLAN {statement}", [""] * statement.count("?")).fetchall()
    steps = [str(step[3]) for step in plan]
    assert any("kv" in step for step in steps)
    assert not [step for step in steps if "SCAN kv" in step or "TEMP B-TREE" in step]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 8, 9, 255, 256, 257, 1000, 1023])
def test_rows_are_split_into_few_sizes(count: int) -> None:
    sizes = list(sql.chunk_sizes(count))
    assert sum(sizes) == count
    assert all(size & (size - 1) == 0 and size <= 256 for size in sizes[:-1])
    assert len(sizes) == 1 or not sizes or sizes[-1] <= 8


@pytest.mark.parametrize("count", range(1, 9))
def test_few_rows_take_one_statement(count: int) -> None:
    assert list(sql.chunk_sizes(count)) == [count]


@pytest.mark.parametrize("count", [1, 2, 255, 300, 700])
async def test_batches_of_every_size_are_decided_and_written(tmp_path: Path, count: int) -> None:
    async with SqliteStore(tmp_path / "state.db") as store:
        keys = [f"key/{number}" for number in range(count)]
        etags = await asyncio.gather(*(store.multi([SetRequest(key=key, value=b"1")]) for key in keys))
        await asyncio.gather(
            *(
                store.multi([CheckRequest("", key, etag), SetRequest(key=key, value=b"2", etag=etag)])
                for key, etag in zip(keys, etags, strict=True)
            )
        )
        assert [item.value async for item in store.scan("", "", "")] == [b"2"] * count
        stale = await asyncio.gather(
            *(
                store.multi([DeleteRequest(key=key, etag=etag)])
                for key, etag in zip(keys, etags, strict=True)
            ),
            return_exceptions=True,
        )
        assert all(isinstance(outcome, ETagMismatchError) for outcome in stale)
        await asyncio.gather(*(store.multi([DeleteRequest(key=key)]) for key in keys))
        assert [item async for item in store.scan("", "", "")] == []


async def test_the_order_of_keys_is_that_of_code_points_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    async with SqliteStore(path) as store:
        await store.set(SetRequest(key="key", value=b"value"))
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA encoding").fetchone() == ("UTF-8",)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


async def test_expired_rows_are_deleted_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    clock = SetClock()
    options = SqliteOptions(cleanup_interval=timedelta(milliseconds=10))
    async with SqliteStore(path, options=options, clock=clock) as store:
        for number in range(5):
            metadata = {"ttlInSeconds": "5" if number % 2 else "100"}
            await store.set(SetRequest(key=str(number), value=b"", metadata=metadata))
        clock.advance(10)
        with closing(sqlite3.connect(path)) as connection:
            left: list[str] = []
            for _ in range(1000):
                left = [key for (key,) in connection.execute("SELECT k FROM kv").fetchall()]
                if len(left) == 3:
                    break
                await asyncio.sleep(0.01)
    assert left == ["0", "2", "4"]


async def test_one_of_several_processes_cleans_up_an_interval(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    clock = SetClock()
    second = timedelta(seconds=1)

    def now() -> int:
        return clock() // 1_000_000

    writers = [
        Writer(open_writer(path, busy_timeout=second, open_timeout=second), path, now, second)
        for _ in range(3)
    ]
    assert [writer.claim_cleanup(60_000) for writer in writers] == [True, False, False]
    clock.advance(59)
    assert [writer.claim_cleanup(60_000) for writer in writers] == [False, False, False]
    clock.advance(1)
    assert [writer.claim_cleanup(60_000) for writer in writers] == [True, False, False]
    clock.advance(-3600)  # a clock that was wrong must not stop cleaning for an hour
    assert [writer.claim_cleanup(60_000) for writer in writers] == [True, False, False]
    for writer in writers:
        writer.close()


def test_a_batch_looks_at_the_clock_when_it_has_the_lock(tmp_path: Path) -> None:
    """Not before, as a lease may run out while it waits for another process."""
    path = tmp_path / "state.db"
    with closing(open_writer(path, busy_timeout=timedelta(), open_timeout=timedelta())) as connection:
        locked: list[bool] = []

        def now() -> int:
            locked.append(connection.in_transaction)
            return 0

        writer = Writer(connection, path, now, timedelta())
        limits = SqliteStore(path).limits
        writer.write_batch([prepare([SetRequest(key="key", value=b"")], limits)], ["0" * 16])
        writer.delete_expired()
    assert locked
    assert all(locked)


async def test_a_multi_ends_beside_a_loop_that_is_never_idle(tmp_path: Path) -> None:
    """Without help the writer thread would wait for the interpreter lock for ever."""
    slices = 0

    async def be_busy() -> None:
        nonlocal slices
        while slices < 3000:
            slices += 1
            end = time.perf_counter() + 0.002
            while time.perf_counter() < end:
                pass
            await asyncio.sleep(0)

    async with SqliteStore(tmp_path / "state.db") as store:
        busy = asyncio.create_task(be_busy())
        multis = [
            asyncio.create_task(
                store.multi([SetRequest(key=f"{number}/{part}", value=b"") for part in range(3)])
            )
            for number in range(10)
        ]
        everything = asyncio.gather(*multis)
        everything.add_done_callback(lambda _: busy.cancel())
        await asyncio.wait((busy,))
        assert all(multi.done() for multi in multis), f"not done after {slices} slices"
        await everything


async def test_others_who_write_hold_up_transactions_and_not_the_loop(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    async with SqliteStore(path) as store:
        for number in range(100):  # on a quick disk, the next one would be waited for in place
            await store.set(SetRequest(key="key", value=b"%d" % number))
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            waiting = asyncio.create_task(store.set(SetRequest(key="key", value=b"last")))
            for _ in range(20):
                assert (await store.get(GetRequest(key="key"))).data == b"99"
                await asyncio.sleep(0)
            assert not waiting.done()
            other.execute("ROLLBACK")
        await waiting
        assert (await store.get(GetRequest(key="key"))).data == b"last"


@pytest.mark.parametrize("at_once", [1, 20])
async def test_log_of_commits_is_written_back_in_time(tmp_path: Path, at_once: int) -> None:
    value = b"x" * 10_000
    async with SqliteStore(tmp_path / "state.db") as store:
        for number in range(0, 2000, at_once):
            each = (SetRequest(key=f"{number + part}", value=value) for part in range(at_once))
            await asyncio.gather(*map(store.set, each))
        log = (tmp_path / "state.db-wal").stat().st_size
    assert log < 8_000_000


async def test_a_commit_that_fails_at_the_disk_is_unknown_and_stops_the_store(tmp_path: Path) -> None:
    class FailingConnection(sqlite3.Connection):
        def execute(self, statement: str, parameters: Any = (), /) -> sqlite3.Cursor:
            if statement == "COMMIT":
                error = sqlite3.OperationalError("disk I/O error")
                error.sqlite_errorcode = sqlite3.SQLITE_IOERR
                raise error
            return super().execute(statement, parameters)

    path = tmp_path / "state.db"
    async with SqliteStore(path) as store:
        await store.set(SetRequest(key="key", value=b"old"))
        assert store._state is not None
        writer = store._state.writer
        whole = writer._connection
        writer._connection = sqlite3.connect(
            path, isolation_level=None, factory=FailingConnection, check_same_thread=False
        )
        with pytest.raises(CommitOutcomeUnknownError, match="disk I/O error"):
            await store.set(SetRequest(key="key", value=b"new"))
        with pytest.raises(StoreBrokenError):
            await store.set(SetRequest(key="key", value=b"new"))
        with pytest.raises(StoreBrokenError):
            await store.ping()
        assert (await store.get(GetRequest(key="key"))).data == b"old"
        writer._connection.close()
        writer._connection = whole


async def test_closing_leaves_no_thread_and_no_task(tmp_path: Path) -> None:
    tasks, threads = asyncio.all_tasks(), set(threading.enumerate())
    async with SqliteStore(tmp_path / "state.db") as store:
        await store.set(SetRequest(key="key", value=b""))
        assert [item.key async for item in store.scan("", "", "")] == ["key"]
        await store.ping()
    assert asyncio.all_tasks() == tasks
    left = {thread for thread in set(threading.enumerate()) - threads if thread.name.startswith("sqlite")}
    assert left == set()


async def test_a_cancelled_opening_can_be_closed(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "state.db")
    opening = asyncio.create_task(store.init(Metadata()))
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await store.aclose()
    with pytest.raises(StoreClosedError):
        await store.init(Metadata())


async def test_a_cancelled_closing_is_finished_by_the_next(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "state.db")
    await store.init(Metadata())
    closing_task = asyncio.create_task(store.aclose())
    await asyncio.sleep(0)
    closing_task.cancel()
    await asyncio.gather(closing_task, return_exceptions=True)
    await store.aclose()
    assert not (tmp_path / "state.db-wal").exists()


async def test_writes_accepted_before_closing_are_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    store = SqliteStore(path)
    await store.init(Metadata())
    writes = [asyncio.create_task(store.set(SetRequest(key=str(n), value=b""))) for n in range(100)]
    await asyncio.sleep(0)
    await store.aclose()
    await asyncio.gather(*writes)
    async with SqliteStore(path) as again:
        assert len([item async for item in again.scan("", "", "")]) == 100


async def test_a_program_that_forgets_to_close_ends(tmp_path: Path) -> None:
    from tests.support.stores import start_python

    program = """
import asyncio, sys
from persistence import SetRequest, connect, Metadata

async def main():
    store = connect(sys.argv[1])
    await store.init(Metadata())
    await store.set(SetRequest(key="key", value=b"value"))
    print("written", flush=True)

asyncio.run(main())
"""
    process = start_python(program, f"sqlite:///{tmp_path}/state.db")
    output, errors = await asyncio.to_thread(process.communicate, timeout=60)
    assert (output, process.returncode) == ("written\n", 0), errors
    async with SqliteStore(tmp_path / "state.db") as store:
        assert (await store.get(GetRequest(key="key"))).data == b"value"
