"""What is done with the connection that writes."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Final, TypeAlias

from persistence.batcher import DataRejectedError, Result
from persistence.decision import Decision, Slot, Transaction, decide
from persistence.errors import StoreUnavailableError
from persistence.options import prefix_end
from persistence.stores.sqlite import sql
from persistence.stores.sqlite.failures import is_busy, is_data_error, is_full, translate

__all__ = ["Writer"]

_ETAG_LENGTH: Final = 16
_COLUMNS: Final = 6
_PLAIN_COLUMNS: Final = 4
_KEY_COLUMNS: Final = 2
_MILLISECONDS: Final = 1000
_CLEANUP_ROWS: Final = 1000
_CLEANUP_SLACK_MILLISECONDS: Final = 100
_PAGE_BYTES: Final = 4096
_PAGES_OF_ROW: Final = 2
_CHECKPOINT_PAGES: Final = 1000
_LOG_BYTES: Final = _CHECKPOINT_PAGES * _PAGE_BYTES * 9 // 8
_FEW_PAGES: Final = 16
# Who commits less often than this had better wait.
_COMMITS_BEFORE_ROOM: Final = 32
_MOST_PAGES_GUESSED: Final = 8 * _CHECKPOINT_PAGES

_Parameter: TypeAlias = str | int | bytes | bytearray | None


class Writer:
    """The one connection that writes, for one thread at a time."""

    def __init__(
        self, connection: sqlite3.Connection, path: Path, now: Callable[[], int], busy_timeout: timedelta
    ) -> None:
        self._connection = connection
        self._path = path
        self._log = path.with_name(path.name + "-wal")
        self._now = now
        self._busy_milliseconds = int(busy_timeout.total_seconds() * _MILLISECONDS)
        self._waits = True
        self._pages = 0
        self._due_pages = _CHECKPOINT_PAGES
        self._commits = 0

    def due(self) -> Callable[[], None] | None:
        """What there is to be done as soon as nobody waits for it; None: nothing."""
        if self._pages >= self._due_pages:
            return self.checkpoint
        if self._commits == _COMMITS_BEFORE_ROOM:
            return self.make_room
        return None

    def close(self) -> None:
        """Close the connection; if it is the last one of all processes, the WAL is written back."""
        self._connection.close()

    def write_batch(
        self, batch: Sequence[Transaction], etags: Sequence[str], *, wait: bool = True
    ) -> Sequence[Result]:
        """Decide and commit a batch in one database transaction.

        Raises:
            StoreBusyError: somebody else writes, and `wait` is false, or they take too long.
            PersistenceError: nothing was written.
            DataRejectedError: nothing was written, because of a value.
            sqlite3.Error: the commit itself failed; what was written is not known.
        """
        try:
            self._set_waiting(wait)
            self._connection.execute("BEGIN IMMEDIATE")
            # Only now, because the lock may have been long in coming, and leases run out meanwhile.
            now = self._now()
            decision = decide(batch, self._stored_etags(batch, now), etags)
            self._write(decision, now)
        except Exception as error:
            self._undo()
            if is_data_error(error):
                raise DataRejectedError(translate(error, self._path)) from error
            if isinstance(error, sqlite3.Error):
                raise translate(error, self._path) from error
            raise
        self._commit()
        self._commits += 1
        return decision.results

    def checkpoint(self) -> None:
        """Write the log back into the database, as far as readers let us."""
        guessed, self._pages = self._pages, 0
        try:
            _, pages, _ = self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.Error as error:
            raise translate(error, self._path) from error
        if pages > 0:
            # Rows of one commit share pages, more or fewer of them: the next guess goes by what this one was.
            due = guessed * _CHECKPOINT_PAGES // pages
            self._due_pages = max(_CHECKPOINT_PAGES, min(due, _MOST_PAGES_GUESSED))

    def make_room(self) -> None:
        """Let the log have the size that it will come to: a commit that makes it longer takes twice as long.

        SQLite writes pages that its cache has no room for into the log before they are committed, and leaves
        the file as long as it is when they are rolled back.
        """
        self._commits += 1
        connection = self._connection
        try:
            if self._log.stat().st_size >= _LOG_BYTES:
                return
            (cached,) = connection.execute("PRAGMA cache_size").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            connection.execute(f"PRAGMA cache_size = {_FEW_PAGES}")
            try:
                self._set_waiting(False)
                connection.execute("BEGIN IMMEDIATE")
                connection.execute(sql.FILL_LOG, (_LOG_BYTES,))
                connection.execute("ROLLBACK")
                # Or the next commit would have to wait until all that is on the disk.
                connection.execute("BEGIN IMMEDIATE")
                connection.execute(f"PRAGMA user_version = {version}")
                connection.execute("COMMIT")
            finally:
                self._undo()
                connection.execute(f"PRAGMA cache_size = {cached}")
        except OSError as error:
            raise StoreUnavailableError(f"cannot read {self._log}: {error}") from error
        except sqlite3.Error as error:
            if is_busy(error):
                # Somebody else writes: another time.
                self._commits = 0
                return
            raise translate(error, self._path) from error

    def delete_family(self, partition: str, prefix: str) -> int:
        """Delete the keys with this prefix that have no further separator; the number deleted."""
        parameters = (partition, prefix, prefix_end(prefix), len(prefix) + 1, self._now())
        try:
            self._set_waiting(True)
            return self._connection.execute(sql.DELETE_FAMILY, parameters).rowcount
        except sqlite3.Error as error:
            self._undo()
            raise translate(error, self._path) from error

    def claim_cleanup(self, interval_milliseconds: int) -> bool:
        """Whether it falls to this process to delete expired rows now."""
        now = self._now()
        due = now - interval_milliseconds + _CLEANUP_SLACK_MILLISECONDS
        try:
            self._set_waiting(True)
            return self._connection.execute(sql.CLAIM_CLEANUP, (now, due)).rowcount == 1
        except sqlite3.Error as error:
            self._undo()
            raise translate(error, self._path) from error

    def delete_expired(self) -> bool:
        """Delete some expired rows; whether there may be more."""
        connection = self._connection
        try:
            self._set_waiting(True)
            connection.execute("BEGIN IMMEDIATE")
            now = self._now()
            slots: list[Slot] = connection.execute(sql.EXPIRED, (now, _CLEANUP_ROWS)).fetchall()
            connection.executemany(sql.DELETE_EXPIRED, [(*slot, now) for slot in slots])
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._undo()
            raise translate(error, self._path) from error
        return len(slots) == _CLEANUP_ROWS

    def _stored_etags(self, batch: Sequence[Transaction], now: int) -> dict[Slot, str]:
        slots = list({slot: None for transaction in batch for slot, _ in transaction.conditions})
        if len(slots) == 1:
            # As most transactions that come alone.
            (slot,) = slots
            row = self._connection.execute(sql.ETAG, (*slot, now)).fetchone()
            return {} if row is None else {slot: row[0]}
        stored: dict[Slot, str] = {}
        start = 0
        for size in sql.chunk_sizes(len(slots)):
            chunk = slots[start : start + size]
            start += size
            cursor = self._connection.execute(sql.lookup(size), (*chain.from_iterable(chunk), now))
            ((found,),) = cursor.fetchall()
            if found is not None:
                for entry in found.split(","):
                    stored[chunk[int(entry[_ETAG_LENGTH:])]] = entry[:_ETAG_LENGTH]
        return stored

    def _write(self, decision: Decision, now: int) -> None:
        plain: list[_Parameter] = []
        others: list[_Parameter] = []
        deleted: list[_Parameter] = []
        for (partition, key), (write, etag) in decision.writes.items():
            _, value, ttl_seconds, content_type = write
            if value is None:
                deleted += (partition, key)
                continue
            size = len(value)
            self._pages += size // _PAGE_BYTES
            # Python looks for adapters of bytes and None before it binds them, which costs more than the rest
            # of what it does for a row. Of a bytearray it does not, but that is a copy.
            blob = bytearray(value) if size < _PAGE_BYTES else value
            if ttl_seconds is None and content_type is None:
                plain += (partition, key, etag, blob)
            else:
                expires = None if ttl_seconds is None else now + ttl_seconds * _MILLISECONDS
                others += (partition, key, etag, expires, content_type, blob)
        self._pages += len(decision.writes) * _PAGES_OF_ROW
        self._execute(sql.upsert_plain, plain, _PLAIN_COLUMNS)
        self._execute(sql.upsert, others, _COLUMNS)
        self._execute(sql.delete, deleted, _KEY_COLUMNS, largest=sql.LARGEST_DELETE)

    def _execute(
        self,
        statement: Callable[[int], str],
        parameters: Sequence[_Parameter],
        columns: int,
        *,
        largest: int = sql.LARGEST_CHUNK,
    ) -> None:
        start = 0
        for rows in sql.chunk_sizes(len(parameters) // columns, largest):
            end = start + rows * columns
            self._connection.execute(statement(rows), parameters[start:end])
            start = end

    def _commit(self) -> None:
        try:
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._undo()
            if is_busy(error) or is_full(error):
                raise translate(error, self._path) from error
            # The log may or may not have reached the disk, and a restart may or may not bring it back.
            raise

    def _set_waiting(self, wait: bool) -> None:
        """Wait for others who write, or not; kept until it changes, as it costs as much as a row."""
        if wait != self._waits:
            milliseconds = self._busy_milliseconds if wait else 0
            self._connection.execute(f"PRAGMA busy_timeout = {milliseconds}").fetchall()
            self._waits = wait

    def _undo(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
