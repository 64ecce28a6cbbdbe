"""The log of commits of a SQLite file: it gets its size at once, at a moment when nobody waits."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from persistence import GetRequest, SetRequest, StoreUnavailableError
from persistence.decision import prepare
from persistence.stores.sqlite import SqliteStore
from persistence.stores.sqlite.files import open_writer
from persistence.stores.sqlite.writing import Writer

FULL_SIZE = 4_000_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@pytest.fixture
def writer(path: Path) -> Iterator[Writer]:
    with closing(open_writer(path, busy_timeout=timedelta(), open_timeout=timedelta())) as connection:
        yield Writer(connection, path, lambda: 0, timedelta())


def log_size(path: Path) -> int:
    return path.with_name("state.db-wal").stat().st_size


def commit(writer: Writer, path: Path, times: int) -> None:
    limits = SqliteStore(path).limits
    for _ in range(times):
        writer.write_batch([prepare([SetRequest(key="key", value=b"value")], limits)], ["0" * 16])


def value_in(path: Path) -> bytes:
    with closing(sqlite3.connect(path)) as connection:
        (value,) = connection.execute("SELECT v FROM kv WHERE k = 'key'").fetchone()
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("SELECT count(*) FROM kv").fetchone() == (1,)
    assert isinstance(value, bytes)
    return value


def test_who_commits_seldom_does_not_pay_for_it(writer: Writer, path: Path) -> None:
    commit(writer, path, 20)
    assert writer.due() is None
    assert log_size(path) < FULL_SIZE


@pytest.mark.parametrize("later", [0, 1, 30])
def test_a_crash_loses_nothing_and_brings_nothing_back(
    writer: Writer, path: Path, tmp_path: Path, later: int
) -> None:
    commit(writer, path, 32)
    work = writer.due()
    assert work is not None
    work()
    assert writer.due() is None
    assert log_size(path) > FULL_SIZE
    commit(writer, path, later)
    # What a crash of the machine would leave: pages that were rolled back are still in the log.
    crashed = tmp_path / "crashed"
    crashed.mkdir()
    for name in ("state.db", "state.db-wal"):
        shutil.copy(tmp_path / name, crashed / name)
    assert value_in(crashed / "state.db") == value_in(path) == b"value"
    assert log_size(path) > FULL_SIZE


def test_it_waits_for_another_time_when_somebody_else_writes(writer: Writer, path: Path) -> None:
    commit(writer, path, 32)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        writer.make_room()
    assert writer.due() is None
    assert log_size(path) < FULL_SIZE
    commit(writer, path, 32)
    assert writer.due() is not None


def test_a_disk_without_room_for_it_is_told_and_hinders_nobody(writer: Writer, path: Path) -> None:
    commit(writer, path, 32)
    writer._connection.execute("PRAGMA max_page_count = 100")
    with pytest.raises(StoreUnavailableError, match="no space"):
        writer.make_room()
    commit(writer, path, 1)
    assert writer.due() is None
    assert value_in(path) == b"value"


async def test_a_store_attends_to_its_log_by_itself(path: Path) -> None:
    async with SqliteStore(path) as store:
        for number in range(100):
            await store.set(SetRequest(key="key", value=f"{number}".encode()))
        assert log_size(path) > FULL_SIZE
        assert (await store.get(GetRequest(key="key"))).data == b"99"
        assert value_in(path) == b"99"
