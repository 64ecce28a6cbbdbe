"""Files that a SQLite store must refuse, naming them and leaving them as they were."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from persistence import (
    GetRequest,
    InvalidRequestError,
    Metadata,
    PersistenceError,
    SetRequest,
    StoreBrokenError,
    StoreBusyError,
    StoreClosedError,
    StoreCorruptError,
    StoreUnavailableError,
)
from persistence.stores.sqlite import SqliteOptions, SqliteStore

IMPATIENT = SqliteOptions(busy_timeout=timedelta(milliseconds=50), open_timeout=timedelta(milliseconds=50))


async def fill(path: Path, rows: int = 1) -> None:
    async with SqliteStore(path) as store:
        requests = [SetRequest(key=f"key/{number:05}", value=b"x" * 500) for number in range(rows)]
        await store.bulk_set(requests)


async def refused(path: Path, kind: type[PersistenceError], text: str | None = None) -> None:
    """Opening fails with this error, which names the file, and again when it is tried again."""
    store = SqliteStore(path, options=IMPATIENT)
    for _ in range(2):
        with pytest.raises(kind, match=text) as error:
            await store.init(Metadata())
        assert path.name in str(error.value)
    with pytest.raises(StoreClosedError):
        await store.get(GetRequest(key="key"))
    await store.aclose()


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@contextmanager
def left_as_it_was(path: Path) -> Iterator[None]:
    before = hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns
    yield
    assert before == (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
    assert names_in(path.parent) == [path.name]


@pytest.mark.parametrize("content", [b"not a database", b"x" * 10_000, b"SQLite format 3", b"\0" * 4096])
async def test_a_file_that_is_no_database_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "letter.txt"
    path.write_bytes(content)
    with left_as_it_was(path):
        await refused(path, StoreCorruptError, "not a SQLite database")


@pytest.mark.parametrize(
    "pragmas", [[], ["application_id = 7"], ["journal_mode = wal"], ["user_version = 3"]]
)
async def test_a_database_of_another_application_is_refused(tmp_path: Path, pragmas: list[str]) -> None:
    path = tmp_path / "theirs.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("CREATE TABLE kv (a)")
    with left_as_it_was(path):
        await refused(path, StoreCorruptError, "another application")


async def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "newer.db"
    await fill(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with left_as_it_was(path):
        await refused(path, StoreCorruptError, "schema version 99.*newer release")


async def test_a_damaged_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "damaged.db"
    await fill(path)
    content = bytearray(path.read_bytes())
    content[100:2000] = b"\xff" * 1900
    path.write_bytes(content)
    with left_as_it_was(path):
        await refused(path, StoreCorruptError)


async def test_an_empty_file_becomes_a_store(tmp_path: Path) -> None:
    path = tmp_path / "empty.db"
    path.touch()
    await fill(path)
    await fill(path)


async def test_an_empty_database_becomes_a_store(tmp_path: Path) -> None:
    path = tmp_path / "vacuumed.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("VACUUM")
    await fill(path)


async def test_a_page_found_damaged_later_is_told_by_reads_scans_and_writes(tmp_path: Path) -> None:
    path = tmp_path / "damaged.db"
    await fill(path, 2000)
    with closing(sqlite3.connect(path)) as connection:
        (page_size,) = connection.execute("PRAGMA page_size").fetchone()
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
    with path.open("r+b") as file:
        for page in range(10, pages):
            file.seek(page * page_size)
            file.write(b"\xa5" * page_size)
    async with SqliteStore(path) as store:
        with pytest.raises(StoreCorruptError, match=r"damaged\.db"):
            await store.get(GetRequest(key="key/01999"))
        with pytest.raises(StoreCorruptError, match=r"damaged\.db"):
            [item async for item in store.scan("", "", "")]
        with pytest.raises(StoreCorruptError, match=r"damaged\.db"):
            await store.set(SetRequest(key="key/01999", value=b"new"))
        with pytest.raises(StoreBrokenError, match=r"damaged\.db"):
            await store.set(SetRequest(key="key/00001", value=b"new"))


async def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    await refused(
        tmp_path / "missing" / "state.db", StoreUnavailableError, "missing of state.db does not exist"
    )


async def test_a_directory_is_no_file(tmp_path: Path) -> None:
    await refused(tmp_path, StoreUnavailableError, "is a directory")


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write everywhere")
async def test_a_directory_that_is_not_writable_is_named(tmp_path: Path) -> None:
    directory = tmp_path / "closed"
    directory.mkdir(mode=0o500)
    await refused(directory / "state.db", StoreUnavailableError, "not writable")


@contextmanager
def locked(path: Path, how: str = "BEGIN IMMEDIATE") -> Iterator[None]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(how)
        yield
        connection.execute("ROLLBACK")


async def test_a_file_locked_by_another_writer_is_busy_and_then_works_again(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    async with SqliteStore(path, options=IMPATIENT) as store:
        await store.set(SetRequest(key="key", value=b"old"))
        with locked(path):
            with pytest.raises(StoreBusyError, match=r"state\.db"):
                await store.set(SetRequest(key="key", value=b"new"))
            assert (await store.get(GetRequest(key="key"))).data == b"old"
        await store.set(SetRequest(key="key", value=b"new"))
        assert (await store.get(GetRequest(key="key"))).data == b"new"


async def test_a_file_that_somebody_has_for_itself_cannot_be_opened(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    await fill(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("BEGIN IMMEDIATE")
        await refused(path, StoreBusyError)
    await fill(path)


async def test_a_file_that_somebody_writes_can_be_opened_and_read(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    await fill(path)
    with locked(path):
        async with SqliteStore(path, options=IMPATIENT) as store:
            assert (await store.get(GetRequest(key="key/00000"))).data == b"x" * 500


async def test_a_fresh_file_locked_by_somebody_cannot_be_opened(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    path.touch()
    with locked(path):
        await refused(path, StoreBusyError)


async def test_a_full_disk_is_told_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    async with SqliteStore(path) as store:
        await store.set(SetRequest(key="key", value=b"old"))
        state = store._state
        assert state is not None
        state.writer._connection.execute("PRAGMA max_page_count = 10")
        with pytest.raises(StoreUnavailableError, match=r"no space.*state\.db"):
            await store.set(SetRequest(key="big", value=b"x" * 1_000_000))
        await store.set(SetRequest(key="key", value=b"new"))
        assert (await store.get(GetRequest(key="big"))).data is None
        assert (await store.get(GetRequest(key="key"))).data == b"new"


async def test_unknown_property_is_refused_and_known_ones_are_taken(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "state.db")
    with pytest.raises(
        InvalidRequestError, match="unknown SQLite option 'busyTimeout'; known are busy_timeout"
    ):
        await store.init(Metadata({"busyTimeout": "1"}))
    await store.init(Metadata({"busy_timeout": "0.05"}))
    with locked(tmp_path / "state.db"), pytest.raises(StoreBusyError):
        await store.set(SetRequest(key="key", value=b""))
    await store.aclose()


async def test_closing_leaves_one_file(tmp_path: Path) -> None:
    await fill(tmp_path / "state.db", 100)
    assert names_in(tmp_path) == ["state.db"]


async def test_names_of_any_kind_are_files(tmp_path: Path) -> None:
    for name in ("a b.db", "a?b#c%20.db", "\u00e4\U0001f600.db"):
        await fill(tmp_path / name)
        assert (tmp_path / name).exists()
