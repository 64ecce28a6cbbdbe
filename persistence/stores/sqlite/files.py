"""Opening a file: it must be ours, sound and not from the future; anything else is left as it was."""

from __future__ import annotations

import os
import random
import sqlite3
import time
from datetime import timedelta
from pathlib import Path
from typing import Final

from persistence.errors import StoreCorruptError, StoreUnavailableError
from persistence.stores.sqlite import sql
from persistence.stores.sqlite.failures import is_busy, translate

__all__ = ["APPLICATION_ID", "SCHEMA_VERSION", "open_reader", "open_writer"]

APPLICATION_ID: Final = 0x68736D6B  # "hsmk"
SCHEMA_VERSION: Final = 1
_OPEN_PAUSE_SECONDS: Final = 0.02
_WAL_BYTES_KEPT: Final = 64 * 1024 * 1024
_AUTOCHECKPOINT_PAGES: Final = 8000


def open_writer(
    path: Path, *, busy_timeout: timedelta, open_timeout: timedelta, create: bool = True
) -> sqlite3.Connection:
    """Open the file for writing; make it if it does not exist, and `create` says so.

    Raises:
        StoreCorruptError: it is no SQLite file, or somebody else's, or damaged, or of a newer version.
        StoreBusyError: somebody else holds it locked.
        StoreUnavailableError: it or its directory cannot be used, or does not exist.
    """
    _check_path(path)
    deadline = time.monotonic() + open_timeout.total_seconds()
    while True:
        try:
            if not _is_ours(path) and not create:
                raise StoreUnavailableError(f"there is no database {path}")
            return _open_ours(path, busy_timeout)
        except sqlite3.Error as error:
            # Switching a fresh file to WAL fails at once, without the busy time-out, if another process
            # is doing the same.
            if not is_busy(error) or time.monotonic() >= deadline:
                raise translate(error, path) from error
        time.sleep(_OPEN_PAUSE_SECONDS * (0.5 + random.random()))


def open_reader(path: Path, *, busy_timeout: timedelta) -> sqlite3.Connection:
    """Open a read-only connection to a file that `open_writer` has opened before.

    Raises:
        StoreUnavailableError: it cannot be opened.
    """
    try:
        return _connect(path, "ro", busy_timeout)
    except sqlite3.Error as error:
        raise translate(error, path) from error


def _check_path(path: Path) -> None:
    directory = path.parent
    if path.is_dir():
        raise StoreUnavailableError(f"{path} is a directory")
    if not directory.is_dir():
        raise StoreUnavailableError(f"the directory {directory} of {path.name} does not exist")
    # WAL keeps two more files beside the database, so the directory counts too.
    if not os.access(directory, os.W_OK | os.X_OK):
        raise StoreUnavailableError(f"the directory {directory} of {path.name} is not writable")
    if path.exists() and not os.access(path, os.R_OK | os.W_OK):
        raise StoreUnavailableError(f"{path} is not readable and writable")


def _connect(path: Path, mode: str, busy_timeout: timedelta) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.as_uri()}?mode={mode}",
        timeout=busy_timeout.total_seconds(),
        isolation_level=None,
        # Connections are opened in one thread and used in another, never in two at once.
        check_same_thread=False,
        uri=True,
    )


def _is_ours(path: Path) -> bool:
    """Look at a file without touching it: True if it has our schema, False if there is nothing yet."""
    # Only through SQLite: to open and close the file ourselves would drop the locks that other connections
    # of this process hold on it.
    try:
        if not path.stat().st_size:
            return False
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StoreUnavailableError(f"cannot read {path}: {error}") from error
    # Until the first checkpoint our mark stands in the WAL only.
    log = path.with_name(path.name + "-wal")
    has_log = log.exists() and log.stat().st_size > 0
    # Even a read-only connection leaves files beside a database in WAL mode, unless it is told that nobody
    # changes it; without a log there is nothing that it could miss.
    connection = _connect(path, "ro" if has_log else "ro&immutable=1", timedelta())
    try:
        return _check_ownership(connection, path)
    finally:
        connection.close()


def _check_ownership(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether the database has our schema; False if it is empty."""
    # In this order: somebody else may create it in between, all at once, and then the mark is there, too.
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    if application == 0 and version == 0 and tables == 0:
        return False
    if application != APPLICATION_ID:
        raise StoreCorruptError(f"{path} is a SQLite database of another application")
    if version > SCHEMA_VERSION:
        raise StoreCorruptError(
            f"{path} has schema version {version}, but this release knows versions up to {SCHEMA_VERSION}; "
            "use a newer release"
        )
    return True


def _open_ours(path: Path, busy_timeout: timedelta) -> sqlite3.Connection:
    connection = _connect(path, "rwc", busy_timeout)
    try:
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise StoreUnavailableError(f"{path} cannot be used in WAL mode; is it on a network file system?")
        # With WAL, FULL is what makes a commit survive power loss.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES_KEPT}")
        # The writer asks for checkpoints when nobody waits; inside a commit they are the last resort.
        connection.execute(f"PRAGMA wal_autocheckpoint = {_AUTOCHECKPOINT_PAGES}")
        # A statement that writes many rows keeps pages as they were, to be able to undo itself:
        # in a file otherwise, which costs a sixth of a commit of two hundred rows.
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute("PRAGMA cell_size_check = ON")
        if not _check_ownership(connection, path):
            _create(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _create(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("BEGIN IMMEDIATE")
    # Somebody else may have been faster.
    if not _check_ownership(connection, path):
        for statement in sql.SCHEMA:
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.execute("COMMIT")
